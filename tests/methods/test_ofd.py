"""OFD against the authors' code, a naive second writing, at its edges, and as a method."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.methods.ofd import OFD, ofd, ofd_margin
from potstill.networks.features import Features, FeatureSpec, MapSpec

Shapes = list[tuple[int, int, int]]  # channels, height, width

SIZES: list[tuple[Shapes, Shapes, int]] = [  # student, teacher, batch
    ([(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (7, 2, 2)], 3),  # narrower
    ([(6, 4, 4), (9, 2, 2)], [(4, 4, 4), (5, 2, 2)], 2),  # wider, two images
    ([(3, 4, 6), (5, 2, 3)], [(4, 4, 6), (6, 2, 3)], 3),  # not square
    ([(3, 4, 4), (5, 2, 2)], [(4, 8, 8), (6, 4, 4)], 3),  # the teacher's larger
    ([(3, 8, 8), (5, 6, 6)], [(4, 4, 4), (6, 3, 3)], 3),  # the teacher's smaller
]


def spec(shapes: Shapes) -> FeatureSpec:
    maps = [MapSpec(f"stage{k}", c, 2**k) for k, (c, _, _) in enumerate(shapes)]
    return FeatureSpec(5, 8, (MapSpec("stem", 2, 1), *maps))


def norms_of(shapes: Shapes) -> tuple[tuple[Tensor, Tensor] | None, ...]:
    return (None, *((torch.randn(c), torch.randn(c)) for c, _, _ in shapes))


def batch_of(count: int) -> Batch:
    index = torch.arange(count)
    return Batch(torch.zeros(count, 3, 1, 1), None, index, index)


def features(maps: tuple[Tensor, ...]) -> Features:
    b = len(maps[0])
    stem = torch.full((b, 2, 3, 3), torch.nan)  # who reads it is found
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), preacts=(stem, *maps))


def case(student: Shapes, teacher: Shapes, b: int, **hyper: Any) -> tuple[OFD, Features, Features]:
    torch.manual_seed(b + len(student))
    method = OFD(Setting(spec(student), spec(teacher), norms=norms_of(teacher)), **hyper).double()
    own, theirs = (
        tuple(torch.randn(b, *shape, dtype=torch.float64).requires_grad_() for shape in shapes)
        for shapes in (student, teacher)
    )
    return method, features(own), features(theirs)


def naive_ofd(projected: list[Tensor], teacher: list[Tensor], margins: list[Tensor]) -> float:
    """Element by element, with the three cases of the paper."""
    total = 0.0
    for level, (p, t, m) in enumerate(zip(projected, teacher, margins, strict=True)):
        b, channels, height, width = p.shape
        ours, theirs = p.tolist(), t.tolist()
        for i in range(b):
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        # The part of the teacher's map that the student's pixel stands for.
                        rows = range(y * t.shape[2] // height, -(-(y + 1) * t.shape[2] // height))
                        columns = range(x * t.shape[3] // width, -(-(x + 1) * t.shape[3] // width))
                        seen = [theirs[i][c][v][u] for v in rows for u in columns]
                        target, margin = sum(seen) / len(seen), m[c].item()
                        value = ours[i][c][y][x]
                        wanted = target if target > margin else margin
                        if wanted > 0 or value > wanted:
                            total += (value - wanted) ** 2 / 2 ** (len(projected) - 1 - level)
    return total / len(projected[0])


def expectation_below_zero(weight: float, bias: float) -> float:
    """E[x | x < 0] by summing over a fine grid."""
    density = NormalDist(bias, abs(weight)).pdf
    points = [-(k + 0.5) / 1000 for k in range(20000)]
    masses = [density(x) for x in points]
    return sum(x * mass for x, mass in zip(points, masses, strict=True)) / sum(masses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    """Margins, loss of each level, gradients of maps and connectors, and the batch norms' averages."""
    case = golden("ofd", dtype)
    own = [case.inputs[f"student.map{k}"].requires_grad_() for k in range(3)]
    theirs = [case.inputs[f"teacher.map{k}"].requires_grad_() for k in range(3)]
    norms = tuple(
        (case.parameter(f"state.teacher_bn{k}.weight"), case.parameter(f"state.teacher_bn{k}.bias")) for k in range(3)
    )
    of_student, of_teacher = ([tuple(m.shape[1:]) for m in maps] for maps in (own, theirs))
    setting = Setting(spec(of_student), spec(of_teacher), norms=(None, *norms))
    objective = Objective(setting, {"ofd": 0.001})
    method: Any = objective.methods["ofd"].to(dtype)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(case.parameter(f"param.{name}"))

    losses = objective(features(tuple(own)), features(tuple(theirs)), batch_of(8))
    losses["total"].backward()
    case.check("out.loss.ofd", losses["ofd"] * 8)  # the authors divide the sum by the batch's size with the weight
    case.check("out.loss.total", losses["total"])
    for k in range(3):
        case.check(f"out.grad.student.map{k}", own[k].grad)
        assert theirs[k].grad is None
    for name, parameter in method.named_parameters():
        case.check(f"out.grad.{name}", parameter.grad)
    for name, buffer in method.named_buffers():
        if "running" in name:
            case.check(f"out.state.{name}", buffer)

    for k in range(3):
        margin = method.get_buffer(f"margin_{k}")
        case.check(f"out.inter.margin{k}", margin)
        projected = method.connectors[k](own[k])
        case.check(f"out.loss.ofd{k}", ofd([projected], [theirs[k]], [margin]) * 8)
    assert case.all_compared()


