"""DIST against the authors' numbers, a naive second writing, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.dist import DIST, dist
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 2), (3, 5), (7, 100)]  # batch, classes


def softmax(row: list[float]) -> list[float]:
    highest = max(row)
    powers = [math.exp(z - highest) for z in row]
    return [p / sum(powers) for p in powers]


def pearson(x: list[float], y: list[float], eps: float) -> float:
    x, y = [a - sum(x) / len(x) for a in x], [b - sum(y) / len(y) for b in y]
    norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / (norms + eps)


def naive_dist(student: Tensor, teacher: Tensor, beta: float, gamma: float, tau: float, eps: float = 1e-8) -> float:
    """Rows and columns one by one, with lists and loops."""
    p_s, p_t = ([softmax([x / tau for x in z]) for z in logits.tolist()] for logits in (student, teacher))
    b, c = len(p_s), len(p_s[0])
    rows = sum(pearson(p_s[i], p_t[i], eps) for i in range(b)) / b
    columns = sum(pearson([p[k] for p in p_s], [p[k] for p in p_t], eps) for k in range(c)) / c
    return tau * tau * (beta * (1 - rows) + gamma * (1 - columns))


def random_case(b: int, c: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(b + c)
    s, t = (3 * torch.randn(b, c, generator=generator, dtype=dtype) for _ in range(2))
    return s, t


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def setting(student: int = 5, teacher: int = 5, **known) -> Setting:
    return Setting(FeatureSpec(student, 4), FeatureSpec(teacher, 6), **known)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["dist", "dist_tau4"])
def test_the_authors_numbers(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    hyper = case.case["hyperparameters"]
    s, t = case.inputs["student.logits"].requires_grad_(), case.inputs["teacher.logits"]
    b, c = s.shape
    method = DIST(setting(c, c), beta=hyper["beta"], gamma=hyper["gamma"], temperature=hyper["tau"])
    embedding = torch.zeros(b, 4, dtype=dtype)
    loss = method(Features(s, embedding), Features(t, embedding), batch_of(b))
    total = hyper["kd_loss_weight"] * loss
    total.backward()
    case.check("out.loss.dist", loss)
    case.check("out.loss.total", total)
    case.check("out.grad.student.logits", s.grad)
    case.check("out.loss.inter", dist(s, t, 1, 0, hyper["tau"]))
    case.check("out.loss.intra", dist(s, t, 0, 1, hyper["tau"]))
    assert case.all_compared()


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1, 1, 4), (1, 1, 1), (2, 0, 20), (0, 0.5, 0.5)])
@pytest.mark.parametrize(("b", "c"), SIZES)
def test_agrees_with_a_naive_writing(b: int, c: int, beta: float, gamma: float, temperature: float):
    s, t = random_case(b, c)
    expected = naive_dist(s, t, beta, gamma, temperature)
    assert dist(s, t, beta, gamma, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradients_are_those_of_finite_differences():
    s, t = random_case(4, 6)
    assert torch.autograd.gradcheck(lambda x: dist(x, t), s.requires_grad_())


def test_a_class_that_the_student_hardly_expects_is_no_constant():
    """Its column is some 1e-6 long and the teacher's about 1: as in the published code it counts all the same."""
    s, t = random_case(6, 4, torch.float32)
    s[:, 2] -= 16
    assert dist(s, t, 0.0, 1.0, 1.0).item() == pytest.approx(naive_dist(s, t, 0, 1, 1), rel=1e-5)
    without = naive_dist(s, t, 0, 1, 1, eps=1e3 * 1e-8)  # what a coarser eps would make of it
    assert abs(without - naive_dist(s, t, 0, 1, 1)) > 1e-3


