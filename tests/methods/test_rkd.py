"""RKD's two losses against the published code's values, naive second writings, at their edges, and as a method."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.rkd import RKD, rkd, rkd_angle, rkd_distance
from potstill.networks.features import Features, FeatureSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = [(2, 4, 9), (2, 9, 4), (6, 5, 5), (1, 3, 5)]  # batch, student, teacher
LOSSES = pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, rkd])


def huber(u: float) -> float:
    return u * u / 2 if abs(u) < 1 else abs(u) - 0.5


def away(x: list[float], y: list[float]) -> list[float]:
    return [b - a for a, b in zip(x, y, strict=True)]


def length(x: list[float]) -> float:
    return math.sqrt(sum(v * v for v in x))


def naive_relative(rows: list[list[float]]) -> list[list[float]]:
    distances = [[length(away(x, y)) for y in rows] for x in rows]
    positive = [d for row in distances for d in row if d > 0]
    mean = sum(positive) / len(positive) if positive else 1.0
    return [[d / mean for d in row] for row in distances]


def naive_distance(student: Tensor, teacher: Tensor) -> float:
    s, t, b = naive_relative(student.tolist()), naive_relative(teacher.tolist()), len(student)
    return sum(huber(s[i][j] - t[i][j]) for i in range(b) for j in range(b)) / b**2


def naive_cosine(rows: list[list[float]], i: int, j: int, k: int) -> float:
    if i in (j, k):
        return 0.0
    x, y = away(rows[i], rows[j]), away(rows[i], rows[k])
    return sum(a * b for a, b in zip(x, y, strict=True)) / (length(x) * length(y))


def naive_angle(student: Tensor, teacher: Tensor) -> float:
    s, t, b = student.tolist(), teacher.tolist(), len(student)
    triplets = [(i, j, k) for i in range(b) for j in range(b) for k in range(b)]
    return sum(huber(naive_cosine(s, *ijk) - naive_cosine(t, *ijk)) for ijk in triplets) / b**3


def pair(b: int, d: int, m: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(b + d)
    return torch.randn(b, d, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)


def features(embedding: Tensor) -> Features:
    return Features(torch.zeros(len(embedding), 5), embedding)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def setting(d: int, m: int, batch_size: int = 0) -> Setting:
    return Setting(FeatureSpec(5, d), FeatureSpec(0, m), batch_size=batch_size)


@DTYPES
@pytest.mark.parametrize("name", ["rkd", "rkd_distance", "rkd_angle"])
def test_agrees_with_the_published_code(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    student, teacher = case.inputs["student.embedding"].requires_grad_(), case.inputs["teacher.embedding"]
    weights = case.case["hyperparameters"]
    distance, angle = float(weights["w_distance"]), float(weights["w_angle"])
    method = RKD(setting(student.shape[1], teacher.shape[1]), distance=distance, angle=angle)
    total = method(features(student), features(teacher), batch_of(len(student)))
    total.backward()
    case.check("out.loss.total", total)
    case.check("out.grad.student.embedding", student.grad)
    if distance:
        case.check("out.loss.rkd_distance", rkd_distance(student, teacher))
    if angle:
        case.check("out.loss.rkd_angle", rkd_angle(student, teacher))
    assert case.all_compared()


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    s, t = pair(b, d, m)
    distance, angle = naive_distance(s, t), naive_angle(s, t)
    assert rkd_distance(s, t).item() == pytest.approx(distance, rel=1e-12, abs=1e-30)
    assert rkd_angle(s, t).item() == pytest.approx(angle, rel=1e-12, abs=1e-30)
    found = RKD(setting(d, m), distance=2.0, angle=3.0)(features(s), features(t), batch_of(b))
    assert found.item() == pytest.approx(2 * distance + 3 * angle, rel=1e-12, abs=1e-30)


def test_far_apart_relations_are_beyond_the_square():
    s, t = (
        torch.tensor([[0.0], [1e-3], [2e-3], [10.0]]).double(),
        torch.tensor([[0.0], [10.0], [-10.0], [1.0]]).double(),
    )
    assert (torch.tensor(naive_relative(s.tolist())) - torch.tensor(naive_relative(t.tolist()))).abs().max() > 1
    assert rkd_distance(s, t).item() == pytest.approx(naive_distance(s, t), rel=1e-12)
    assert rkd_angle(s, t).item() == pytest.approx(naive_angle(s, t), rel=1e-9)


@LOSSES
def test_gradients_are_those_of_finite_differences(loss):
    s, t = pair(4, 3, 5)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_())


@LOSSES
def test_what_the_loss_does_not_see(loss):
    s, t = pair(6, 4, 7)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    order = torch.randperm(6)
    torch.testing.assert_close(loss(s[order], t[order]), loss(s, t))
    torch.testing.assert_close(loss(5 * s @ rotation + 3, 0.2 * t - 1), loss(s, t))
    assert loss(3 * t, t).item() == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@LOSSES
def test_equal_embeddings_take_no_gradient_from_each_other(loss, dtype: torch.dtype):
    s, t = (x.to(dtype) for x in pair(5, 4, 6))
    s[1] = s[0]
    t[3] = t[2]
    s.requires_grad_()
    value = loss(s, t)
    value.backward()
    assert value.isfinite()
    assert s.grad.abs().max() < 100  # in the published code 1e12


def test_an_equal_pair_has_distance_zero_and_counts_in_the_mean():
    s = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64)
    t = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    # the student's distances 0, 3, 3 of mean 2; the teacher's 1, 2, 1 of mean 4/3
    expected = 2 * (huber(0 - 0.75) + huber(1.5 - 1.5) + huber(1.5 - 0.75)) / 9
    assert rkd_distance(s, t).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
@LOSSES
def test_zero_embeddings_give_numbers(loss, zero: str):
    s, t = (x.float() for x in pair(4, 3, 5))
    s = s * (zero == "teacher")
    t = t * (zero == "student")
    s.requires_grad_()
    value = loss(s, t)
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()
    assert (value.item() == 0) == (zero == "both")


@LOSSES
def test_half_precision_is_computed_in_full(loss):
    s, t = torch.randn(4, 16).bfloat16(), torch.randn(4, 12).half()
    assert loss(s, t).dtype == torch.float32
    assert torch.equal(loss(s, t), loss(s.float(), t.float()))


@LOSSES
def test_no_gradient_reaches_the_teacher(loss):
    s, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    loss(s, t).backward()
    assert t.grad is None
    assert s.grad.any()


@LOSSES
def test_in_one_graph(loss):
    torch._dynamo.reset()
    s, t = torch.randn(5, 6), torch.randn(5, 4)
    s[1] = s[0]
    s.requires_grad_()
    eager = loss(s, t)
    (expected,) = torch.autograd.grad(eager, s)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t)
    (found,) = torch.autograd.grad(compiled, s)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"distance": -1.0}, "distance is -1.0; expected a weight of 0 or more"),
        ({"angle": math.inf}, "angle is inf; expected a weight of 0 or more"),
        ({"distance": 0.0, "angle": 0.0}, "distance and angle are both 0, which does nothing"),
    ],
)
def test_weights_that_are_refused(hyper: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        RKD(setting(3, 4), **hyper)


def test_what_is_refused():
    for loss in (rkd, rkd_distance, rkd_angle):
        with pytest.raises(NetworkError, match="there are 2 of the student and 3 of the teacher"):
            loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(RecipeError, match="rkd learns from a teacher, and there is none"):
        RKD(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="a process's part of a batch is 1 image"):
        RKD(setting(3, 4, batch_size=1))
    with pytest.raises(RecipeError, match="rkd learns from a teacher, and there is none"):
        RKD(setting(3, 4))(features(torch.ones(2, 3)), None, batch_of(2))
