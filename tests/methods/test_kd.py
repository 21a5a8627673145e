"""KD's loss against a naive second writing, at large logits, and as a method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import KD, Setting
from potstill.methods.kd import kd
from potstill.networks.features import Features, FeatureSpec


def softmax(row: list[float], temperature: float) -> list[float]:
    highest = max(row)
    powers = [math.exp((z - highest) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def naive_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The sum over classes and the mean over samples, with lists and loops."""
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = softmax(z_s, temperature), softmax(z_t, temperature)
        total += sum(t * (math.log(t) - math.log(s)) for s, t in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(student)


def method_and_batch(student: int, teacher: int, **hyper) -> tuple[KD, Batch]:
    batch = Batch(torch.zeros(3, 3, 1, 1), None, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    return KD(Setting(FeatureSpec(student, 4), FeatureSpec(teacher, 6)), **hyper), batch


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("b", "c"), [(2, 2), (1, 5), (7, 100)])
def test_agrees_with_a_naive_writing(b: int, c: int, temperature: float):
    torch.manual_seed(c)
    s, t = 3 * torch.randn(b, c, dtype=torch.float64), 3 * torch.randn(b, c, dtype=torch.float64)
    assert kd(s, t, temperature).item() == pytest.approx(naive_kd(s, t, temperature), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0.5, 20), st.floats(-50, 50))
def test_what_the_loss_does_not_see(seed, temperature, shift):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = kd(s, t, temperature)
    assert loss.item() >= 0
    torch.testing.assert_close(kd(s + shift, t - shift, temperature), loss)
    order = torch.randperm(4, generator=generator)
    torch.testing.assert_close(kd(s[order], t[order], temperature), loss)
    assert kd(t, t, temperature).item() == pytest.approx(0, abs=1e-12)


def test_very_large_logits_stay_numbers():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = kd(s, torch.tensor([[-1e4, 1e4, 0.0]]), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert s.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_half_precision_logits_are_computed_in_full():
    s, t = torch.randn(4, 100).bfloat16(), torch.randn(4, 100).half()
    loss = kd(s, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, kd(s.float(), t.float()))


def test_no_gradient_reaches_the_teacher():
    s, t = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    kd(s, t).backward()
    assert t.grad is None
    assert s.grad.any()


def test_the_projector_touches_the_divergence_only():
    method, batch = method_and_batch(5, 5, projector=True, temperature=2.0)
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {
        "projector.weight": (5, 5),
        "projector.bias": (5,),
    }
    logits, other = torch.randn(3, 5), torch.randn(3, 5)
    loss = method(Features(logits, torch.zeros(3, 4)), Features(other, torch.zeros(3, 6)), batch)
    assert torch.equal(loss, kd(method.projector(logits), other, 2.0))


def test_plain_kd_trains_nothing_of_its_own():
    method, batch = method_and_batch(5, 5)
    assert not list(method.parameters())
    logits, other = torch.randn(3, 5), torch.randn(3, 5)
    loss = method(Features(logits, torch.zeros(3, 4)), Features(other, torch.zeros(3, 6)), batch)
    assert torch.equal(loss, kd(logits, other, 4.0))


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\) and the teacher's \(2, 1\)"):
        kd(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(NetworkError, match=r"student has 10 classes and the teacher 100\. Take a teacher of the same"):
        method_and_batch(10, 100)
    with pytest.raises(NetworkError, match="student has 0 classes and the teacher 0"):
        method_and_batch(0, 0)
    with pytest.raises(RecipeError, match="kd learns from a teacher, and there is none"):
        KD(Setting(FeatureSpec(5, 4)))
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"temperature is .*; expected a positive number"):
            method_and_batch(5, 5, temperature=wrong)