@pytest.mark.parametrize(("student", "teacher", "b"), SIZES)
def test_agrees_with_a_naive_writing(student: Shapes, teacher: Shapes, b: int):
    method, own, theirs = case(student, teacher, b)
    margins = [method.get_buffer(f"margin_{k}") for k in range(len(teacher))]
    projected = [connector(x) for connector, x in zip(method.connectors, own.preacts[1:], strict=True)]
    expected = naive_ofd(projected, list(theirs.preacts[1:]), margins)
    assert method(own, theirs, batch_of(b)).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (0.5, 1.0), (-2.0, 0.3), (1.0, -3.0), (1.0, 3.0)])
def test_the_margin_is_the_expectation_below_zero(weight: float, bias: float):
    (margin,) = ofd_margin(torch.tensor([weight]), torch.tensor([bias])).tolist()
    assert margin == pytest.approx(expectation_below_zero(weight, bias), rel=1e-5)


def test_the_margin_of_units_that_are_hardly_ever_off_or_do_not_vary():
    weight, bias = torch.tensor([1.0, -0.5, 0.0, 0.0, 0.0]), torch.tensor([4.0, 9.0, 1.0, -2.0, 0.0])
    assert ofd_margin(weight, bias).tolist() == [-3.0, -1.5, 0.0, -2.0, 0.0]
    assert ofd_margin(weight.double(), bias.double()).dtype == torch.float32


def test_a_student_below_the_margin_of_a_silent_unit_pays_nothing():
    silent = torch.full((2, 1, 2, 2), -0.1)
    margin = torch.tensor([-0.5])
    for value, expected in [(-7.0, 0.0), (-0.5, 0.0), (-0.1, 0.0), (0.4, 0.25 * 4)]:
        x = torch.full((2, 1, 2, 2), value, requires_grad=True)
        loss = ofd([x], [silent], [margin])
        loss.backward()
        assert loss.item() == pytest.approx(expected)
        assert x.grad.any() == bool(expected)


def test_levels_are_counted_from_the_deepest_and_a_shallower_end_has_no_partner():
    shapes: Shapes = [(3, 8, 8), (4, 4, 4), (5, 2, 2)]
    for student, hyper in [(shapes, {"levels": 2}), (shapes[1:], {})]:
        method, own, theirs = case(student, shapes, 3, **hyper)
        theirs.preacts[1].detach().fill_(torch.nan)
        assert [connector[0].weight.shape[0] for connector in method.connectors] == [4, 5]
        assert method(own, theirs, batch_of(3)).isfinite()


def test_the_margins_move_with_the_module_and_are_not_stored():
    method, _, _ = case(*SIZES[0])
    assert method.get_buffer("margin_0").dtype == torch.float64
    assert not [name for name in method.state_dict() if "margin" in name]
    torch.manual_seed(3 + 2)  # as case does
    again = OFD(Setting(spec(SIZES[0][0]), spec(SIZES[0][1]), norms=norms_of(SIZES[0][1]))).double()
    assert torch.equal(again.get_buffer("margin_1"), method.get_buffer("margin_1"))


def test_compiled_in_one_graph_it_gives_the_same():
    method, own, theirs = case(*SIZES[3])
    compiled = torch.compile(lambda s, t: method(s, t, batch_of(3)), fullgraph=True, backend="aot_eager", dynamic=False)
    wanted = [*own.preacts[1:], *method.parameters()]
    loss = method(own, theirs, batch_of(3))
    expected = torch.autograd.grad(loss, wanted)
    again = compiled(own, theirs)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, wanted), expected)


def test_no_gradient_reaches_the_teacher_and_every_connector_gets_one():
    method, own, theirs = case(*SIZES[0])
    method(own, theirs, batch_of(3)).backward()
    assert all(t.grad is None for t in theirs.preacts[1:])
    assert all(x.grad.any() for x in (*own.preacts[1:], *method.parameters()))


def test_zeros_give_numbers():
    method, own, theirs = case(*SIZES[0])
    zero = tuple(torch.zeros_like(x).requires_grad_() for x in own.preacts[1:])
    loss = method(features(zero), theirs, batch_of(3))
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*zero, *method.parameters()))


def test_half_precision_maps_are_compared_in_full():
    x, t = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16), torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    margin = torch.full((3,), -math.pi)
    assert torch.equal(ofd([x], [t], [margin]), ofd([x.float()], [t.float()], [margin]))


def test_what_is_refused():
    x, m = torch.ones(1, 2, 3, 3), torch.zeros(2)
    with pytest.raises(NetworkError, match=r"student's \(B, C\) are \[\(1, 2\)\], the teacher's \[\(1, 3\)\], and the"):
        ofd([x], [torch.ones(1, 3, 3, 3)], [torch.zeros(3)])
    with pytest.raises(NetworkError, match=r"the margins are of \[\] channels"):
        ofd([x], [x], [])
    with pytest.raises(NetworkError, match=r"the margins are of \[1\] channels"):
        ofd([x], [x], [m[:1]])
    full = spec([(3, 4, 4)])
    norms = norms_of([(3, 4, 4)])
    with pytest.raises(RecipeError, match="ofd learns from a teacher, and there is none"):
        OFD(Setting(full))
    with pytest.raises(NetworkError, match=r"ofd reads its margins off the batch norm .* there is none at stage0"):
        OFD(Setting(full, full, norms=(norms[1], None)))
    with pytest.raises(NetworkError, match="there is none at stage0"):
        OFD(Setting(full, full))
    with pytest.raises(NetworkError, match="ends of the stages, but the student shows 0 maps"):
        OFD(Setting(FeatureSpec(5, 8), full, norms=norms))
    method, own, theirs = case(*SIZES[0])
    with pytest.raises(RecipeError, match="ofd learns from a teacher, and there is none"):
        method(own, None, batch_of(3))
    with pytest.raises(NetworkError, match="reads 2 of the student's preacts, but the network gave 0"):
        method(Features(own.logits, own.embedding), theirs, batch_of(3))
