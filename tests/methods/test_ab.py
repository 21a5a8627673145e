"""AB against the authors' numbers, a naive second writing, its connectors, and at its edges."""

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ab import AB, ab
from potstill.networks.features import Features, FeatureSpec, MapSpec

Spec = list[tuple[int, int]]  # channels and stride of each map


def naive_ab(student: list[Tensor], teacher: list[Tensor], margin: float) -> float:
    """Neuron by neuron, with the four cases as the authors' code writes them."""
    total = 0.0
    for depth, (s, t) in enumerate(zip(student, teacher, strict=True)):
        layer = 0.0
        for x, y in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
            if x > -margin and y <= 0:
                layer += (x + margin) ** 2
            if x <= margin and y > 0:
                layer += (x - margin) ** 2
        total += 2 ** (depth - len(student) + 1) * layer / len(s) / 1000 * 3
    return total


def setting(student: Spec, teacher: Spec) -> Setting:
    return Setting(
        *(
            FeatureSpec(
                5, 8, tuple(MapSpec(f"layer{i}", channels, stride) for i, (channels, stride) in enumerate(maps))
            )
            for maps in (student, teacher)
        )
    )


def features(*preacts: Tensor) -> Features:
    b = len(preacts[0])
    return Features(torch.zeros(b, 5), torch.zeros(b, 8), preacts=preacts)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_authors_numbers(golden, dtype: torch.dtype):
    case = golden("ab", dtype)
    student, teacher = ([case.inputs[f"{one}.map{i}"] for i in range(2)] for one in ("student", "teacher"))
    s, t = ([(m.shape[1], 32 // m.shape[2]) for m in maps] for maps in (student, teacher))
    method = AB(setting([(3, 4), *s], [(3, 4), *t]), margin=case.case["hyperparameters"]["margin"]).to(dtype)
    convolution, norm = method.connectors[0]
    assert not list(method.connectors[1].parameters())
    prefix = "param.connector.connectors.0."
    for module, name in ((convolution, "conv"), (norm, "bn")):
        parameters = {kind: case.parameter(f"{prefix}{name}.{kind}") for kind in ("weight", "bias")}
        module.load_state_dict({**module.state_dict(), **parameters})
    stem = torch.zeros(len(student[0]), 3, 8, 8, dtype=dtype)
    for m in student:
        m.requires_grad_()
    loss = method(features(stem, *student), features(stem, *teacher), batch_of(len(stem)))
    loss.backward()
    case.check("out.loss.total", loss)
    for name in ("running_mean", "running_var"):
        case.check(f"out.state.connector.connectors.0.bn.{name}", getattr(norm, name))
    for i in range(2):
        case.check(f"out.grad.student.map{i}", student[i].grad)
    for module, name in ((convolution, "conv"), (norm, "bn")):
        for kind in ("weight", "bias"):
            case.check(f"out.grad.connector.connectors.0.{name}.{kind}", getattr(module, kind).grad)
    # A layer alone has the weight 1, and of two the first has half of that.
    case.check("out.loss.ab0", ab([method.connectors[0](student[0])], teacher[:1]) / 2)
    case.check("out.loss.ab1", ab(student[1:], teacher[1:]))
    assert case.all_compared()


@pytest.mark.parametrize("margin", [1.0, 0.3])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_agrees_with_a_naive_writing(layers: int, margin: float):
    torch.manual_seed(layers)
    shapes = [(2, 3 + i, 4, 6 - i) for i in range(layers)]
    student, teacher = ([2 * torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    teacher[0][0, 0] = 0  # neither on nor off counts as off
    student[0][0, 1], student[0][0, 2] = margin, -margin
    assert ab(student, teacher, margin).item() == pytest.approx(naive_ab(student, teacher, margin), rel=1e-9)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: ab([x], [teacher], margin=0.7), student.requires_grad_())


def test_only_signs_of_the_teacher_count_and_a_student_beyond_the_margin_is_done():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(ab([student], [teacher]), ab([student], [teacher.sign()]))
    assert ab([teacher.sign()], [teacher]).item() == 0
    assert ab([5 * teacher.sign()], [teacher]).item() == 0
    assert ab([-teacher.sign()], [teacher]).item() == pytest.approx(4 * 48 * 3 / 1000)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "sizes"),
    [
        ((4, 8), (6, 8), nn.Conv2d, ((4, 6), (4, 6))),  # narrower
        ((6, 8), (4, 8), nn.Conv2d, ((4, 6), (4, 6))),  # wider
        ((4, 4), (6, 8), nn.Conv2d, ((8, 12), (4, 6))),  # larger
        ((4, 4), (6, 8), nn.Conv2d, ((7, 11), (4, 6))),  # larger, and odd
        ((4, 16), (4, 8), nn.ConvTranspose2d, ((2, 3), (4, 6))),  # smaller
    ],
)
def test_connectors_lead_to_the_teachers_shape(student, teacher, kind, sizes):
    torch.manual_seed(0)
    method = AB(setting([(3, 1), student], [(3, 1), teacher]), margin=0.5).double()
    assert isinstance(method.connectors[0][0], kind)
    s, t = (
        torch.randn(2, c, *size, dtype=torch.float64) for (c, _), size in zip((student, teacher), sizes, strict=True)
    )
    stem = torch.zeros(2, 3, 8, 8)
    loss = method(features(stem, s.requires_grad_()), features(stem, t), batch_of(2))
    assert loss.item() == pytest.approx(naive_ab([method.connectors[0](s)], [t], 0.5), rel=1e-9)
    loss.backward()
    assert s.grad.any()
    connected = method.connectors[0](s).detach()  # normalised over the batch
    torch.testing.assert_close(connected.mean((0, 2, 3)), torch.zeros(teacher[0], dtype=torch.float64))


def test_equal_maps_need_no_connector_and_pairs_can_be_named():
    method = AB(setting([(3, 1), (4, 2)], [(3, 1), (8, 2), (4, 2)]), layers=((1, 2),))
    assert not method.state_dict()
    student, teacher = ([torch.randn(2, c, 4, 4) for c in channels] for channels in ((3, 4), (3, 8, 4)))
    loss = method(features(*student), features(*teacher), batch_of(2))
    assert torch.equal(loss, ab([student[1]], [teacher[2]]))


def test_zero_maps_give_numbers():
    method = AB(setting([(3, 1), (4, 2)], [(3, 1), (6, 2)]))
    zeros = [torch.zeros(2, c, 4, 4, requires_grad=True) for c in (3, 4)]
    loss = method(features(*zeros), features(torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 4, 4)), batch_of(2))
    loss.backward()
    # Every neuron lacks the margin, but for what the batch norm makes of rounding.
    assert loss.item() == pytest.approx(6 * 16 * 3 / 1000, rel=1e-4)
    for tensor in (zeros[1], *method.parameters()):
        assert tensor.grad.isfinite().all()


def test_half_precision_maps_are_computed_in_full():
    student, teacher = (100 * torch.randn(4, 64, 8, 8).half() for _ in range(2))
    loss = ab([student], [teacher])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ab([student.float()], [teacher.float()]))
    assert loss.item() > torch.finfo(torch.float16).max * 3 / 1000  # the sum would not fit


