"""AFD against the authors' code, a naive second writing, at its edges, and as a method."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.afd import AFD, afd
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec, MapSpec

Shapes = list[tuple[int, int, int]]  # channels, height, width

SIZES: list[tuple[Shapes, Shapes, int]] = [  # student blocks, teacher blocks, batch
    ([(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (5, 4, 4), (7, 2, 2)], 4),  # narrower
    ([(6, 4, 4), (6, 4, 4), (9, 2, 2)], [(4, 4, 4), (5, 2, 2)], 2),  # wider, two images
    ([(3, 4, 6), (5, 2, 3)], [(4, 4, 6), (6, 2, 3), (6, 2, 3)], 3),  # not square
    ([(3, 4, 4), (5, 2, 2), (3, 4, 4)], [(4, 8, 8), (6, 5, 5), (4, 8, 8)], 3),  # the teacher's larger; sizes recur
]


def spec(shapes: Shapes) -> FeatureSpec:
    return FeatureSpec(5, 8, (), tuple(MapSpec(f"block{k}", c, 1) for k, (c, _, _) in enumerate(shapes)))


def batch_of(count: int) -> Batch:
    index = torch.arange(count)
    return Batch(torch.zeros(count, 3, 1, 1), None, index, index)


def features(blocks: tuple[Tensor, ...]) -> Features:
    b = len(blocks[0])
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), blocks=blocks)


def case(student: Shapes, teacher: Shapes, b: int, width: int = 6) -> tuple[AFD, Features, Features]:
    torch.manual_seed(b + len(teacher))
    method = AFD(Setting(spec(student), spec(teacher)), width=width).double()
    own, theirs = (
        tuple(torch.randn(b, *shape, dtype=torch.float64).requires_grad_() for shape in shapes)
        for shapes in (student, teacher)
    )
    return method, features(own), features(theirs)


def naive_value(block: Tensor, height: int, width: int) -> list[float]:
    """The energy map of one image's block, averaged over the parts of a grid, of length 1."""
    channels, h, w = block.shape
    rows = block.tolist()
    energy = [[sum(rows[c][y][x] ** 2 for c in range(channels)) / channels for x in range(w)] for y in range(h)]
    found = []
    for i in range(height):
        for j in range(width):
            ys = range(i * h // height, -(-(i + 1) * h // height))
            xs = range(j * w // width, -(-(j + 1) * w // width))
            values = [energy[y][x] for y in ys for x in xs]
            found.append(sum(values) / len(values))
    length = math.sqrt(sum(v * v for v in found))
    return [v / length for v in found]


def naive_afd(attention: Tensor, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> float:
    """Image by image, pair by pair, pixel by pixel."""
    b, total = len(attention), 0.0
    for i in range(b):
        for t, theirs in enumerate(teacher):
            size = (theirs.shape[2], theirs.shape[3])
            target = naive_value(theirs[i], *size)
            for s, ours in enumerate(student):
                value = naive_value(ours[i], *size)
                distance = sum((x - y) ** 2 for x, y in zip(value, target, strict=True)) / len(target)
                total += attention[i, t, s].item() * distance / b
    return total


def linear(layers: Any, k: int) -> tuple[Tensor, Tensor]:
    """Weight ``(C, width)`` and bias of the k-th of the stacked layers."""
    place = [(group, i) for group, (count, _) in enumerate(layers.counts) for i in range(count)]
    group, i = place[k]
    return layers.weights[group][i], layers.biases[group][i, 0]


def naive_attention(method: AFD, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """One layer and one batch norm a block, one score a pair."""
    a: Any = method.attention

    def normed(x: Tensor, norm: Any, start: int) -> Tensor:
        """Of the norm's features those from ``start`` on, as many as x has."""
        part = slice(start, start + x.shape[1])
        scaled = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt()
        return scaled * norm.weight[part] + norm.bias[part]

    def mapped(layers: Any, norm: Any, block: Tensor, k: int) -> Tensor:
        weight, bias = linear(layers, k)
        return normed(block.sum((2, 3)) / block[0, 0].numel() @ weight + bias, norm, k * a.width)

    keys = [mapped(a.key, a.key_norm, block, k).relu() for k, block in enumerate(student)]
    queries = [mapped(a.query, a.query_norm, block, k) for k, block in enumerate(teacher)]
    b = len(student[0])
    rows = normed(a.bilinear(torch.stack(keys, dim=1).flatten(0, 1)), a.bilinear_norm, 0)
    scores = torch.empty(b, len(teacher), len(student), dtype=torch.float64)
    for i in range(b):
        for t, query in enumerate(queries):
            for s in range(len(student)):
                key = rows[i * len(student) + s, t * a.width : (t + 1) * a.width]
                place = a.teacher_position[t] @ a.student_position[s]
                scores[i, t, s] = (key @ query[i] + place) / math.sqrt(a.width)
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def stored(attention: Any) -> dict[str, tuple[Tensor, Any]]:
    """The golden case's parameters by name: ours that holds each, and how to cut the stored one's part out of it."""
    found: dict[str, tuple[Tensor, Any]] = {
        "p_s": (attention.student_position, lambda x: x),
        "p_t": (attention.teacher_position, lambda x: x),
        "linear_trans_s.bilinear.linear.weight": (attention.bilinear.weight, lambda x: x),
        "linear_trans_s.bilinear.linear.bias": (attention.bilinear.bias, lambda x: x),
        "linear_trans_s.bilinear.bn.weight": (attention.bilinear_norm.weight, lambda x: x),
        "linear_trans_s.bilinear.bn.bias": (attention.bilinear_norm.bias, lambda x: x),
    }
    width = attention.width
    for name, layers, norm in [
        ("linear_trans_s.key_layer", attention.key, attention.key_norm),
        ("linear_trans_t.query_layer", attention.query, attention.query_norm),
    ]:
        place = [(group, i) for group, (count, _) in enumerate(layers.counts) for i in range(count)]
        for k, (group, i) in enumerate(place):
            part = slice(k * width, (k + 1) * width)
            found |= {
                f"{name}.{k}.linear.weight": (layers.weights[group], lambda x, i=i: x[i].T),
                f"{name}.{k}.linear.bias": (layers.biases[group], lambda x, i=i: x[i, 0]),
                f"{name}.{k}.bn.weight": (norm.weight, lambda x, part=part: x[part]),
                f"{name}.{k}.bn.bias": (norm.bias, lambda x, part=part: x[part]),
            }
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    """Attention, loss of each teacher block, gradients of blocks and parameters, and the batch norms' averages."""
    case = golden("afd", dtype)
    own = tuple(case.inputs[f"student.map{k}"].requires_grad_() for k in range(3))
    theirs = tuple(case.inputs[f"teacher.map{k}"].requires_grad_() for k in range(4))
    of_student, of_teacher = ([tuple(m.shape[1:]) for m in maps] for maps in (own, theirs))
    setting = Setting(spec(of_student), spec(of_teacher))
    objective = Objective(setting, {"afd": {"weight": 200, "width": case.case["config"]["qk"]}})
    method: Any = objective.methods["afd"].to(dtype)
    prefix, parameters = "afd.attention", stored(method.attention)
    with torch.no_grad():
        for name, (parameter, cut) in parameters.items():
            cut(parameter).copy_(case.parameter(f"param.{prefix}.{name}"))
    assert len(method.attention.query.weights) == 3  # the first two teacher blocks share a stack

    losses = objective(features(own), features(theirs), batch_of(8))
    losses["total"].backward()
    case.check("out.loss.afd", losses["afd"])
    case.check("out.loss.total", losses["total"])
    for k in range(3):
        case.check(f"out.grad.student.map{k}", own[k].grad)
    assert all(t.grad is None for t in theirs)
    for name, (parameter, cut) in parameters.items():
        case.check(f"out.grad.{prefix}.{name}", cut(parameter.grad))
    attention, width = method.attention, method.attention.width
    norms = {"linear_trans_s.bilinear": (attention.bilinear_norm, slice(None))}
    for k in range(3):
        norms[f"linear_trans_s.key_layer.{k}"] = (attention.key_norm, slice(k * width, (k + 1) * width))
    for k in range(4):
        norms[f"linear_trans_t.query_layer.{k}"] = (attention.query_norm, slice(k * width, (k + 1) * width))
    for name, (norm, part) in norms.items():
        for buffer in ("running_mean", "running_var"):
            case.check(f"out.state.{prefix}.{name}.bn.{buffer}", norm.get_buffer(buffer)[part])

    weights = method.attention(own, theirs)
    case.check("out.inter.attention", weights)
    for k in range(4):
        case.check(f"out.loss.afd{k}", afd(weights[:, k : k + 1], own, theirs[k : k + 1]))
    assert case.all_compared()


@pytest.mark.parametrize(("student", "teacher", "b"), SIZES)
def test_agrees_with_a_naive_writing(student: Shapes, teacher: Shapes, b: int):
    method, own, theirs = case(student, teacher, b)
    attention = naive_attention(method, own.blocks, theirs.blocks)
    torch.testing.assert_close(method.attention(own.blocks, theirs.blocks), attention)
    expected = naive_afd(attention, own.blocks, theirs.blocks)
    assert method(own, theirs, batch_of(b)).item() == pytest.approx(expected, rel=1e-9)


def test_equal_energies_are_no_distance_and_opposite_ones_the_most():
    maps = torch.tensor([[[[1.0, 0.0]], [[-2.0, 0.0]]]])
    assert afd(torch.ones(1, 1, 1), [maps], [3 * maps]).item() == pytest.approx(0, abs=1e-6)
    assert afd(torch.ones(1, 1, 1), [maps], [maps.flip(-1)]).item() == pytest.approx(2 / 2)  # |v - w|^2 over 2 pixels


@pytest.mark.parametrize("number", [0, 3])
def test_compiled_in_one_graph_it_gives_the_same(number: int):
    method, own, theirs = case(*SIZES[number])
    batch = batch_of(len(own.blocks[0]))
    compiled = torch.compile(lambda s, t: method(s, t, batch), fullgraph=True, backend="aot_eager", dynamic=False)
    wanted = [*own.blocks, *method.parameters()]
    loss = method(own, theirs, batch)
    expected = torch.autograd.grad(loss, wanted)
    again = compiled(own, theirs)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, wanted), expected)


def test_maps_in_channels_last_give_the_same():
    method, own, theirs = case(*SIZES[0])
    last = tuple(x.detach().contiguous(memory_format=torch.channels_last) for x in own.blocks)
    torch.testing.assert_close(method(features(last), theirs, batch_of(4)), method(own, theirs, batch_of(4)))


def test_no_gradient_reaches_the_teacher_and_every_block_gets_one():
    method, own, theirs = case(*SIZES[0])
    method(own, theirs, batch_of(4)).backward()
    assert all(t.grad is None for t in theirs.blocks)
    assert all(x.grad.any() for x in own.blocks)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zeros_give_numbers(zero: str):
    method, own, theirs = case(*SIZES[0])
    if zero != "teacher":
        own = features(tuple(torch.zeros_like(x).requires_grad_() for x in own.blocks))
    if zero != "student":
        theirs = features(tuple(torch.zeros_like(x) for x in theirs.blocks))
    loss = method(own, theirs, batch_of(4))
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*own.blocks, *method.parameters()))
    if zero == "both":
        assert loss.item() == 0


