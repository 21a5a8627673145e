"""FT against RepDistiller's numbers, a naive second writing of losses and modules, its two phases, and its edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ft import FT, Paraphraser, Translator, ft, reconstruction
from potstill.networks.features import Features, FeatureSpec, MapSpec

# Batch, then channels, height and width of the student's factor and of the teacher's.
SHAPES = [
    (2, (3, 4, 6), (3, 4, 6)),  # not square
    (2, (5, 4, 6), (5, 2, 3)),  # larger
    (3, (4, 2, 3), (4, 6, 6)),  # smaller
    (2, (2, 4, 3), (2, 2, 6)),  # taller, but not as broad
    (1, (2, 1, 1), (2, 1, 1)),
]
VARIANTS = pytest.mark.parametrize("variant", ["code", "paper"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


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


def naive_ft(student: Tensor, teacher: Tensor, variant: str) -> float:
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total, count = 0.0, 0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        vectors = []
        for image in (one, other):
            channels = [averaged(channel, height, width) for channel in image]
            if variant == "code":
                values = [sum(v * v for v in position) / len(channels) for position in zip(*channels, strict=True)]
            else:
                values = [v for channel in channels for v in channel]
            vectors.append(unit(values))
        total += sum(abs(a - b) for a, b in zip(*vectors, strict=True))
        count += len(vectors[0])
    return total / count


def layer_by_layer(modules: nn.Sequential, x: Tensor, norm: bool, transposed: bool) -> Tensor:
    """Three blocks of convolution, perhaps batch norm by hand, and a leaky ReLU by hand."""
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 3
    for conv in convolutions:
        if transposed:  # a transposed convolution of stride 1 is one with the kernel turned round
            x = F.conv2d(x, conv.weight.transpose(0, 1).flip(2, 3), conv.bias, padding=1)
        else:
            x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        if norm:
            mean, square = x.mean((0, 2, 3), keepdim=True), x.square().mean((0, 2, 3), keepdim=True)
            x = (x - mean) / (square - mean**2 + 1e-5).sqrt()
        x = torch.where(x > 0, x, x / 10)
    return x


def maps_of(b: int, *shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(b, *shape, dtype=dtype) for shape in shapes)


def setting(student: int, teacher: int) -> Setting:
    """The last maps' channels; a stem before."""
    specs = [FeatureSpec(5, 8, (MapSpec("stem", 3, 1), MapSpec("end", channels, 4))) for channels in (student, teacher)]
    return Setting(*specs)


def features(last: Tensor) -> Features:
    b = len(last)
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), (torch.zeros(b, 3, 1, 1), last))


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def load(case, module: nn.Module, name: str) -> None:
    """The case's parameters of one module, all of them; buffers of the batch norms stay as they are made."""
    prefix = f"param.{name}."
    stored = {key.removeprefix(prefix): case.parameter(key) for key in case.tensors if key.startswith(prefix)}
    missing, unexpected = module.load_state_dict(stored, strict=False)
    assert not unexpected
    assert all("running" in key for key in missing)


