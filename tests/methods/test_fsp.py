"""FSP against RepDistiller's numbers, a naive second writing with maps of many shapes, and at its edges."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.fsp import FSP, flow, fsp
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Batch, then of each layer channels, and height and width in the student and in the teacher.
SHAPES = [
    (2, [(3, (4, 6), (4, 6)), (5, (2, 3), (2, 3))]),  # wider after, not square
    (3, [(5, (4, 4), (8, 8)), (2, (4, 4), (4, 4)), (4, (2, 2), (2, 2))]),  # narrower after, and other sizes
    (2, [(2, (2, 3), (2, 6)), (3, (4, 3), (2, 3))]),  # larger after
    (1, [(2, (1, 1), (1, 1)), (3, (1, 1), (1, 1))]),
]
VARIANTS = pytest.mark.parametrize("variant", ["code", "paper"])


def averaged(x: list, height: int, width: int) -> list[float]:
    """One channel averaged in equal boxes, flattened."""
    h, w = len(x) // height, len(x[0]) // width
    return [
        sum(x[h * i + a][w * j + b] for a in range(h) for b in range(w)) / (h * w)
        for i in range(height)
        for j in range(width)
    ]


def naive_flow(bottom: list, top: list) -> list[list[float]]:
    """The matrix of one image."""
    height, width = min(len(bottom[0]), len(top[0])), min(len(bottom[0][0]), len(top[0][0]))
    below, above = ([averaged(channel, height, width) for channel in layer] for layer in (bottom, top))
    return [[sum(p * q for p, q in zip(a, b, strict=True)) / (height * width) for b in below] for a in above]


def naive_fsp(student: list[Tensor], teacher: list[Tensor], variant: str) -> float:
    total, b = 0.0, len(student[0])
    for (s0, s1), (t0, t1) in zip(pairwise(student), pairwise(teacher), strict=True):
        for i in range(b):
            ours, theirs = naive_flow(s0[i].tolist(), s1[i].tolist()), naive_flow(t0[i].tolist(), t1[i].tolist())
            squares = sum((p - q) ** 2 for x, y in zip(ours, theirs, strict=True) for p, q in zip(x, y, strict=True))
            total += squares / b / (len(ours) * len(ours[0]) if variant == "code" else 1)
    return total


def maps_of(b: int, *shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(b, *shape, dtype=dtype) for shape in shapes)


def setting(student: list[int], teacher: list[int]) -> Setting:
    specs = [
        FeatureSpec(5, 8, tuple(MapSpec(f"layer{i}", channels, 2**i) for i, channels in enumerate(network)))
        for network in (student, teacher)
    ]
    return Setting(*specs)


def features(maps: tuple[Tensor, ...]) -> Features:
    b = len(maps[0])
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), maps)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_repdistillers_numbers(golden, dtype: torch.dtype):
    case = golden("fsp", dtype)
    student, teacher = (tuple(case.inputs[f"{one}.map{i}"] for i in range(3)) for one in ("student", "teacher"))
    for m in student:
        m.requires_grad_()
    channels = [m.shape[1] for m in student]
    loss = FSP(setting(channels, channels))(features(student), features(teacher), batch_of(len(student[0])))
    loss.backward()
    case.check("out.loss.total", loss)
    for i in range(2):
        case.check(f"out.loss.fsp{i}", fsp(student[i : i + 2], teacher[i : i + 2]))
    for i in range(3):
        case.check(f"out.grad.student.map{i}", student[i].grad)
    assert case.all_compared()


@VARIANTS
@pytest.mark.parametrize(("b", "layers"), SHAPES)
def test_agrees_with_a_naive_writing(b: int, layers: list, variant: str):
    torch.manual_seed(b)
    student = list(maps_of(b, *((channels, *size) for channels, size, _ in layers)))
    teacher = list(maps_of(b, *((channels, *size) for channels, _, size in layers)))
    assert fsp(student, teacher, variant).item() == pytest.approx(naive_fsp(student, teacher, variant), rel=1e-9)


def test_the_flow_has_the_deeper_layers_channels_first():
    bottom, top = maps_of(2, (3, 4, 4), (5, 2, 2))
    matrix = flow(bottom, top)
    assert matrix.shape == (2, 5, 3)
    torch.testing.assert_close(matrix[1], torch.tensor(naive_flow(bottom[1].tolist(), top[1].tolist())).double())


@VARIANTS
def test_the_method_takes_the_named_maps_or_all(variant: str):
    torch.manual_seed(0)
    student = maps_of(2, (2, 8, 8), (3, 8, 8), (4, 4, 4))
    teacher = maps_of(2, (2, 8, 8), (9, 8, 8), (3, 4, 4), (4, 2, 2))
    method = FSP(setting([2, 3, 4], [2, 9, 3, 4]), layers=((0, 0), (1, 2), (2, 3)), variant=variant)
    expected = naive_fsp(list(student), [teacher[k] for k in (0, 2, 3)], variant)
    assert method(features(student), features(teacher), batch_of(2)).item() == pytest.approx(expected, rel=1e-9)
    assert FSP(setting([2, 3, 4], [2, 3, 4])).pairs == [(0, 0), (1, 1), (2, 2)]
    assert not list(method.parameters())


@VARIANTS
def test_gradients_are_those_of_finite_differences(variant: str):
    torch.manual_seed(0)
    student, teacher = (maps_of(2, (2, 4, 2), (3, 2, 2)) for _ in range(2))
    inputs = tuple(m.requires_grad_() for m in student)
    assert torch.autograd.gradcheck(lambda *s: fsp(s, teacher, variant), inputs)


@VARIANTS
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_maps_give_numbers(zero: str, variant: str):
    student, teacher = ([torch.ones(2, 2, 4, 4), torch.ones(2, 3, 2, 2)] for _ in range(2))
    for network in ("student", "teacher"):
        if zero in (network, "both"):
            (student if network == "student" else teacher)[0].zero_()
    for m in student:
        m.requires_grad_()
    loss = fsp(student, teacher, variant)
    loss.backward()
    entries = 1.0 if variant == "code" else 6.0
    assert loss.item() == pytest.approx(0.0 if zero == "both" else entries)
    assert all(m.grad.isfinite().all() for m in student)


def test_half_precision_maps_are_computed_in_full():
    student, teacher = ([m.bfloat16() for m in maps_of(2, (3, 4, 4), (5, 2, 2))] for _ in range(2))
    loss = fsp(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, fsp([m.float() for m in student], [m.float() for m in teacher]))


def test_no_gradient_reaches_the_teacher():
    student, teacher = ([m.requires_grad_() for m in maps_of(2, (2, 8, 8), (3, 4, 4))] for _ in range(2))
    FSP(setting([2, 3], [2, 3]))(features(tuple(student)), features(tuple(teacher)), batch_of(2)).backward()
    assert [m.grad for m in teacher] == [None, None]
    assert all(m.grad.any() for m in student)


@VARIANTS
def test_in_one_graph(variant: str):
    torch.manual_seed(0)
    method = FSP(setting([2, 3, 4], [2, 3, 4]), variant=variant)
    student = maps_of(2, (2, 8, 6), (3, 8, 6), (4, 4, 3), dtype=torch.float32)
    teacher = maps_of(2, (2, 8, 6), (3, 4, 3), (4, 4, 3), dtype=torch.float32)

    def loss(s: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Tensor:
        return method(features(s), features(t), batch_of(2))

    inputs = [tuple(m.clone().requires_grad_() for m in student) for _ in range(2)]
    eager = loss(inputs[0], teacher)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], teacher)
    eager.backward()
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    for one, other in zip(*inputs, strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    torch._dynamo.reset()


def test_what_is_refused():
    one = torch.ones(1, 2, 3, 3)
    for student, teacher in ([[one, one], [one, one, one]], [[one], [one]], [[], []]):
        with pytest.raises(
            NetworkError, match=r"fsp compares the flow from layer to layer, but the student has \d maps"
        ):
            fsp(student, teacher)
    with pytest.raises(NetworkError, match=r"fsp compares flow matrices of one shape.*\(1, 2, 2\).*\(1, 1, 2\)"):
        fsp([one, one], [one, one[:, :1]])
    for networks in ([[2, 3], [2, 3, 4]], [[2], [2]], [[], []]):
        with pytest.raises(NetworkError, match=r"flow from each map to the next, but the student has \d maps"):
            FSP(setting(*networks))
    with pytest.raises(
        NetworkError, match=r"student's layer1 has 3 and the teacher's layer1 4\. Take networks of equal"
    ):
        FSP(setting([2, 3], [2, 4]))
    with pytest.raises(RecipeError, match=r"layers of fsp has the pair \[2, 0\]"):
        FSP(setting([2, 3], [2, 3]), layers=((2, 0), (1, 1)))
    with pytest.raises(RecipeError, match="layers of fsp names one pair"):
        FSP(setting([2, 3], [2, 3]), layers=((1, 1),))
    with pytest.raises(RecipeError, match="fsp learns from a teacher, and there is none"):
        FSP(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="fsp learns from a teacher, and there is none"):
        FSP(setting([2, 2], [2, 2]))(features((one, one)), None, batch_of(1))
