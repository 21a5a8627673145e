"""PEFD's loss against a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import PEFD, Setting
from potstill.methods.pefd import pefd
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher


def naive_pefd(projected: Tensor, teacher: Tensor) -> float:
    """Equation 4 with lists and loops."""
    total = 0.0
    for p, t in zip(projected.tolist(), teacher.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        total += dot / (math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t)))
    return 1 - total / len(projected)


def case(b: int, d: int, m: int, **hyper) -> tuple[PEFD, Features, Features, Batch]:
    setting = Setting(FeatureSpec(classes=5, embedding_dim=d), FeatureSpec(classes=0, embedding_dim=m))
    student = Features(torch.randn(b, 5), torch.randn(b, d).requires_grad_())
    teacher = Features(torch.empty(b, 0), torch.randn(b, m).requires_grad_())
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return PEFD(setting, **hyper), student, teacher, batch


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    torch.manual_seed(b + d)
    a, t = torch.randn(b, m, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)
    assert pefd(a, t).item() == pytest.approx(naive_pefd(a, t), rel=1e-12)


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_the_method_is_the_loss_of_its_projection(b: int, d: int, m: int):
    method, student, teacher, batch = case(b, d, m)
    loss = method(student, teacher, batch)
    assert loss.item() == pytest.approx(naive_pefd(method.projector(student.embedding), teacher.embedding), rel=1e-5)


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_gradients_are_those_of_finite_differences(b: int, d: int, m: int):
    torch.manual_seed(1)
    method, student, teacher, batch = case(b, d, m, activation="gelu")
    method.double()
    t = Features(teacher.logits, teacher.embedding.detach().double())
    inputs = student.embedding.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: method(Features(student.logits, s), t, batch), inputs)


vectors = st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(vectors, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_the_range_and_what_the_loss_does_not_see(rows, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    student = torch.tensor(rows, dtype=torch.float64)
    teacher = torch.randn(student.shape, generator=generator, dtype=torch.float64)
    loss = pefd(student, teacher)
    assert -1e-12 <= loss.item() <= 2 + 1e-12
    torch.testing.assert_close(pefd(student, teacher * scale), loss)
    order = torch.randperm(len(rows), generator=generator)
    torch.testing.assert_close(pefd(student[order], teacher[order]), loss)


def test_the_ends_of_the_range():
    x = torch.randn(6, 8, dtype=torch.float64)
    assert pefd(3 * x, x).item() == pytest.approx(0, abs=1e-12)
    assert pefd(-x, x).item() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one row"])
def test_zero_vectors_give_numbers(dtype: torch.dtype, zero: str):
    student, teacher = torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    if zero == "one row":
        student[1] = 0
    student.requires_grad_()
    loss = pefd(student, teacher)
    loss.backward()
    assert student.grad.isfinite().all()
    if zero == "one row":
        others = [0, 2, 3]
        assert not student.grad[1].any()
        expected = (pefd(student[others], teacher[others]) * 3 + 1) / 4  # the zero row's cosine is 0, its term 1
        torch.testing.assert_close(loss, expected)
    else:
        assert loss.item() == 1
        assert not student.grad.any()


def test_a_projection_with_every_relu_off_gives_numbers():
    method, student, teacher, batch = case(4, 5, 6)
    with torch.no_grad():
        method.projector.weight_0.zero_()
        method.projector.bias_0.fill_(-1)
    loss = method(student, teacher, batch)
    loss.backward()
    assert loss.item() == 1
    for tensor in (student.embedding, *method.parameters()):
        assert tensor.grad.eq(0).all()


def test_short_vectors_are_not_disturbed():
    a = torch.tensor([[1e-10, 0.0], [0.0, 1e-10]], dtype=torch.float64)
    assert pefd(a, torch.ones(2, 2, dtype=torch.float64)).item() == pytest.approx(1 - math.sqrt(0.5), rel=1e-12)


def test_half_precision_embeddings_are_computed_in_full():
    a, t = torch.randn(8, 512, dtype=torch.bfloat16), torch.randn(8, 512, dtype=torch.bfloat16)
    loss = pefd(a, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pefd(a.float(), t.float()))


def test_no_gradient_reaches_the_teacher():
    method, student, teacher, batch = case(3, 4, 5)
    method(student, teacher, batch).backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()


def test_teachers_without_classifier_and_equal_dimensions_without_projector():
    method, student, teacher, batch = case(3, 5, 5, projectors=0)
    assert not list(method.parameters())
    assert torch.equal(method(student, teacher, batch), pefd(student.embedding, teacher.embedding))


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"projected ones are \(2, 3\) and the teacher's \(2, 1\)"):
        pefd(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(RecipeError, match="pefd learns from a teacher, and there is none"):
        PEFD(Setting(FeatureSpec(5, 4)))
    method, student, _, batch = case(2, 3, 4)
    with pytest.raises(RecipeError, match="pefd learns from a teacher, and there is none"):
        method(student, None, batch)
    with pytest.raises(RecipeError, match="a projector is needed"):
        case(2, 3, 4, projectors=0)
