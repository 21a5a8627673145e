"""FitNets against RepDistiller's numbers, a naive second writing of the loss and its regressor, and at its edges."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.fitnets import ConvRegressor, FitNets, hint
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Channels, height and width of the student's map and of the teacher's, their strides, and the kernel.
KINDS = [
    ((3, 4, 6), (5, 4, 6), (1, 1), None),  # one size, narrower, not square
    ((5, 4, 6), (3, 2, 3), (1, 2), None),  # twice as large, wider
    ((4, 5, 4), (4, 3, 2), (2, 4), None),  # twice as large but for a pixel
    ((3, 2, 3), (5, 4, 6), (4, 2), None),  # half as large
    ((2, 6, 5), (3, 4, 3), (2, 3), 3),  # two pixels larger
    ((2, 8, 8), (3, 2, 2), (1, 4), 7),
]


def naive_conv(image: list, regressor: ConvRegressor) -> list:
    """A convolution or a transposed one of a single image, from its definition."""
    conv = regressor.conv
    weight, bias = conv.weight.tolist(), conv.bias.tolist()
    k, stride, pad = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    height, width = len(image[0]), len(image[0][0])
    transposed = isinstance(conv, torch.nn.ConvTranspose2d)
    if transposed:
        rows, columns = (height - 1) * stride - 2 * pad + k, (width - 1) * stride - 2 * pad + k
    else:
        rows, columns = (height + 2 * pad - k) // stride + 1, (width + 2 * pad - k) // stride + 1
    out = [[[b] * columns for _ in range(rows)] for b in bias]
    for o, c, a, d in product(range(len(bias)), range(len(image)), range(k), range(k)):
        if transposed:
            for i, j in product(range(height), range(width)):
                y, x = i * stride - pad + a, j * stride - pad + d
                if 0 <= y < rows and 0 <= x < columns:
                    out[o][y][x] += weight[c][o][a][d] * image[c][i][j]
        else:
            for y, x in product(range(rows), range(columns)):
                i, j = y * stride - pad + a, x * stride - pad + d
                if 0 <= i < height and 0 <= j < width:
                    out[o][y][x] += weight[o][c][a][d] * image[c][i][j]
    return out


def naive_regression(regressor: ConvRegressor, student: Tensor, norm: bool, relu: bool) -> list:
    maps = [naive_conv(image, regressor) for image in student.tolist()]
    for c in range(len(maps[0])):
        values = [v for image in maps for row in image[c] for v in row]
        mean = sum(values) / len(values)
        scale = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        for image in maps:
            normed = [[(v - mean) / scale for v in row] for row in image[c]] if norm else image[c]
            image[c] = [[max(0.0, v) for v in row] for row in normed] if relu else normed
    return maps


def naive_hint(regressed: list, teacher: Tensor) -> float:
    flat = torch.tensor(regressed, dtype=torch.float64).flatten().tolist()
    squares = [(r - t) ** 2 for r, t in zip(flat, teacher.flatten().tolist(), strict=True)]
    return sum(squares) / len(squares)


def maps_of(b: int, *shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(b, *shape, dtype=dtype) for shape in shapes)


def spec(*maps: tuple[int, int]) -> FeatureSpec:
    """Of channels and strides."""
    return FeatureSpec(5, 8, tuple(MapSpec(f"layer{i}", *sizes) for i, sizes in enumerate(maps)))


def features(maps: tuple[Tensor, ...]) -> Features:
    b = len(maps[-1])
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), maps)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "strides", "kernel"),
    [
        ("fitnets", (1, 1), None),
        ("fitnets_down", (1, 2), None),
        ("fitnets_up", (2, 1), None),
        ("fitnets_valid", (2, 3), 3),
    ],
)
def test_repdistillers_numbers(golden, name: str, strides: tuple, kernel: int | None, dtype: torch.dtype):
    case = golden(name, dtype)
    student, teacher = case.inputs["student.map0"].requires_grad_(), case.inputs["teacher.map0"]
    specs = [spec((1, 1), (1, 1), (m.shape[1], stride)) for m, stride in zip((student, teacher), strides, strict=True)]
    method = FitNets(Setting(*specs), kernel=kernel).to(dtype)
    before = {
        key.removeprefix("param.regressor."): case.parameter(key) for key in case.tensors if key.startswith("param.")
    }
    missing, unexpected = method.regressor.load_state_dict(before, strict=False)
    assert (missing, unexpected) == (["bn.running_mean", "bn.running_var"], [])
    other = torch.zeros(8, 1, 1, 1, dtype=dtype)
    loss = method(features((other, other, student)), features((other, other, teacher)), batch_of(8))
    total = case.case["hyperparameters"]["beta"] * loss
    total.backward()
    case.check("out.loss.hint", loss)
    case.check("out.loss.total", total)
    case.check("out.grad.student.map0", student.grad)
    for key, parameter in method.regressor.named_parameters():
        case.check(f"out.grad.regressor.{key}", parameter.grad)
    for key in ("bn.running_mean", "bn.running_var"):
        case.check(f"out.state.regressor.{key}", method.regressor.get_buffer(key))
    case.check("out.inter.regressed", method.regressor(student))  # a second pass: the statistics move again
    assert case.all_compared()


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize(("s", "t", "strides", "kernel"), KINDS)
def test_agrees_with_a_naive_writing(s: tuple, t: tuple, strides: tuple, kernel: int | None, activation, norm):
    torch.manual_seed(s[0])
    student, teacher = maps_of(2, s, t)
    setting = Setting(spec((s[0], strides[0])), spec((7, 1), (t[0], strides[1])))
    method = FitNets(setting, layer=0, teacher_layer=1, kernel=kernel, activation=activation, norm=norm).double()
    found = method(features((student,)), features((torch.zeros(2, 7, 4, 4), teacher)), batch_of(2))
    regressed = naive_regression(method.regressor, student, norm == "batch", activation == "relu")
    assert found.item() == pytest.approx(naive_hint(regressed, teacher), rel=1e-9)


def test_the_regressors_kinds():
    def kind(ours: int, theirs: int, kernel: int | None = None) -> tuple:
        conv = ConvRegressor(MapSpec("a", 2, ours), MapSpec("b", 3, theirs), kernel).conv
        return type(conv).__name__, conv.kernel_size[0], conv.stride[0], conv.padding[0]

    assert kind(4, 4) == ("Conv2d", 1, 1, 0)
    assert kind(4, 8) == ("Conv2d", 3, 2, 1)
    assert kind(8, 4) == ("ConvTranspose2d", 4, 2, 1)
    assert kind(2, 8, 13) == ("Conv2d", 13, 1, 0)
    bare = ConvRegressor(MapSpec("a", 2, 1), MapSpec("b", 3, 1), activation="none", norm="none")
    assert {name: tuple(p.shape) for name, p in bare.named_parameters()} == {
        "conv.weight": (3, 2, 1, 1),
        "conv.bias": (3,),
    }


def test_only_without_relu_a_negative_target_can_be_reached():
    target = -torch.ones(2, 3, 2, 2, dtype=torch.float64)
    for activation, expected in (("relu", 1.0), ("none", 0.0)):
        regressor = ConvRegressor(MapSpec("a", 2, 1), MapSpec("b", 3, 1), activation=activation, norm="none").double()
        with torch.no_grad():
            regressor.conv.weight.zero_()
            regressor.conv.bias.fill_(-1)
        assert hint(regressor(torch.ones(2, 2, 2, 2, dtype=torch.float64)), target).item() == expected


def test_the_parameters_that_the_card_counts():
    stages = spec((32, 1), (64, 1), (128, 2), (256, 4))  # of both ResNet32x4 and ResNet8x4, the stem first
    assert sum(p.numel() for p in FitNets(Setting(stages, stages)).parameters()) == 16_768


def test_the_state_is_the_regressors():
    method = FitNets(Setting(spec((2, 1)), spec((3, 1))), layer=0).double()
    student, teacher = maps_of(2, (2, 4, 4), (3, 4, 4))
    method(features((student,)), features((teacher,)), batch_of(2))
    again = FitNets(Setting(spec((2, 1)), spec((3, 1))), layer=0).double()
    again.load_state_dict(method.state_dict())
    expected = method.eval()(features((student,)), features((teacher,)), batch_of(2))
    assert torch.equal(again.eval()(features((student,)), features((teacher,)), batch_of(2)), expected)
    assert method.regressor.bn.running_mean.any()


def test_zero_maps_give_numbers():
    method = FitNets(Setting(spec((2, 1)), spec((3, 1))), layer=0)
    student = torch.zeros(2, 2, 4, 4, requires_grad=True)
    loss = method(features((student,)), features((torch.zeros(2, 3, 4, 4),)), batch_of(2))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)  # behind the batch norm a constant is nothing
    for tensor in (student, *method.parameters()):
        assert tensor.grad.isfinite().all()


def test_half_precision_maps_are_computed_in_full():
    regressed, teacher = (m.bfloat16() for m in maps_of(2, (3, 4, 4), (3, 4, 4)))
    loss = hint(regressed, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, hint(regressed.float(), teacher.float()))


def test_no_gradient_reaches_the_teacher():
    torch.manual_seed(0)
    method = FitNets(Setting(spec((2, 1)), spec((3, 1))), layer=0).double()
    student, teacher = (m.requires_grad_() for m in maps_of(2, (2, 4, 4), (3, 4, 4)))
    method(features((student,)), features((teacher,)), batch_of(2)).backward()
    assert teacher.grad is None
    assert student.grad.any()
    assert method.regressor.conv.weight.grad.any()


@pytest.mark.parametrize(("s", "t", "strides", "kernel"), KINDS)
def test_in_one_graph(s: tuple, t: tuple, strides: tuple, kernel: int | None):
    torch.manual_seed(0)
    method = FitNets(Setting(spec((s[0], strides[0])), spec((t[0], strides[1]))), layer=0, kernel=kernel)
    student, teacher = maps_of(2, s, t, dtype=torch.float32)

    def loss(ours: Tensor, theirs: Tensor) -> Tensor:
        return method(features((ours,)), features((theirs,)), batch_of(2))

    inputs = [student.clone().requires_grad_() for _ in range(2)]
    eager = loss(inputs[0], teacher)
    eager.backward()  # before another pass moves the batch norm's statistics
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], teacher)
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch._dynamo.reset()


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"fitnets compares maps of one shape, but the student's are \(1, 2, 3, 3\)"):
        hint(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 4))
    two, three = spec((2, 1), (2, 2)), spec((2, 1), (2, 2), (2, 4))
    with pytest.raises(
        NetworkError, match=r"student's map 2, .* shows 2 \(layer0, layer1\)\. Set layer to one of them"
    ):
        FitNets(Setting(two, three))
    with pytest.raises(NetworkError, match=r"teacher's map 3, .* shows 3 .*Set teacher_layer .*teacher\.taps\.maps"):
        FitNets(Setting(two, three), layer=1, teacher_layer=3)
    with pytest.raises(NetworkError, match=r"student's map -1, counted from 0, but it shows 0\. Set layer"):
        FitNets(Setting(spec(), three), layer=-1)
    with pytest.raises(
        NetworkError, match=r"layer0 covers 1 of the image's and one of the teacher's layer2 4\. Name oth"
    ):
        FitNets(Setting(two, three), layer=0, teacher_layer=2)
    with pytest.raises(RecipeError, match="kernel of fitnets is 0; expected 1 or more"):
        FitNets(Setting(two, three), layer=1, kernel=0)
    with pytest.raises(RecipeError, match="fitnets learns from a teacher, and there is none"):
        FitNets(Setting(three))
    with pytest.raises(RecipeError, match="fitnets learns from a teacher, and there is none"):
        FitNets(Setting(two, two), layer=0)(features((torch.ones(2, 2, 2, 2),)), None, batch_of(2))
