"""DKD against the authors' numbers, a naive second writing, KD itself, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.dkd import DKD, dkd
from potstill.methods.kd import kd
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 2), (1, 5), (7, 100)]  # batch, classes


def softmax(row: list[float]) -> list[float]:
    highest = max(row)
    powers = [math.exp(z - highest) for z in row]
    return [p / sum(powers) for p in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def naive_dkd(student: Tensor, teacher: Tensor, labels: list[int], alpha: float, beta: float, t: float) -> float:
    """The two distributions of two, and the two of the other classes, with lists and loops."""
    total = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        two, others = [], []
        for z in (z_s, z_t):
            p = softmax([x / t for x in z])
            two.append([p[y], sum(p[:y] + p[y + 1 :])])
            others.append(softmax([x / t for x in z[:y] + z[y + 1 :]]))
        total += alpha * divergence(two[1], two[0]) + beta * divergence(others[1], others[0])
    return t * t * total / len(labels)


def random_case(b: int, c: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(b + c)
    s, t = (3 * torch.randn(b, c, generator=generator, dtype=dtype) for _ in range(2))
    return s, t, torch.randint(c, (b,), generator=generator)


def batch_of(targets: Tensor | None, b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), targets, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def setting(student: int = 5, teacher: int = 5) -> Setting:
    return Setting(FeatureSpec(student, 4), FeatureSpec(teacher, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["dkd", "dkd_b"])
def test_the_authors_numbers(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    stored = case.case["hyperparameters"]
    given = stored.get("public", stored)
    hyper = {"alpha": given["alpha"], "beta": given["beta"], "temperature": given["T"]}
    s, t, labels = (case.inputs[key] for key in ("student.logits", "teacher.logits", "labels"))
    s.requires_grad_()
    b, c = s.shape
    terms = {"ce": 1.0, "dkd": {"weight": 1.0, "warmup": stored["warmup_epochs"], **hyper}}
    objective = Objective(setting(c, c), terms)
    objective.start_epoch(stored["epoch"])
    embedding = torch.zeros(b, 4, dtype=dtype)
    losses = objective(Features(s, embedding), Features(t, embedding), batch_of(labels, b))
    losses["total"].backward(retain_graph=True)
    case.check("out.grad.student.logits", s.grad)
    case.check("out.grad_dkd.student.logits", torch.autograd.grad(losses["dkd"], s)[0])
    for term in ("ce", "dkd", "total"):
        case.check(f"out.loss.{term}", losses[term])
    for epoch in (0, 5):
        objective.start_epoch(epoch)
        case.check(f"out.loss.dkd_weighted_epoch{epoch}", objective.weight_now("dkd") * losses["dkd"])
    case.check("out.loss.tckd", dkd(s, t, labels, 1, 0, hyper["temperature"]))
    case.check("out.loss.nckd", dkd(s, t, labels, 0, 1, hyper["temperature"]))
    assert case.all_compared()


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (0.5, 2, 1), (0, 1, 20), (1, 0, 0.5)])
@pytest.mark.parametrize(("b", "c"), SIZES)
def test_agrees_with_a_naive_writing(b: int, c: int, alpha: float, beta: float, temperature: float):
    s, t, labels = random_case(b, c)
    expected = naive_dkd(s, t, labels.tolist(), alpha, beta, temperature)
    assert dkd(s, t, labels, alpha, beta, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradients_are_those_of_finite_differences():
    s, t, labels = random_case(4, 6)
    assert torch.autograd.gradcheck(lambda x: dkd(x, t, labels), s.requires_grad_())


def test_kd_is_the_two_parts_with_the_weights_that_it_couples():
    s, t, labels = random_case(1, 9)
    doubt = 1 - (t / 4).softmax(-1)[0, labels[0]]
    torch.testing.assert_close(dkd(s, t, labels, alpha=1.0, beta=doubt.item()), kd(s, t, 4.0))


def test_what_the_loss_does_not_see():
    s, t, labels = random_case(6, 8)
    loss = dkd(s, t, labels)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(dkd(s + 7, t - 7, labels), loss)
    torch.testing.assert_close(dkd(s[order], t[order], labels[order]), loss)
    assert dkd(t, t, labels).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("gap", [600.0, 1e5])
def test_very_large_logits_stay_numbers(gap: float):
    """The published code has infinite values here in float32, and not-a-number gradients."""
    s = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    loss = dkd(s, torch.tensor([[0.0, gap, 0.0]]), torch.tensor([0]), alpha=1.0, beta=2.0, temperature=4.0)
    loss.backward()
    # The student is sure of the label and the teacher of class 1; of the others the student knows nothing.
    assert loss.item() == pytest.approx(16 * (gap / 4 - math.log(2)) + 2 * 16 * math.log(2), rel=1e-6)
    torch.testing.assert_close(s.grad, torch.tensor([[4.0, -2.0 - 4.0, -2.0 + 4.0]]))


def test_zero_logits_give_numbers():
    s = torch.zeros(3, 4, requires_grad=True)
    loss = dkd(s, torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(s.grad, torch.zeros(3, 4), rtol=0, atol=1e-6)


def test_two_classes_have_no_others():
    s, t, labels = random_case(4, 2)
    assert dkd(s, t, labels, alpha=0.0).item() == 0
    torch.testing.assert_close(dkd(s, t, labels), kd(s, t))


def test_half_precision_logits_are_computed_in_full():
    s, t, labels = random_case(4, 100, torch.float32)
    loss = dkd(s.half(), t.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dkd(s.half().float(), t.bfloat16().float(), labels))


def test_no_gradient_reaches_the_teacher():
    s, t, labels = random_case(3, 5)
    dkd(s.requires_grad_(), t.requires_grad_(), labels).backward()
    assert t.grad is None
    assert s.grad.any()


def test_in_one_graph():
    s, t, labels = random_case(6, 10, torch.float32)
    method = DKD(setting(10, 10), beta=2.0)

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        embedding = torch.zeros(6, 4)
        return method(Features(s, embedding), Features(t, embedding), batch_of(y, 6))

    inputs = [s.clone().requires_grad_() for _ in range(2)]
    eager = loss(inputs[0], t, labels)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], t, labels)
    eager.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch._dynamo.reset()


def test_what_is_refused():
    s, t, labels = random_case(3, 5)
    with pytest.raises(NetworkError, match=r"dkd compares logits of one shape, but the student's are \(3, 5\)"):
        dkd(s, t[:, :4], labels)
    with pytest.raises(NetworkError, match="there is 1 class"):
        dkd(s[:, :1], t[:, :1], labels)
    with pytest.raises(RecipeError, match=r"targets are \(3, 5\) of torch.float64: mixup and CutMix"):
        dkd(s, t, t.softmax(-1))
    with pytest.raises(NetworkError, match="student has 10 classes and the teacher 5"):
        DKD(setting(10, 5))
    with pytest.raises(NetworkError, match="both networks have 1 class"):
        DKD(setting(1, 1))
    with pytest.raises(RecipeError, match="dkd learns from a teacher, and there is none"):
        DKD(Setting(FeatureSpec(5, 4)))
    for name, wrong in (("alpha", -1.0), ("beta", float("nan")), ("temperature", 0.0), ("temperature", float("inf"))):
        with pytest.raises(RecipeError, match=f"{name} of dkd is {wrong}; expected a"):
            DKD(setting(), **{name: wrong})
    with pytest.raises(RecipeError, match="alpha and beta of dkd are both 0"):
        DKD(setting(), alpha=0.0, beta=0.0)
    features = Features(s, torch.zeros(3, 4))
    with pytest.raises(RecipeError, match="dkd needs labels, and these images have none"):
        DKD(setting())(features, features, batch_of(None, 3))
    with pytest.raises(RecipeError, match="dkd learns from a teacher, and there is none"):
        DKD(setting())(features, None, batch_of(labels, 3))