@DTYPES
@pytest.mark.parametrize("name", ["ft", "ft_resize"])
def test_repdistillers_numbers(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    student, teacher = case.inputs["student.map0"].requires_grad_(), case.inputs["teacher.map0"]
    method = FT(setting(student.shape[1], teacher.shape[1]), rate=case.case["hyperparameters"]["k"]).to(dtype).train()
    load(case, method.paraphraser, "paraphraser")
    load(case, method.translator, "translator")
    loss = method(features(student), features(teacher), batch_of(len(student)))
    total = case.case["hyperparameters"]["beta"] * loss
    total.backward()
    case.check("out.loss.ft", loss)
    case.check("out.loss.total", total)
    case.check("out.grad.student.map0", student.grad)
    for key, parameter in method.translator.named_parameters():
        case.check(f"out.grad.translator.{key}", parameter.grad)
    for key, buffer in method.translator.named_buffers():
        if "running" in key:
            case.check(f"out.state.translator.{key}", buffer)
    assert all(p.grad is None for p in method.paraphraser.parameters())
    case.check("out.inter.factor_s", method.translator(student))  # a second pass: the statistics move again
    case.check("out.inter.factor_t", method.paraphraser.encoder(teacher))
    assert case.all_compared()


@DTYPES
def test_repdistillers_numbers_of_the_first_phase(golden, dtype: torch.dtype):
    case = golden("ft_paraphraser_pretrain", dtype)
    teacher = case.inputs["teacher.map0"].requires_grad_()
    method = FT(setting(3, teacher.shape[1]), rate=case.case["hyperparameters"]["k"]).to(dtype)
    load(case, method.paraphraser, "paraphraser")
    method.paraphraser.requires_grad_(True)
    loss = method.train().pretraining_loss(features(teacher))
    loss.backward()
    case.check("out.loss.reconstruction", loss)
    case.check("out.loss.total", loss)
    case.check("out.inter.reconstruction", method.paraphraser(teacher))
    for key, parameter in method.paraphraser.named_parameters():
        case.check(f"out.grad.paraphraser.{key}", parameter.grad)
    assert teacher.grad is None
    assert all(p.grad is None for p in method.translator.parameters())
    assert case.all_compared()


@VARIANTS
@pytest.mark.parametrize(("b", "s", "t"), SHAPES)
def test_agrees_with_a_naive_writing(b: int, s: tuple, t: tuple, variant: str):
    torch.manual_seed(b + s[0])
    student, teacher = maps_of(b, s, t)
    assert ft(student, teacher, variant).item() == pytest.approx(naive_ft(student, teacher, variant), rel=1e-9)


@VARIANTS
@pytest.mark.parametrize(("s", "t"), [((3, 4, 6), (6, 4, 6)), ((9, 4, 4), (5, 2, 2))])
def test_the_method_is_the_loss_of_its_factors(s: tuple, t: tuple, variant: str):
    torch.manual_seed(s[0])
    student, teacher = maps_of(2, s, t)
    method = FT(setting(s[0], t[0]), variant=variant).double()
    ours = layer_by_layer(method.translator.encoder, student, norm=True, transposed=False)
    theirs = layer_by_layer(method.paraphraser.encoder, teacher, norm=False, transposed=False)
    assert ours.shape[1] == theirs.shape[1] == t[0] // 2
    found = method(features(student), features(teacher), batch_of(2))
    assert found.item() == pytest.approx(naive_ft(ours, theirs, variant), rel=1e-8)
    rebuilt = layer_by_layer(method.paraphraser.decoder, theirs, norm=False, transposed=True)
    squares = [(a - b) ** 2 for a, b in zip(rebuilt.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert method.pretraining_loss(features(teacher)).item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)


@VARIANTS
def test_the_scale_of_a_factor_does_not_count(variant: str):
    torch.manual_seed(0)
    student, teacher = maps_of(3, (3, 4, 4), (3, 4, 4))
    loss = ft(student, teacher, variant)
    assert loss.item() > 0.01
    torch.testing.assert_close(ft(1e-4 * student, 50 * teacher, variant), loss)
    assert ft(student, 3 * student, variant).item() == pytest.approx(0, abs=1e-12)
    turned = ft(student, -student, variant).item()  # attention sees no signs
    assert turned > 0.1 if variant == "paper" else turned == pytest.approx(0, abs=1e-12)


def test_the_paraphraser_trains_in_its_phase_only():
    torch.manual_seed(0)
    method = FT(setting(3, 6)).train()
    student, teacher = (features(m) for m in maps_of(4, (3, 4, 4), (6, 4, 4), dtype=torch.float32))
    assert method.pretrains == ("paraphraser",)

    def open_parameters() -> set[str]:
        return {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad}

    assert open_parameters() == {"translator"}
    assert not method.paraphraser.training
    (paraphraser,) = (method.get_submodule(name).requires_grad_(True) for name in method.pretrains)
    assert method.train().paraphraser.training
    optimizer = torch.optim.SGD(paraphraser.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = method.pretraining_loss(teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    paraphraser.requires_grad_(False)
    assert not method.train().paraphraser.training
    assert method.translator.training
    before = {key: value.clone() for key, value in method.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    method(student, teacher, batch_of(4)).backward()
    optimizer.step()
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("translator.")}


def test_the_state_has_the_paraphraser():
    torch.manual_seed(0)
    method, again = FT(setting(3, 6)), FT(setting(3, 6))
    student, teacher = (features(m) for m in maps_of(4, (3, 4, 4), (6, 4, 4), dtype=torch.float32))
    loss = method(student, teacher, batch_of(4))
    assert not torch.equal(again(student, teacher, batch_of(4)), loss)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again(student, teacher, batch_of(4)), loss)
    assert torch.equal(again.pretraining_loss(teacher), method.pretraining_loss(teacher))


def test_the_factors_channels_are_rounded_down():
    method = FT(setting(4, 7), rate=0.5)
    assert method.paraphraser.encoder[6].weight.shape == (3, 3, 3, 3)
    assert method.translator.encoder[6].weight.shape == (3, 3, 3, 3)
    assert Translator(4, 3)(torch.zeros(2, 4, 5, 6)).shape == (2, 3, 5, 6)
    assert Paraphraser(7, 3)(torch.zeros(2, 7, 5, 6)).shape == (2, 7, 5, 6)


def test_the_parameters_that_the_card_counts():
    method = FT(setting(256, 256))  # ResNet32x4 -> ResNet8x4
    assert sum(p.numel() for p in method.paraphraser.parameters()) == 2_065_536
    assert sum(p.numel() for p in method.translator.parameters()) == 1_033_728


@VARIANTS
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_factors_give_numbers(zero: str, variant: str):
    student, teacher = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    student.requires_grad_()
    loss = ft(student, teacher, variant)
    loss.backward()
    assert student.grad.isfinite().all()
    count = 4 if variant == "code" else 12
    assert loss.item() == pytest.approx(0 if zero == "both" else 1 / math.sqrt(count))


def test_zero_maps_give_numbers():
    method = FT(setting(3, 6))
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = method(features(student), features(torch.zeros(2, 6, 4, 4)), batch_of(2))
    loss.backward()
    assert loss.isfinite()
    for tensor in (student, *method.translator.parameters()):
        assert tensor.grad.isfinite().all()


@VARIANTS
def test_half_precision_factors_are_computed_in_full(variant: str):
    student, teacher = (m.bfloat16() for m in maps_of(2, (3, 4, 4), (3, 2, 2)))
    loss = ft(student, teacher, variant)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ft(student.float(), teacher.float(), variant))
    assert torch.equal(reconstruction(student, student.half()), torch.tensor(0.0))


def test_no_gradient_reaches_the_teacher():
    torch.manual_seed(0)
    method = FT(setting(3, 6)).double()
    student, teacher = (m.requires_grad_() for m in maps_of(2, (3, 4, 4), (6, 4, 4)))
    method.paraphraser.requires_grad_(True)  # not even where the phase was left open
    method(features(student), features(teacher), batch_of(2)).backward()
    assert teacher.grad is None
    assert all(p.grad is None for p in method.paraphraser.parameters())
    assert student.grad.any()
    factor = teacher.detach()[:, :3].clone().requires_grad_()
    ft(student, factor).backward()
    assert factor.grad is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        reconstruction(torch.zeros(2, 6, 4, 4), teacher).backward()


@VARIANTS
def test_in_one_graph(variant: str):
    torch.manual_seed(0)
    method = FT(setting(3, 6), variant=variant)
    student, teacher = maps_of(2, (3, 8, 6), (6, 4, 3), dtype=torch.float32)

    def loss(ours: Tensor, theirs: Tensor) -> Tensor:
        return method(features(ours), features(theirs), batch_of(2))

    inputs = [student.clone().requires_grad_() for _ in range(2)]
    eager = loss(inputs[0], teacher)
    eager.backward()  # before another pass moves the batch norm's statistics
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], teacher)
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    first = torch.compile(
        lambda m: method.pretraining_loss(features(m)), fullgraph=True, backend="aot_eager", dynamic=False
    )
    torch.testing.assert_close(first(teacher), method.pretraining_loss(features(teacher)))
    torch._dynamo.reset()


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"ft compares factors of one shape.*\(1, 2, 3, 3\).*\(1, 3, 3, 3\)"):
        ft(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3, 3))
    with pytest.raises(NetworkError, match=r"ft compares maps of one shape"):
        reconstruction(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3, 3))
    bare = FeatureSpec(5, 4)
    with pytest.raises(NetworkError, match=r"but the teacher shows none; name it in teacher\.taps\.maps"):
        FT(Setting(setting(3, 6).student, bare))
    with pytest.raises(NetworkError, match=r"but the student shows none; name it in student\.taps\.maps"):
        FT(Setting(bare, setting(3, 6).student))
    for wrong in (0.0, -1.0, 0.1, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"rate of ft is .*no factor of the teacher's 6 channels"):
            FT(setting(3, 6), rate=wrong)
    with pytest.raises(RecipeError, match="ft learns from a teacher, and there is none"):
        FT(Setting(bare))
    with pytest.raises(RecipeError, match="ft learns from a teacher, and there is none"):
        FT(setting(3, 6))(features(torch.ones(2, 3, 2, 2)), None, batch_of(2))