def test_no_gradient_reaches_the_teacher():
    method = AB(setting([(3, 1), (4, 2)], [(3, 1), (6, 2)]))
    student, teacher = (
        [torch.randn(2, c, 4, 4, requires_grad=True) for c in channels] for channels in ((3, 4), (3, 6))
    )
    method(features(*student), features(*teacher), batch_of(2)).backward()
    assert [m.grad for m in teacher] == [None, None]
    assert student[1].grad.any()


def test_in_one_graph():
    torch.manual_seed(0)
    method = AB(setting([(3, 1), (4, 2), (8, 4)], [(3, 1), (6, 2), (8, 4)]))
    student = [torch.randn(2, c, 4, 6) for c in (3, 4, 8)]
    teacher = [torch.randn(2, c, 4, 6) for c in (3, 6, 8)]

    def loss(s: list[Tensor], t: list[Tensor]) -> Tensor:
        return method(features(*s), features(*t), batch_of(2))

    inputs = [[m.clone().requires_grad_() for m in student] for _ in range(2)]
    eager = loss(inputs[0], teacher)
    eager.backward()  # before the batch norm's statistics move on
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)(inputs[1], teacher)
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    for one, other in zip(inputs[0][1:], inputs[1][1:], strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    torch._dynamo.reset()


def test_what_is_refused():
    x = torch.ones(1, 2, 3, 3)
    with pytest.raises(NetworkError, match=r"ab compares maps of one shape, but the student's are \(1, 2, 3, 3\)"):
        ab([x], [x[..., :2]])
    with pytest.raises(NetworkError, match="student has 1 and the teacher 2; give both the same number"):
        ab([x], [x, x])
    with pytest.raises(NetworkError, match="student has 0 and the teacher 0"):
        ab([], [])
    with pytest.raises(NetworkError, match=r"ab compares the ends of the stages one by one.*2 maps.*3 maps"):
        AB(setting([(3, 1)] * 2, [(3, 1)] * 3))
    with pytest.raises(
        NetworkError, match=r"student's layer1 covers 2 of the image's and one of the teacher's layer1 8"
    ):
        AB(setting([(3, 1), (4, 2)], [(3, 1), (4, 8)]))
    with pytest.raises(RecipeError, match=r"layers of ab has the pair \[2, 0\]"):
        AB(setting([(3, 1)] * 2, [(3, 1)] * 2), layers=((2, 0),))
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"margin of ab is .*; expected a positive number"):
            AB(setting([(3, 1)] * 2, [(3, 1)] * 2), margin=wrong)
    with pytest.raises(RecipeError, match="ab learns from a teacher, and there is none"):
        AB(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="ab learns from a teacher, and there is none"):
        AB(setting([(3, 1)] * 2, [(3, 1)] * 2))(features(x, x), None, batch_of(1))