def test_the_ends_of_the_range_and_what_the_loss_does_not_see():
    s, t = random_case(6, 8)
    loss = dist(s, t)
    assert 0 < loss.item() < 2 * 16 * 2
    assert dist(t, t).item() == pytest.approx(0, abs=1e-4)  # not 0: eps in the denominator
    torch.testing.assert_close(dist(s + 7, t - 7), loss)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(dist(s[order], t[order]), loss)
    classes = torch.tensor([7, 3, 1, 5, 0, 2, 4, 6])
    torch.testing.assert_close(dist(s[:, classes], t[:, classes]), loss)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_logits_give_numbers(classes: int, zero: str):
    """A classifier that starts at zero; its mean differs from 1 / C by rounding, which is no direction to learn."""
    s, t = random_case(4, classes, torch.float32)
    if zero in ("student", "both"):
        s.zero_()
    if zero in ("teacher", "both"):
        t.zero_()
    s.requires_grad_()
    loss = dist(s, t, temperature=1.0)
    loss.backward()
    assert loss.item() == 2
    assert not s.grad.any()


def test_one_constant_row_leaves_the_others_alone():
    s, t = random_case(4, 6)
    s[1] = 0
    s.requires_grad_()
    loss = dist(s, t, gamma=0.0)
    loss.backward()
    others = [0, 2, 3]
    torch.testing.assert_close(loss, (3 * dist(s[others], t[others], gamma=0.0) + 16) / 4)
    assert not s.grad[1].any()
    assert s.grad[others].any(1).all()


def test_a_batch_of_one_has_no_part_by_class():
    s, t = random_case(1, 6)
    s.requires_grad_()
    loss = dist(s, t, beta=0.0)
    loss.backward()
    assert loss.item() == 16
    assert not s.grad.any()


def test_very_large_logits_stay_numbers():
    s = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4]], requires_grad=True)
    loss = dist(s, torch.tensor([[-1e4, 1e4, 0.0], [0.0, 1e4, -1e4]]), temperature=1.0)
    loss.backward()
    # By image -1/2 and 1. By class: the student's 1, 0 and 0, 1 and 0, 0 beside the teacher's 0, 0 and 1, 1 and 0, 0.
    assert loss.item() == pytest.approx(1 - 0.25 + 1)
    assert s.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_full():
    s, t = (z.bfloat16() for z in random_case(4, 100, torch.float32))
    loss = dist(s, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dist(s.float(), t.float()))


def test_no_gradient_reaches_the_teacher():
    s, t = random_case(3, 5)
    dist(s.requires_grad_(), t.requires_grad_()).backward()
    assert t.grad is None
    assert s.grad.any()


def test_in_one_graph():
    s, t = random_case(6, 10, torch.float32)
    method = DIST(setting(10, 10))

    def loss(s: Tensor, t: Tensor) -> Tensor:
        embedding = torch.zeros(6, 4)
        return method(Features(s, embedding), Features(t, embedding), batch_of(6))

    inputs = [s.clone().requires_grad_() for _ in range(2)]
    eager = loss(inputs[0], t)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], t)
    eager.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch._dynamo.reset()


def test_what_is_refused():
    s, t = random_case(3, 5)
    with pytest.raises(NetworkError, match=r"dist compares logits of one shape, but the student's are \(3, 5\)"):
        dist(s, t[:, :4])
    with pytest.raises(NetworkError, match="student has 10 classes and the teacher 5"):
        DIST(setting(10, 5))
    with pytest.raises(RecipeError, match="dist learns from a teacher, and there is none"):
        DIST(Setting(FeatureSpec(5, 4)))
    for name, wrong in (("beta", -1.0), ("gamma", float("nan")), ("temperature", 0.0), ("temperature", float("inf"))):
        with pytest.raises(RecipeError, match=f"{name} of dist is {wrong}; expected a"):
            DIST(setting(), **{name: wrong})
    with pytest.raises(RecipeError, match="beta and gamma of dist are both 0"):
        DIST(setting(), beta=0.0, gamma=0.0)
    with pytest.raises(RecipeError, match="a batch has 1 image; take a batch_size of 2 or more, or gamma: 0"):
        DIST(setting(batch_size=1))
    assert DIST(setting(batch_size=1), gamma=0.0).gamma == 0
    features = Features(s, torch.zeros(3, 4))
    with pytest.raises(RecipeError, match="dist learns from a teacher, and there is none"):
        DIST(setting())(features, None, batch_of(3))
