"""AT against RepDistiller's numbers, a naive second writing with maps of many shapes, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.at import AT, at, attention
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Batch, then channels, height and width of the student's map and of the teacher's.
SHAPES = [
    (2, (3, 4, 6), (5, 4, 6)),  # narrower, not square
    (2, (5, 4, 6), (3, 2, 3)),  # wider and larger
    (3, (4, 2, 3), (4, 6, 6)),  # smaller
    (2, (4, 4, 3), (2, 2, 6)),  # taller, but not as broad
    (2, (3, 7, 5), (2, 4, 3)),  # no multiple of each other
    (1, (2, 1, 1), (3, 1, 1)),
]
VARIANTS = pytest.mark.parametrize("variant", ["code", "paper"])


def averaged(x: list, height: int, width: int) -> list:
    """One channel, each of the new positions the mean of those that it overlaps."""
    rows = [range(len(x) * i // height, -(-len(x) * (i + 1) // height)) for i in range(height)]
    columns = [range(len(x[0]) * j // width, -(-len(x[0]) * (j + 1) // width)) for j in range(width)]
    return [[sum(x[a][b] for a in r for b in c) / (len(r) * len(c)) for c in columns] for r in rows]


def naive_attention(image: list, p: float) -> list[float]:
    strength = [
        sum(abs(channel[i][j]) ** p for channel in image) / len(image)
        for i in range(len(image[0]))
        for j in range(len(image[0][0]))
    ]
    length = math.sqrt(sum(v * v for v in strength))
    return [v / length for v in strength]


def naive_at(student: Tensor, teacher: Tensor, p: float, variant: str) -> float:
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total = 0.0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        q_s, q_t = (naive_attention([averaged(c, height, width) for c in image], p) for image in (one, other))
        squares = sum((a - b) ** 2 for a, b in zip(q_s, q_t, strict=True))
        total += squares / (height * width) if variant == "code" else math.sqrt(squares)
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
    case = golden("at", dtype)
    student, teacher = ([case.inputs[f"{one}.map{i}"] for i in range(3)] for one in ("student", "teacher"))
    stem = torch.zeros(len(student[0]), 3, 8, 8, dtype=dtype)
    for m in student:
        m.requires_grad_()
    method = AT(setting(4, 4), p=case.case["hyperparameters"]["p"])
    loss = method(features((stem, *student)), features((stem, *teacher)), batch_of(len(stem)))
    total = case.case["hyperparameters"]["beta"] * loss
    total.backward()
    case.check("out.loss.at", loss)
    case.check("out.loss.total", total)
    for i in range(3):
        case.check(f"out.loss.at{i}", at([student[i]], [teacher[i]]))
        case.check(f"out.grad.student.map{i}", student[i].grad)
    assert case.all_compared()


@VARIANTS
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("b", "s", "t"), SHAPES)
def test_agrees_with_a_naive_writing(b: int, s: tuple, t: tuple, p: float, variant: str):
    torch.manual_seed(b + s[0])
    student, teacher = maps_of(b, s, t)
    expected = naive_at(student, teacher, p, variant)
    assert at([student], [teacher], p, variant).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@VARIANTS
def test_the_method_sums_over_the_pairs(variant: str):
    torch.manual_seed(0)
    shapes = [(4, 8, 8), (4, 8, 8), (4, 4, 4), (4, 2, 2)]
    student, teacher = maps_of(2, *shapes[:3]), maps_of(2, *shapes)
    method = AT(setting(3, 4), layers=((0, 0), (2, 3)), p=3, variant=variant)
    expected = [naive_at(student[s], teacher[t], 3, variant) for s, t in [(0, 0), (2, 3)]]
    assert method(features(student), features(teacher), batch_of(2)).item() == pytest.approx(sum(expected), rel=1e-9)
    assert AT(setting(4, 4)).pairs == [(1, 1), (2, 2), (3, 3)]
    assert not list(method.parameters())


@VARIANTS
def test_gradients_are_those_of_finite_differences(variant: str):
    torch.manual_seed(0)
    student, teacher = maps_of(2, (3, 4, 3), (2, 2, 3))
    assert torch.autograd.gradcheck(lambda s: at([s], [teacher], 2, variant), student.requires_grad_())


@VARIANTS
def test_the_scale_of_a_map_does_not_count(variant: str):
    student, teacher = maps_of(3, (3, 4, 4), (2, 4, 4))
    loss = at([student], [teacher], variant=variant)
    assert loss.item() > 0.01
    torch.testing.assert_close(at([1e-4 * student], [-50 * teacher], variant=variant), loss)
    assert at([student], [student.repeat(1, 2, 1, 1)], variant=variant).item() == pytest.approx(0, abs=1e-12)


@VARIANTS
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one image"])
def test_zero_maps_give_numbers(zero: str, p: float, variant: str):
    student, teacher = maps_of(2, (3, 2, 2), (2, 2, 2), dtype=torch.float32)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    if zero == "one image":
        student[0] = 0
    student.requires_grad_()
    loss = at([student], [teacher], p, variant)
    loss.backward()
    assert student.grad.isfinite().all()
    if zero == "both":
        assert loss.item() == 0
    elif zero != "one image":  # a unit vector remains of one of the two
        assert loss.item() == pytest.approx(0.25 if variant == "code" else 1.0)
    else:
        assert not student.grad[0].any()
        assert student.grad[1].any()


def test_half_precision_maps_are_computed_in_full():
    student, teacher = (m.bfloat16() for m in maps_of(2, (3, 4, 4), (5, 2, 2)))
    loss = at([student], [teacher])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, at([student.float()], [teacher.float()]))
    assert attention(student).dtype == torch.float32


def test_no_gradient_reaches_the_teacher():
    student, teacher = ([m.requires_grad_() for m in maps_of(2, (4, 8, 8), (4, 8, 8))] for _ in range(2))
    AT(setting(2, 2))(features(tuple(student)), features(tuple(teacher)), batch_of(2)).backward()
    assert [m.grad for m in teacher] == [None, None]
    assert student[1].grad.any()


@VARIANTS
def test_in_one_graph(variant: str):
    torch.manual_seed(0)
    method = AT(setting(3, 3), variant=variant)
    student = maps_of(2, (2, 8, 6), (3, 8, 6), (4, 4, 3), dtype=torch.float32)
    teacher = maps_of(2, (2, 8, 6), (5, 4, 3), (6, 8, 6), dtype=torch.float32)

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
        with pytest.raises(NetworkError, match=r"at compares layer by layer, but the student has \d maps"):
            at(student, teacher)
    with pytest.raises(NetworkError, match=r"at compares the ends of the stages one by one.*2 maps.*3 maps"):
        AT(setting(2, 3))
    with pytest.raises(NetworkError, match="student has no maps"):
        AT(setting(0, 0))
    with pytest.raises(RecipeError, match=r"layers of at has the pair \[2, 0\]"):
        AT(setting(2, 2), layers=((2, 0),))
    for wrong in (0.5, -1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"p of at is .*; expected a number of 1 or more"):
            AT(setting(2, 2), p=wrong)
    with pytest.raises(RecipeError, match="at learns from a teacher, and there is none"):
        AT(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="at learns from a teacher, and there is none"):
        AT(setting(2, 2))(features((one, one)), None, batch_of(1))
