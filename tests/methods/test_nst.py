"""NST against RepDistiller's numbers, a naive second writing with maps of many shapes, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.nst import NST, nst
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Batch, then channels, height and width of the student's map and of the teacher's.
SHAPES = [
    (2, (3, 4, 6), (5, 4, 6)),  # narrower, not square
    (2, (5, 4, 6), (3, 2, 3)),  # wider and larger
    (3, (4, 2, 3), (4, 6, 6)),  # smaller
    (2, (4, 4, 3), (2, 2, 6)),  # taller, but not as broad
    (2, (9, 2, 2), (12, 2, 2)),  # more channels than positions
    (1, (2, 1, 1), (3, 1, 1)),
]
FORMS = pytest.mark.parametrize("channels", [3, 24])  # of 3 x 3 positions: by channels, and by positions


def averaged(x: list, height: int, width: int) -> list[float]:
    """One channel averaged in equal boxes, flattened."""
    h, w = len(x) // height, len(x[0]) // width
    return [
        sum(x[h * i + a][w * j + b] for a in range(h) for b in range(w)) / (h * w)
        for i in range(height)
        for j in range(width)
    ]


def unit(v: list[float]) -> list[float]:
    length = math.sqrt(sum(a * a for a in v))
    return [a / length for a in v]


def kernel(one: list[list[float]], other: list[list[float]]) -> float:
    products = [sum(a * b for a, b in zip(x, y, strict=True)) for x in one for y in other]
    return sum(product**2 for product in products) / len(products)


def naive_nst(student: Tensor, teacher: Tensor) -> float:
    """Image by image, the three means of the kernel over all pairs of channels."""
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total = 0.0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = ([unit(averaged(channel, height, width)) for channel in image] for image in (one, other))
        total += kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    return total / len(student)


def maps_of(b: int, *shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(b, *shape, dtype=dtype) for shape in shapes)


def setting(student: int, teacher: int) -> Setting:
    specs = [
        FeatureSpec(5, 8, tuple(MapSpec(f"layer{i}", 4, 2**i) for i in range(count))) for count in (student, teacher)
    ]
    return Setting(*specs)


def features(maps: tuple[Tensor, ...]) -> Features:
    b = len(maps[0])
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), maps)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_repdistillers_numbers(golden, dtype: torch.dtype):
    case = golden("nst", dtype)
    student, teacher = ([case.inputs[f"{one}.map{i}"] for i in range(2)] for one in ("student", "teacher"))
    stem = torch.zeros(len(student[0]), 3, 8, 8, dtype=dtype)
    for m in student:
        m.requires_grad_()
    loss = NST(setting(3, 3))(features((stem, *student)), features((stem, *teacher)), batch_of(len(stem)))
    total = case.case["hyperparameters"]["beta"] * loss
    total.backward()
    case.check("out.loss.nst", loss)
    case.check("out.loss.total", total)
    for i in range(2):
        case.check(f"out.loss.nst{i}", nst([student[i]], [teacher[i]]))
        case.check(f"out.grad.student.map{i}", student[i].grad)
    assert case.all_compared()


@pytest.mark.parametrize(("b", "s", "t"), SHAPES)
def test_agrees_with_a_naive_writing(b: int, s: tuple, t: tuple):
    torch.manual_seed(b + s[0])
    student, teacher = maps_of(b, s, t)
    assert nst([student], [teacher]).item() == pytest.approx(naive_nst(student, teacher), rel=1e-9, abs=1e-15)


def test_the_method_sums_over_the_pairs():
    torch.manual_seed(0)
    shapes = [(4, 8, 8), (4, 8, 8), (4, 4, 4), (4, 2, 2)]
    student, teacher = maps_of(2, *shapes[:3]), maps_of(2, *shapes)
    method = NST(setting(3, 4), layers=((0, 0), (2, 3)))
    expected = [naive_nst(student[s], teacher[t]) for s, t in [(0, 0), (2, 3)]]
    assert method(features(student), features(teacher), batch_of(2)).item() == pytest.approx(sum(expected), rel=1e-9)
    assert NST(setting(4, 4)).pairs == [(1, 1), (2, 2), (3, 3)]
    assert not list(method.parameters())


@FORMS
def test_gradients_are_those_of_finite_differences(channels: int):
    torch.manual_seed(0)
    student, teacher = maps_of(2, (channels, 3, 3), (2, 3, 3))
    assert torch.autograd.gradcheck(lambda s: nst([s], [teacher]), student.requires_grad_())


@FORMS
def test_what_the_loss_does_not_see(channels: int):
    torch.manual_seed(0)
    student, teacher = maps_of(2, (channels, 3, 3), (channels + 1, 3, 3))
    loss = nst([student], [teacher])
    assert loss.item() > 0.001
    factors = torch.rand(2, channels, 1, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(nst([student * factors], [-teacher]), loss)
    torch.testing.assert_close(nst([student.flip(1)], [teacher]), loss)
    torch.testing.assert_close(nst([student], [teacher.repeat(1, 2, 1, 1)]), loss)
    torch.testing.assert_close(nst([teacher], [student]), loss)
    assert nst([student], [student]).item() == pytest.approx(0, abs=1e-12)


@FORMS
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one channel"])
def test_zero_maps_give_numbers(zero: str, channels: int):
    student, teacher = maps_of(2, (channels, 3, 3), (2, 3, 3), dtype=torch.float32)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    if zero == "one channel":
        student[:, 0] = 0
    student.requires_grad_()
    loss = nst([student], [teacher])
    loss.backward()
    assert student.grad.isfinite().all()
    if zero in ("student", "both"):
        assert not student.grad.any()
        own = [[unit(c) for c in image] for image in teacher.flatten(2).tolist()] if zero == "student" else []
        assert loss.item() == pytest.approx(sum(kernel(t, t) for t in own) / 2, rel=1e-5)
    else:
        assert student.grad[:, 1:].any()
        assert student.grad[:, 0].any() == (zero == "teacher")


def test_half_precision_maps_are_computed_in_full():
    student, teacher = (m.bfloat16() for m in maps_of(2, (3, 4, 4), (5, 2, 2)))
    loss = nst([student], [teacher])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nst([student.float()], [teacher.float()]))


def test_no_gradient_reaches_the_teacher():
    student, teacher = ([m.requires_grad_() for m in maps_of(2, (4, 8, 8), (4, 8, 8))] for _ in range(2))
    NST(setting(2, 2))(features(tuple(student)), features(tuple(teacher)), batch_of(2)).backward()
    assert [m.grad for m in teacher] == [None, None]
    assert student[1].grad.any()


def test_in_one_graph():
    torch.manual_seed(0)
    method = NST(setting(3, 3))
    student = maps_of(2, (2, 8, 6), (3, 8, 6), (24, 2, 3), dtype=torch.float32)
    teacher = maps_of(2, (2, 8, 6), (5, 4, 3), (16, 4, 6), dtype=torch.float32)

    def loss(s: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Tensor:
        return method(features(s), features(t), batch_of(2))

    inputs = [tuple(m.clone().requires_grad_() for m in student) for _ in range(2)]
    eager = loss(inputs[0], teacher)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], teacher)
    eager.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    for one, other in zip(inputs[0][1:], inputs[1][1:], strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    torch._dynamo.reset()


def test_what_is_refused():
    one = torch.ones(1, 2, 3, 3)
    for student, teacher in ([[one], [one, one]], [[], []]):
        with pytest.raises(NetworkError, match=r"nst compares layer by layer, but the student has \d maps"):
            nst(student, teacher)
    with pytest.raises(NetworkError, match=r"nst compares the ends of the stages one by one.*2 maps.*3 maps"):
        NST(setting(2, 3))
    with pytest.raises(NetworkError, match="student has no maps"):
        NST(setting(0, 0))
    with pytest.raises(RecipeError, match=r"layers of nst has the pair \[2, 0\]"):
        NST(setting(2, 2), layers=((2, 0),))
    with pytest.raises(RecipeError, match="nst learns from a teacher, and there is none"):
        NST(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="nst learns from a teacher, and there is none"):
        NST(setting(2, 2))(features((one, one)), None, batch_of(1))
