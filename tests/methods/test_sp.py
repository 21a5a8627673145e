"""SP's loss against the published code's values, a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.sp import SP, sp
from potstill.networks.features import Features, FeatureSpec, MapSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SHAPES = [((2, 3, 2, 5), (2, 7, 4, 3)), ((5, 8, 1, 3), (5, 2, 3, 1)), ((1, 2, 2, 2), (1, 3, 1, 1)), ((4, 6), (4, 9))]


def naive_similarities(maps: Tensor) -> list[list[float]]:
    rows = [image.flatten().tolist() for image in maps]
    products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in products]


def naive_sp(student: Tensor, teacher: Tensor) -> float:
    """The squared differences of the normalised rows, with lists and loops."""
    g_s, g_t = naive_similarities(student), naive_similarities(teacher)
    b = len(g_s)
    return sum((g_t[i][j] - g_s[i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


def spec(*channels: int) -> FeatureSpec:
    return FeatureSpec(5, 4, tuple(MapSpec(f"layer{i}", c, 2**i) for i, c in enumerate(channels)))


def features(*maps: Tensor) -> Features:
    return Features(torch.zeros(len(maps[0]), 5), torch.zeros(len(maps[0]), 4), maps)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


@DTYPES
@pytest.mark.parametrize("name", ["sp", "sp_student_wider"])
def test_agrees_with_the_published_code(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    student, teacher = case.inputs["student.map0"].requires_grad_(), case.inputs["teacher.map0"]
    method = SP(Setting(spec(student.shape[1]), spec(teacher.shape[1]), batch_size=8))
    loss = method(features(student), features(teacher), batch_of(8))
    total = 3000 * loss
    total.backward()
    case.check("out.loss.sp", loss)
    case.check("out.loss.total", total)
    case.check("out.grad.student.map0", student.grad)
    assert case.all_compared()


@pytest.mark.parametrize(("s", "t"), SHAPES)
def test_agrees_with_a_naive_writing(s: tuple[int, ...], t: tuple[int, ...]):
    torch.manual_seed(sum(s))
    student, teacher = torch.randn(s, dtype=torch.float64), torch.randn(t, dtype=torch.float64)
    assert sp(student, teacher).item() == pytest.approx(naive_sp(student, teacher), rel=1e-12, abs=1e-30)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    student = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sp(x, teacher), student)


def test_what_the_loss_does_not_see():
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 4, 3, 2, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    loss = sp(student, teacher)
    order = torch.randperm(6)
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    torch.testing.assert_close(sp(student[order], teacher[order]), loss)
    torch.testing.assert_close(sp(7 * student.flatten(1) @ rotation, 0.1 * teacher), loss)
    assert sp(teacher @ torch.eye(9, 11, dtype=torch.float64), teacher).item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("layer", [0, 1, -1, -3])
def test_the_layer_is_the_map_that_is_compared(layer: int):
    torch.manual_seed(2)
    of_s = [torch.randn(4, c, 2, 2) for c in (2, 3, 4)]
    of_t = [torch.randn(4, c, 3, 3) for c in (5, 6, 7)]
    loss = SP(Setting(spec(2, 3, 4), spec(5, 6, 7)), layer=layer)(features(*of_s), features(*of_t), batch_of(4))
    assert torch.equal(loss, sp(of_s[layer], of_t[layer]))
    assert loss > 0


@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one image"])
def test_zero_maps_give_numbers(zero: str):
    student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 2, 2)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    if zero == "one image":
        student[1] = 0
    student.requires_grad_()
    loss = sp(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 10  # in the published code 1e11
    if zero in ("student", "both"):
        assert not student.grad.any()
        torch.testing.assert_close(loss.item(), 0.25 if zero == "student" else 0.0)  # rows of length 1, b of b² values


def test_half_precision_is_computed_in_full():
    student, teacher = torch.randn(4, 8, 4, 4).bfloat16(), torch.randn(4, 8, 4, 4).half()
    loss = sp(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sp(student.float(), teacher.float()))


def test_no_gradient_reaches_the_teacher():
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    sp(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_in_one_graph():
    torch._dynamo.reset()
    student, teacher = torch.randn(4, 3, 2, 5, requires_grad=True), torch.randn(4, 7, 3, 3)
    loss = sp(student, teacher)
    (expected,) = torch.autograd.grad(loss, student)
    compiled = torch.compile(sp, fullgraph=True, backend="aot_eager")(student, teacher)
    (found,) = torch.autograd.grad(compiled, student)
    torch.testing.assert_close(compiled, loss)
    torch.testing.assert_close(found, expected)


def test_what_is_refused():
    with pytest.raises(NetworkError, match="there are 2 of the student and 3 of the teacher"):
        sp(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(RecipeError, match="sp learns from a teacher, and there is none"):
        SP(Setting(spec(4)))
    with pytest.raises(RecipeError, match="sp learns from a teacher, and there is none"):
        SP(Setting(spec(4), spec(4)))(features(torch.ones(2, 4, 1, 1)), None, batch_of(2))
    with pytest.raises(NetworkError, match=r"layer -1, but the teacher has 0 maps\. .*teacher\.taps\.maps"):
        SP(Setting(spec(4), spec()))
    with pytest.raises(NetworkError, match="layer 2, but the student has 2 maps"):
        SP(Setting(spec(4, 8), spec(4, 8, 8)), layer=2)
    with pytest.raises(RecipeError, match="a process's part of a batch is 1 image: give it 2 or more"):
        SP(Setting(spec(4), spec(4), batch_size=1))
