"""SemCKD against the authors' code, a naive second writing, at its edges, and as a method."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.methods.semckd import SemCKD, semckd
from potstill.networks.features import Features, FeatureSpec, MapSpec

Shapes = list[tuple[int, int, int]]  # channels, height, width

SIZES: list[tuple[Shapes, Shapes, int]] = [  # student, teacher, batch
    ([(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (6, 2, 2), (7, 2, 2)], 5),  # narrower; 5 // 4 = 1
    ([(6, 4, 4), (7, 2, 2), (9, 2, 2)], [(4, 4, 4), (5, 2, 2)], 8),  # wider
    ([(3, 4, 6), (5, 2, 3)], [(4, 4, 6), (6, 2, 3)], 4),  # not square
    ([(3, 5, 5), (5, 2, 2)], [(4, 8, 8), (6, 3, 3)], 9),  # sizes that are no multiples
]


def spec(shapes: Shapes) -> FeatureSpec:
    maps = [MapSpec(f"stage{k}", c, 2**k) for k, (c, _, _) in enumerate(shapes)]
    return FeatureSpec(5, 8, (MapSpec("stem", 2, 1), *maps))


def batch_of(count: int) -> Batch:
    index = torch.arange(count)
    return Batch(torch.zeros(count, 3, 1, 1), None, index, index)


def features(maps: tuple[Tensor, ...]) -> Features:
    b = len(maps[0])
    stem = torch.full((b, 2, 3, 3), torch.nan)  # who reads it is found
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), maps=(stem, *maps))


def case(student: Shapes, teacher: Shapes, b: int, **hyper: Any) -> tuple[SemCKD, Features, Features]:
    torch.manual_seed(b)
    method = SemCKD(Setting(spec(student), spec(teacher), batch_size=b), **hyper).double()
    own, theirs = (
        tuple(torch.randn(b, *shape, dtype=torch.float64).requires_grad_() for shape in shapes)
        for shapes in (student, teacher)
    )
    return method, features(own), features(theirs)


def naive_pool(image: Tensor, height: int, width: int) -> Tensor:
    """Averages of ``(C, H, W)`` over the parts of a grid."""
    h, w = image.shape[1:]
    rows = [
        image[:, i * h // height : -(-(i + 1) * h // height), j * w // width : -(-(j + 1) * w // width)].mean((1, 2))
        for i in range(height)
        for j in range(width)
    ]
    return torch.stack(rows, dim=1).view(-1, height, width)


def naive_semckd(method: SemCKD, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> float:
    """One perceptron and one regressor after the other, image by image."""
    b = len(student[0])

    def embedded(maps: Tensor, number: int) -> list[list[float]]:
        flat = [image.flatten().tolist() for image in maps]
        products = [[sum(p * q for p, q in zip(x, y, strict=True)) for y in flat] for x in flat]
        gram = torch.tensor(products, dtype=torch.float64)
        weights, biases = method.embeddings.weights, method.embeddings.biases
        hidden = (gram @ weights[0][number] + biases[0][number]).clamp_min(0)
        out = (hidden @ weights[1][number] + biases[1][number]).tolist()
        return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in out]

    queries = [embedded(x, s) for s, x in enumerate(student)]
    keys = [embedded(x, len(student) + t) for t, x in enumerate(teacher)]
    total = 0.0
    for s, x in enumerate(student):
        distances = []
        for t, y in enumerate(teacher):
            size = x.shape[2:] if x.shape[2] <= y.shape[2] else y.shape[2:]
            small, target = (torch.stack([naive_pool(image, *size) for image in maps]) for maps in (x, y))
            out = method.regressors[s * len(teacher) + t](small)
            distances.append([(out[i] - target[i]).square().mean().item() for i in range(b)])
        for i in range(b):
            scores = [sum(q * k for q, k in zip(queries[s][i], key[i], strict=True)) for key in keys]
            whole = sum(math.exp(v) for v in scores)
            total += sum(math.exp(v) / whole * d[i] for v, d in zip(scores, distances, strict=True))
    return total / (b * len(student))


def stored(method: Any) -> dict[str, tuple[Tensor, Any]]:
    """The golden case's parameters by name: ours that holds each, and how to cut the stored one's part out of it."""
    found: dict[str, tuple[Tensor, Any]] = {}
    students, teachers = method.counts
    for number in range(students + teachers):
        name = f"query_weight{number}" if number < students else f"key_weight{number - students}"
        for layer in range(2):
            weight, bias = method.embeddings.weights[layer], method.embeddings.biases[layer]
            found[f"{name}.linear{layer + 1}.weight"] = (weight, lambda x, n=number: x[n].T)
            found[f"{name}.linear{layer + 1}.bias"] = (bias, lambda x, n=number: x[n, 0])
    for number, regressor in enumerate(method.regressors):
        s, t = divmod(number, teachers)
        for name, parameter in regressor.named_parameters():
            found[f"regressor{s}{t}.regressor.{name}"] = (parameter, lambda x: x)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    """Attention, distance of each pair, loss, and the gradients of maps and parameters."""
    case = golden("semckd", dtype)
    own = tuple(case.inputs[f"student.map{k}"].requires_grad_() for k in range(2))
    theirs = tuple(case.inputs[f"teacher.map{k}"].requires_grad_() for k in range(3))
    of_student, of_teacher = ([tuple(m.shape[1:]) for m in maps] for maps in (own, theirs))
    objective = Objective(Setting(spec(of_student), spec(of_teacher), batch_size=8), {"semckd": 400})
    method: Any = objective.methods["semckd"].to(dtype)
    parameters = stored(method)
    with torch.no_grad():
        for name, (parameter, cut) in parameters.items():
            cut(parameter).copy_(case.parameter(f"param.attention.{name}"))

    losses = objective(features(own), features(theirs), batch_of(8))
    losses["total"].backward()
    case.check("out.loss.semckd", losses["semckd"])
    case.check("out.loss.total", losses["total"])
    for k in range(2):
        case.check(f"out.grad.student.map{k}", own[k].grad)
    assert all(t.grad is None for t in theirs)
    for name, (parameter, cut) in parameters.items():
        case.check(f"out.grad.attention.{name}", cut(parameter.grad))
    case.check("out.inter.attention", method.attention(own, theirs))
    case.check("out.inter.pair_loss", method.distances(own, theirs))
    assert case.all_compared()


@pytest.mark.parametrize(("student", "teacher", "b"), SIZES)
def test_agrees_with_a_naive_writing(student: Shapes, teacher: Shapes, b: int):
    method, own, theirs = case(student, teacher, b)
    expected = naive_semckd(method, own.maps[1:], theirs.maps[1:])
    assert method(own, theirs, batch_of(b)).item() == pytest.approx(expected, rel=1e-9)


def test_levels_are_counted_from_the_deepest():
    shapes: Shapes = [(3, 8, 8), (4, 4, 4), (5, 2, 2)]
    method, own, theirs = case(shapes, shapes, 4, levels=2)
    assert method.counts == (2, 2)
    own.maps[1].detach().fill_(torch.nan)
    theirs.maps[1].detach().fill_(torch.nan)
    assert method(own, theirs, batch_of(4)).isfinite()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_batch_of_another_size_counts_nothing_and_reaches_everything(count: int):
    """As in the step of a process whose batch is whole, every parameter has a gradient; here it is zero."""
    method, own, theirs = case(*SIZES[0])
    before = {name: value.clone() for name, value in method.state_dict().items()}
    maps = tuple(torch.randn(count, *shape, requires_grad=True) for shape in SIZES[0][0])
    others = tuple(torch.randn(count, *shape) for shape in SIZES[0][1])
    loss = method(features(maps), features(others), batch_of(count))
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in (*maps, *method.parameters()))
    torch.testing.assert_close(method.state_dict(), before)
    nan = features(tuple(torch.full_like(x, torch.nan) for x in maps))
    assert method(nan, features(others), batch_of(count)).item() == 0
    assert method(own, theirs, batch_of(5)).item() > 0


def test_training_without_a_single_whole_batch_is_refused_after_the_first_epoch():
    method, own, theirs = case(*SIZES[0])
    short = tuple(features(tuple(m[:3] for m in f.maps[1:])) for f in (own, theirs))
    method.start_epoch(0)
    method(*short, batch_of(3))
    with pytest.raises(RecipeError, match="semckd has seen no batch of 5 images"):
        method.start_epoch(1)
    method(own, theirs, batch_of(5))
    method(*short, batch_of(3))
    method.start_epoch(1)
    again, _, _ = case(*SIZES[0])
    again.load_state_dict(method.state_dict())
    again.start_epoch(1)
    assert again.full_batches.item() == 1


@pytest.mark.parametrize("count", [5, 3])
def test_compiled_in_one_graph_it_gives_the_same(count: int):
    method, own, theirs = case(*SIZES[0])
    own, theirs = (features(tuple(m[:count].detach().requires_grad_() for m in f.maps[1:])) for f in (own, theirs))
    compiled = torch.compile(
        lambda s, t: method(s, t, batch_of(count)), fullgraph=True, backend="aot_eager", dynamic=False
    )
    wanted = [*own.maps[1:], *method.parameters()]
    loss = method(own, theirs, batch_of(count))
    expected = torch.autograd.grad(loss, wanted)
    again = compiled(own, theirs)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, wanted), expected)
    assert method.full_batches.item() == (2 if count == 5 else 0)


def test_maps_in_channels_last_give_the_same():
    method, own, theirs = case(*SIZES[0])
    last = features(tuple(x.detach().contiguous(memory_format=torch.channels_last) for x in own.maps[1:]))
    torch.testing.assert_close(method(last, theirs, batch_of(5)), method(own, theirs, batch_of(5)))


def test_no_gradient_reaches_the_teacher_and_every_parameter_gets_one():
    method, own, theirs = case(*SIZES[1])
    method(own, theirs, batch_of(8)).backward()
    assert all(t.grad is None for t in theirs.maps[1:])
    assert all(x.grad.any() for x in own.maps[1:])
    assert all(p.grad.any() for p in method.parameters())


@pytest.mark.parametrize("zero", ["student", "teacher", "perceptrons"])
def test_zeros_give_numbers(zero: str):
    method, own, theirs = case(*SIZES[0])
    if zero == "student":
        own = features(tuple(torch.zeros_like(x).requires_grad_() for x in own.maps[1:]))
    if zero == "teacher":
        theirs = features(tuple(torch.zeros_like(x) for x in theirs.maps[1:]))
    if zero == "perceptrons":
        nn.init.zeros_(method.embeddings.weights[1])
        nn.init.zeros_(method.embeddings.biases[1])
    loss = method(own, theirs, batch_of(5))
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*own.maps[1:], *method.parameters()))


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"attention is of shape \(2, 1, 3\) and the distances of \(2, 3, 1\)"):
        semckd(torch.ones(2, 1, 3), torch.ones(2, 3, 1))
    full = spec([(3, 4, 4)])
    with pytest.raises(RecipeError, match="semckd learns from a teacher, and there is none"):
        SemCKD(Setting(full, batch_size=8))
    with pytest.raises(RecipeError, match="a process's batch_size is not known; expected 4 or more"):
        SemCKD(Setting(full, full))
    with pytest.raises(RecipeError, match="a process's batch_size is 3; expected 4 or more"):
        SemCKD(Setting(full, full, batch_size=3))
    with pytest.raises(NetworkError, match="ends of the stages, but the student shows 0 maps"):
        SemCKD(Setting(FeatureSpec(5, 8), full, batch_size=8))
    with pytest.raises(NetworkError, match="the 2 deepest maps, but the teacher shows 1 maps"):
        SemCKD(Setting(full, FeatureSpec(5, 8, full.maps[:1]), batch_size=8), levels=2)
    method, own, theirs = case(*SIZES[0])
    with pytest.raises(RecipeError, match="semckd learns from a teacher, and there is none"):
        method(own, None, batch_of(5))
    with pytest.raises(NetworkError, match="reads 2 of the student's maps, but the network gave 0"):
        method(Features(own.logits, own.embedding), theirs, batch_of(5))