def test_half_precision_maps_are_compared_in_full():
    own, theirs = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16), torch.randn(2, 5, 4, 4, dtype=torch.bfloat16)
    attention = torch.ones(2, 1, 1)
    assert torch.equal(afd(attention, [own], [theirs]), afd(attention, [own.float()], [theirs.float()]))


def test_what_is_refused():
    block = torch.ones(2, 3, 4, 4)
    with pytest.raises(NetworkError, match=r"1 teacher blocks times 2 student blocks, .* \(2, 2, 1\); expected \(B, 1"):
        afd(torch.ones(2, 2, 1), [block, block], [block])
    full = spec([(3, 4, 4)])
    with pytest.raises(RecipeError, match="afd learns from a teacher, and there is none"):
        AFD(Setting(full))
    with pytest.raises(NetworkError, match="ends of blocks, and the teacher shows none"):
        AFD(Setting(full, FeatureSpec(5, 8)))
    with pytest.raises(NetworkError, match="ends of blocks, and the student shows none"):
        AFD(Setting(FeatureSpec(5, 8), full))
    with pytest.raises(RecipeError, match="width is 0; expected the length of keys and queries"):
        AFD(Setting(full, full), width=0)
    with pytest.raises(RecipeError, match="batch_size is 1 in a process, but afd has batch norms"):
        AFD(Setting(full, full, batch_size=1))
    method, own, _ = case(*SIZES[0])
    with pytest.raises(RecipeError, match="afd learns from a teacher, and there is none"):
        method(own, None, batch_of(4))
