"""VID against the authors' numbers, a naive second writing with maps of many shapes, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.vid import VID, VariationalLayer, vid
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Batch, then channels, height and width of the student's map and of the teacher's.
SHAPES = [
    (2, (3, 4, 6), (5, 4, 6)),  # narrower, not square
    (2, (5, 4, 6), (3, 2, 3)),  # wider and larger
    (3, (4, 2, 3), (4, 6, 6)),  # smaller
    (2, (4, 4, 3), (2, 2, 6)),  # taller, but not as broad
    (1, (2, 1, 1), (3, 1, 1)),
]


def pooled(x: list, height: int, width: int) -> list:
    """One channel averaged in equal boxes."""
    h, w = len(x) // height, len(x[0]) // width
    return [
        [sum(x[h * i + a][w * j + b] for a in range(h) for b in range(w)) / (h * w) for j in range(width)]
        for i in range(height)
    ]


def naive_layer(layer: VariationalLayer, student: Tensor, teacher: Tensor) -> float:
    """Pixel by pixel: two hidden layers, a mean, and the negative logarithm of a normal density without 2 pi."""
    weights = [layer.regressor[i].weight[:, :, 0, 0].tolist() for i in (0, 2, 4)]
    variances = [math.log(1 + math.exp(a)) + 1e-5 for a in layer.log_scale.tolist()]
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total, count = 0.0, 0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        x = [pooled(channel, height, width) for channel in one]
        y = [pooled(channel, height, width) for channel in other]
        for i in range(height):
            for j in range(width):
                values = [channel[i][j] for channel in x]
                for depth, matrix in enumerate(weights):
                    values = [sum(w * v for w, v in zip(row, values, strict=True)) for row in matrix]
                    if depth < 2:
                        values = [max(0.0, v) for v in values]
                for mean, channel, variance in zip(values, y, variances, strict=True):
                    total += 0.5 * ((mean - channel[i][j]) ** 2 / variance + math.log(variance))
                    count += 1
    return total / count


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
def test_the_authors_numbers(golden, dtype: torch.dtype):
    case = golden("vid", dtype)
    student, teacher = ([case.inputs[f"{one}.map{i}"] for i in range(2)] for one in ("student", "teacher"))
    s, t = ([m.shape[1] for m in maps] for maps in (student, teacher))
    method = VID(setting([3, *s], [3, *t]), variance=case.case["hyperparameters"]["init_pred_var"]).to(dtype)
    for i, layer in enumerate(method.layers):
        prefix = f"param.vid{i}."
        layer.load_state_dict(
            {name.removeprefix(prefix): case.parameter(name) for name in case.tensors if name.startswith(prefix)}
        )
    stem = torch.zeros(len(student[0]), 3, 8, 8, dtype=dtype)
    for m in student:
        m.requires_grad_()
    loss = method(features((stem, *student)), features((stem, *teacher)), batch_of(len(stem)))
    loss.backward()
    case.check("out.loss.vid", loss)
    case.check("out.loss.total", loss)
    for i, layer in enumerate(method.layers):
        case.check(f"out.loss.vid{i}", layer(student[i], teacher[i]))
        case.check(f"out.grad.student.map{i}", student[i].grad)
        for name, parameter in layer.named_parameters():
            case.check(f"out.grad.vid{i}.{name}", parameter.grad)
    assert case.all_compared()


@pytest.mark.parametrize(("b", "s", "t"), SHAPES)
def test_agrees_with_a_naive_writing(b: int, s: tuple[int, int, int], t: tuple[int, int, int]):
    torch.manual_seed(b + s[0])
    layer = VariationalLayer(s[0], t[0]).double()
    with torch.no_grad():
        layer.log_scale.copy_(torch.randn(t[0]))
    student, teacher = maps_of(b, s, t)
    assert layer(student, teacher).item() == pytest.approx(naive_layer(layer, student, teacher), rel=1e-9)


def test_the_method_sums_over_the_pairs():
    torch.manual_seed(0)
    student = maps_of(2, (2, 8, 8), (3, 8, 8), (4, 4, 4))
    teacher = maps_of(2, (5, 8, 8), (6, 8, 8), (7, 4, 4), (8, 2, 2))
    method = VID(setting([2, 3, 4], [5, 6, 7, 8]), layers=((0, 0), (2, 3))).double()
    expected = [
        naive_layer(layer, student[s], teacher[t]) for layer, s, t in zip(method.layers, (0, 2), (0, 3), strict=True)
    ]
    assert method(features(student), features(teacher), batch_of(2)).item() == pytest.approx(sum(expected), rel=1e-9)
    assert [layer.regressor[0].weight.shape[:2] for layer in VID(setting([2, 3, 4], [5, 6, 7])).layers] == [
        (6, 3),
        (7, 4),
    ]


@pytest.mark.parametrize("variance", [5.0, 0.01, 1000.0])
def test_the_variance_before_training_is_the_one_asked_for(variance: float):
    layer = VariationalLayer(2, 3, variance)
    mean, target = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0)
    expected = 0.5 * (4 / variance + math.log(variance))
    assert vid(mean, target, layer.log_scale).item() == pytest.approx(expected, rel=1e-5)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "log_scale": (3,),
        "regressor.0.weight": (3, 2, 1, 1),
        "regressor.2.weight": (3, 3, 1, 1),
        "regressor.4.weight": (3, 3, 1, 1),
    }


def test_the_parameters_that_the_card_counts():
    stages = [64, 64, 128, 256]  # of both ResNet32x4 and ResNet8x4, the stem first
    assert sum(p.numel() for p in VID(setting(stages, stages)).parameters()) == 258_496


def test_the_best_variance_is_the_mean_squared_error():
    mean, target = maps_of(4, (1, 8, 8), (1, 8, 8))
    error = (mean - target).square().mean().item()
    best = vid(mean, target, torch.tensor([math.log(math.expm1(error - 1e-5))], dtype=torch.float64))
    assert best.item() == pytest.approx(0.5 * (1 + math.log(error)), rel=1e-9)
    for other in (-1.0, 0.0, 2.0, 5.0):
        assert vid(mean, target, torch.tensor([other], dtype=torch.float64)) > best


@pytest.mark.parametrize("log_scale", [-1000.0, 1000.0])
def test_extreme_variances_stay_numbers(log_scale: float):
    a = torch.tensor([log_scale], requires_grad=True)
    mean = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = vid(mean, torch.zeros(1, 1, 2, 2), a)
    loss.backward()
    variance = 1e-5 if log_scale < 0 else 1000.0
    assert loss.item() == pytest.approx(0.5 * (1 / variance + math.log(variance)), rel=1e-5)
    assert a.grad.isfinite().all()
    assert mean.grad.isfinite().all()


def test_zero_maps_give_numbers():
    method = VID(setting([2, 3], [2, 4]))
    student = (torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4, requires_grad=True))
    loss = method(features(student), features((torch.zeros(2, 2, 4, 4), torch.zeros(2, 4, 4, 4))), batch_of(2))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(5))
    for tensor in (student[1], *method.parameters()):
        assert tensor.grad.isfinite().all()


def test_half_precision_maps_are_computed_in_full():
    mean, target = (m.bfloat16() for m in maps_of(2, (3, 4, 4), (3, 4, 4)))
    loss = vid(mean, target, torch.zeros(3))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, vid(mean.float(), target.float(), torch.zeros(3)))


def test_no_gradient_reaches_the_teacher():
    torch.manual_seed(0)
    method = VID(setting([2, 3], [2, 4])).double()
    student, teacher = ([m.requires_grad_() for m in maps_of(2, (2, 8, 8), (c, 8, 8))] for c in (3, 4))
    method(features(tuple(student)), features(tuple(teacher)), batch_of(2)).backward()
    assert [m.grad for m in teacher] == [None, None]
    assert student[1].grad.any()
    assert all(p.grad.any() for p in method.parameters())


def test_in_one_graph():
    torch.manual_seed(0)
    method = VID(setting([2, 3, 4], [2, 5, 6]))
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
    with pytest.raises(NetworkError, match=r"vid compares maps of one shape, but the student's are \(1, 2, 3, 3\)"):
        vid(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 4), torch.zeros(2))
    with pytest.raises(NetworkError, match=r"vid compares the ends of the stages one by one.*2 maps.*3 maps"):
        VID(setting([2, 3], [2, 3, 4]))
    with pytest.raises(RecipeError, match=r"layers of vid has the pair \[2, 0\]"):
        VID(setting([2, 3], [2, 3]), layers=((2, 0),))
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"variance of vid is .*; expected a number above 0.00001"):
            VID(setting([2, 3], [2, 3]), variance=wrong)
    with pytest.raises(RecipeError, match="vid learns from a teacher, and there is none"):
        VID(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="vid learns from a teacher, and there is none"):
        VID(setting([2, 3], [2, 3]))(features((torch.ones(1, 2, 1, 1),) * 2), None, batch_of(1))
