"""The projector ensemble against q plain stacks of ``nn.Linear``, and the number of matrix products it takes."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.errors import NetworkError, RecipeError
from potstill.projectors import Activation, Init, ProjectorEnsemble, inits
from potstill.projectors import ensemble as module

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.matmul, aten.linear}
PLAIN = {"relu": nn.ReLU, "gelu": nn.GELU, "none": nn.Identity}


class CountProducts(TorchDispatchMode):
    """Counts what reaches the matrix-product kernels."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


def plain_projectors(d: int, m: int, q: int, depth: int, width: int, bias: bool) -> list[list[nn.Linear]]:
    """What the papers' tables describe, in the slowest way there is."""
    units = [d, *[width * m] * (depth - 1), m]
    return [[nn.Linear(units[i], units[i + 1], bias=bias) for i in range(depth)] for _ in range(q)]


def plain_forward(projectors: list[list[nn.Linear]], activation: str, s: Tensor) -> Tensor:
    total = 0
    for layers in projectors:
        out = s
        for layer in layers:
            out = PLAIN[activation]()(layer(out))
        total = total + out
    return total / len(projectors)


def products(q: int, depth: int, backward: bool = False) -> int:
    ensemble = ProjectorEnsemble(6, 5, projectors=q, depth=depth)
    embedding = torch.randn(4, 6, requires_grad=True)
    with CountProducts() as counter:
        out = ensemble(embedding)
        if backward:
            out.sum().backward()
    return counter.count


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_eight_projectors_take_as_many_matrix_products_as_one(depth: int):
    assert products(q=1, depth=depth) == products(q=8, depth=depth) == depth


@pytest.mark.parametrize("depth", [1, 3])
def test_the_way_back_too_does_not_depend_on_the_number_of_projectors(depth: int):
    assert products(q=1, depth=depth, backward=True) == products(q=8, depth=depth, backward=True) == 3 * depth


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("depth", "width"), [(1, 1), (2, 1), (3, 2)])
def test_the_default_start_is_that_of_linear_layers_made_one_after_another(depth: int, width: int, bias: bool):
    torch.manual_seed(5)
    plain = plain_projectors(7, 9, 4, depth, width, bias)
    after = torch.rand(1)
    torch.manual_seed(5)
    ensemble = ProjectorEnsemble(7, 9, projectors=4, depth=depth, width=width, bias=bias)
    assert torch.equal(torch.rand(1), after)  # no draw more, no draw less
    for k, layers in enumerate(plain):
        for (weight, offset), linear in zip(ensemble.projector(k), layers, strict=True):
            assert torch.equal(weight, linear.weight)
            assert offset is None if linear.bias is None else torch.equal(offset, linear.bias)


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 9),
    m=st.integers(1, 9),
    q=st.integers(1, 5),
    shape=st.sampled_from([(1, 1), (2, 1), (2, 3), (3, 1)]),
    activation=st.sampled_from(get_args(Activation)),
    bias=st.booleans(),
    lead=st.sampled_from([(), (2,), (5,), (0,), (2, 3), (2, 0, 3)]),
    seed=st.integers(0, 9),
)
def test_values_and_gradients_are_those_of_plain_projectors(d, m, q, shape, activation, bias, lead, seed):
    depth, width = shape
    torch.manual_seed(seed)
    plain = [[layer.double() for layer in layers] for layers in plain_projectors(d, m, q, depth, width, bias)]
    ensemble = ProjectorEnsemble(d, m, q, depth, width, activation, bias).double()
    ensemble.load_projectors([[(layer.weight, layer.bias) for layer in layers] for layers in plain])
    one, two = (torch.randn(*lead, d, dtype=torch.float64).requires_grad_() for _ in range(2))
    two.data.copy_(one.data)
    pull = torch.randn(*lead, m, dtype=torch.float64)
    got, expected = ensemble(one), plain_forward(plain, activation, two)
    assert got.shape == (*lead, m)
    torch.testing.assert_close(got, expected)
    (got * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(one.grad, two.grad)
    for k, layers in enumerate(plain):
        for i, layer in enumerate(layers):
            torch.testing.assert_close(getattr(ensemble, f"weight_{i}").grad[k], layer.weight.grad)
            if bias:
                torch.testing.assert_close(getattr(ensemble, f"bias_{i}").grad[k], layer.bias.grad)


@pytest.mark.parametrize(
    ("student", "teacher", "count"),
    [
        (256, 256, 197_376),
        (512, 512, 787_968),
        (2048, 1024, 6_294_528),
        (512, 1920, 2_954_880),
        (1024, 2048, 6_297_600),
    ],
)
def test_parameters_of_the_papers_pairs(student: int, teacher: int, count: int):
    with torch.device("meta"):
        ensemble = ProjectorEnsemble(student, teacher)
    assert sum(p.numel() for p in ensemble.parameters()) == count


def test_hidden_layers_are_a_multiple_of_the_teachers_dimension():
    ensemble = ProjectorEnsemble(10, 12, projectors=3, depth=3, width=2)
    assert {name: tuple(p.shape) for name, p in ensemble.named_parameters()} == {
        "weight_0": (3, 24, 10),
        "bias_0": (3, 24),
        "weight_1": (3, 24, 24),
        "bias_1": (3, 24),
        "weight_2": (3, 12, 24),
        "bias_2": (3, 12),
    }


def test_the_mean_is_taken_after_the_activation():
    ensemble = ProjectorEnsemble(1, 1, projectors=2)
    ensemble.load_projectors([[(torch.tensor([[1.0]]), torch.zeros(1))], [(torch.tensor([[-1.0]]), torch.zeros(1))]])
    assert ensemble(torch.tensor([[3.0]])).item() == 1.5  # before it, the two would cancel


def test_without_activation_the_ensemble_is_one_linear_map():
    ensemble = ProjectorEnsemble(4, 6, projectors=3, activation="none")
    x = torch.randn(5, 4)
    torch.testing.assert_close(ensemble(x), x @ ensemble.weight_0.mean(0).T + ensemble.bias_0.mean(0))


def test_no_projectors_is_the_embedding_itself():
    ensemble = ProjectorEnsemble(8, 8, projectors=0)
    x = torch.randn(3, 8)
    assert ensemble(x) is x
    assert not list(ensemble.parameters())


def test_orthogonal_start():
    ensemble = ProjectorEnsemble(6, 10, projectors=2, init="orthogonal")
    for k in range(2):
        ((weight, bias),) = ensemble.projector(k)
        torch.testing.assert_close(weight.T @ weight, torch.eye(6), atol=1e-5, rtol=0)
        assert not bias.any()
    assert not torch.equal(ensemble.weight_0[0], ensemble.weight_0[1])


def test_every_named_choice_has_what_it_names():
    assert tuple(module._ACTIVATIONS) == get_args(Activation)
    assert {*inits._DRAWS, "mixed"} == set(get_args(Init))


@pytest.mark.parametrize("q", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("depth", "width"), [(1, 1), *[(depth, width) for depth in (2, 3, 4) for width in (1, 2, 3)]])
def test_every_size_is_that_of_plain_projectors(q: int, depth: int, width: int):
    torch.manual_seed(q)
    plain = plain_projectors(5, 4, q, depth, width, bias=True)
    ensemble = ProjectorEnsemble(5, 4, q, depth, width)
    ensemble.load_projectors([[(layer.weight, layer.bias) for layer in layers] for layers in plain])
    x = torch.randn(3, 5)
    torch.testing.assert_close(ensemble(x), plain_forward(plain, "relu", x))


@pytest.mark.parametrize("depth", [1, 2])
def test_kaiming_and_xavier_starts(depth: int):
    torch.manual_seed(0)
    for init in ("kaiming", "xavier"):
        ensemble = ProjectorEnsemble(300, 200, projectors=2, depth=depth, init=init)
        for k in range(2):
            for weight, bias in ensemble.projector(k):
                rows, columns = weight.shape
                deviation = (2 / columns) ** 0.5 if init == "kaiming" else (2 / (rows + columns)) ** 0.5
                assert weight.std().item() == pytest.approx(deviation, rel=0.02)
                widest = 6**0.5 * (1 / (rows + columns)) ** 0.5
                assert (weight.abs().max() <= widest).item() == (init == "xavier")  # the normal one goes beyond
                assert not bias.any()
        assert not torch.equal(*ensemble.weight_0)


@pytest.mark.parametrize(("q", "factors"), [(1, [1]), (2, [0.5, 2]), (3, [0.5, 1, 2])])
@pytest.mark.parametrize("bias", [True, False])
def test_the_scaled_start_is_the_default_in_several_sizes(q: int, factors: list[float], bias: bool):
    made = []
    for init in ("default", "scaled"):
        torch.manual_seed(3)
        made.append(ProjectorEnsemble(4, 6, projectors=q, depth=2, bias=bias, init=init))
    default, scaled = made
    assert torch.equal(scaled.weight_0, default.weight_0)
    for k, factor in enumerate(factors):
        for (weight, offset), (plain, plain_offset) in zip(
            scaled.projector(k)[1:], default.projector(k)[1:], strict=True
        ):
            assert torch.equal(weight, factor * plain)
            assert offset is None if not bias else torch.equal(offset, factor * plain_offset)


def test_the_mixed_start_takes_turns():
    torch.manual_seed(4)
    ensemble = ProjectorEnsemble(50, 50, projectors=5, init="mixed")
    weights, biases = zip(*(ensemble.projector(k)[0] for k in range(5)), strict=True)
    assert [bool(bias.any()) for bias in biases] == [True, False, False, False, True]
    for k in (0, 4):
        assert 0.9 / 50**0.5 < weights[k].abs().max() <= 1 / 50**0.5
    torch.testing.assert_close(weights[1].T @ weights[1], torch.eye(50), atol=1e-5, rtol=0)
    assert weights[2].std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.1)
    assert 0.9 * (6 / 100) ** 0.5 < weights[3].abs().max() <= (6 / 100) ** 0.5


def off_orthonormal(ensemble: ProjectorEnsemble) -> float:
    """The largest entry by which any weight's columns, or rows where there are fewer of those, are not orthonormal."""
    worst = 0.0
    for k in range(ensemble.projectors):
        for weight, _ in ensemble.projector(k):
            short = weight if weight.shape[0] >= weight.shape[1] else weight.T
            worst = max(worst, (short.T @ short - torch.eye(short.shape[1])).abs().max().item())
    return worst


@pytest.mark.parametrize(("d", "m", "depth", "width"), [(6, 10, 1, 1), (10, 6, 1, 1), (8, 8, 1, 1), (5, 4, 3, 2)])
def test_constrained_weights_stay_orthonormal_under_any_decay(d: int, m: int, depth: int, width: int):
    torch.manual_seed(0)
    ensemble = ProjectorEnsemble(d, m, 3, depth, width, activation="none", constraint="orthogonal")
    assert off_orthonormal(ensemble) < 1e-5
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    x, target = torch.randn(32, d), torch.randn(32, m)
    before = [weight.clone() for weight in ensemble.weights()]
    for _ in range(30):
        optimizer.zero_grad()
        (ensemble(x) - target).square().mean().backward()
        optimizer.step()
        assert off_orthonormal(ensemble) < 1e-5
    assert all((a - b).abs().max() > 0.05 for a, b in zip(before, ensemble.weights(), strict=True))
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.zero_()  # where decay ends
    assert off_orthonormal(ensemble) < 1e-5


@pytest.mark.parametrize(("d", "m"), [(3, 7), (7, 3), (5, 5)])
def test_a_constrained_projector_learns_an_orthonormal_map(d: int, m: int):
    torch.manual_seed(1)
    wanted = nn.init.orthogonal_(torch.empty(m, d))
    ensemble = ProjectorEnsemble(d, m, 1, activation="none", bias=False, constraint="orthogonal")
    if d == m:  # rotations and reflections are apart: start among the wanted kind
        side = torch.linalg.det(wanted) * torch.linalg.det(ensemble.weights()[0][0])
        wanted[0] *= side.sign().item()
    x = torch.randn(64, d)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=0.05)
    losses = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = (ensemble(x) - x @ wanted.T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.1
    assert losses[-1] < 0.02 * losses[0]


@pytest.mark.parametrize(("d", "m"), [(3, 5), (5, 3), (4, 4)])
def test_loading_under_a_constraint_takes_the_nearest_weights(d: int, m: int):
    torch.manual_seed(2)
    ensemble = ProjectorEnsemble(d, m, projectors=2, constraint="orthogonal")
    exact = [[(nn.init.orthogonal_(torch.empty(m, d)), torch.randn(m))] for _ in range(2)]
    ensemble.load_projectors(exact)
    for k in range(2):
        torch.testing.assert_close(ensemble.projector(k)[0][0], exact[k][0][0], atol=1e-5, rtol=0)
        assert torch.equal(ensemble.projector(k)[0][1], exact[k][0][1])
    ensemble.load_projectors([[(3 * weight, bias)] for ((weight, bias),) in exact])
    torch.testing.assert_close(ensemble.projector(1)[0][0], exact[1][0][0], atol=1e-5, rtol=0)
    with pytest.raises(NetworkError, match="Projector 0 has layers of shapes"):
        ensemble.load_projectors([[(torch.zeros(d, m + 1), torch.zeros(m))]] * 2)
    with pytest.raises(NetworkError, match=r"Orthonormal weights of shape \(2, \d, \d\) were given \(2, 1, 1\)"):
        ensemble.weight_0.load(torch.zeros(2, 1, 1))


def test_the_constraint_has_the_right_gradients_and_comes_back_from_a_state_dict():
    torch.manual_seed(3)
    one, two = (ProjectorEnsemble(3, 5, 2, constraint="orthogonal").double() for _ in range(2))
    with torch.no_grad():
        one.weight_0.free.normal_()
    two.load_state_dict(one.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(one(x), two(x))
    free = one.weight_0.free.detach().clone().requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return torch.func.functional_call(one, {"weight_0.free": values}, (x,)).square().sum()

    assert torch.autograd.gradcheck(loss, free)


def test_the_constraint_in_one_graph():
    torch._dynamo.reset()
    ensemble = ProjectorEnsemble(4, 6, depth=2, constraint="orthogonal")
    x = torch.randn(3, 4)
    compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ensemble(x))
    compiled(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ensemble.parameters())


def test_a_constraint_says_what_it_starts_with():
    torch.manual_seed(5)
    assert ProjectorEnsemble(3, 4, constraint="orthogonal").bias_0.any()
    assert not ProjectorEnsemble(3, 4, constraint="orthogonal", init="orthogonal").bias_0.any()


def test_the_state_dict_brings_the_ensemble_back():
    one, two = ProjectorEnsemble(4, 5, depth=2), ProjectorEnsemble(4, 5, depth=2)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(one(x), two(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projectors": 0}, "student's has 4 values and the teacher's 6: a projector is needed"),
        ({"projectors": -1}, "projectors is -1; give 0 for none"),
        ({"depth": 0}, "depth is 0; a projector needs at least 1"),
        ({"width": 0}, "width is 0; a projector needs at least 1"),
        ({"width": 2}, "width=2 has no effect with depth=1"),
        ({"teacher_dim": 4, "projectors": 0, "depth": 2}, "have no effect with projectors=0"),
        ({"student_dim": 0}, "student_dim is 0"),
        ({"activation": "rellu"}, "activation is 'rellu'; it is one of relu, gelu, none. Did you mean 'relu'"),
        ({"init": "xavir"}, "init is 'xavir'; it is one of default, orthogonal, .* Did you mean 'xavier'"),
        ({"constraint": "orthogonl"}, "constraint is 'orthogonl'; it is one of orthogonal. Did you mean 'orth"),
        ({"constraint": "orthogonal", "init": "scaled"}, "init='scaled' has no effect with constraint='orthogonal'"),
        ({"teacher_dim": 4, "projectors": 0, "constraint": "orthogonal"}, "has no effect with projectors=0; leave it"),
    ],
)
def test_what_makes_no_projector_is_refused(arguments: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        ProjectorEnsemble(**{"student_dim": 4, "teacher_dim": 6} | arguments)


def test_loading_refuses_what_does_not_fit():
    ensemble = ProjectorEnsemble(4, 6, projectors=2)
    fitting = [(torch.zeros(6, 4), torch.zeros(6))]
    with pytest.raises(NetworkError, match="Got 1 projectors for an ensemble of 2"):
        ensemble.load_projectors([fitting])
    with pytest.raises(NetworkError, match=r"Projector 1 has layers of shapes \[\(\(6, 4\),\)\]"):
        ensemble.load_projectors([fitting, [(torch.zeros(6, 4), None)]])
    with pytest.raises(NetworkError, match="Projector 0 has layers of shapes"):
        ensemble.load_projectors([[(torch.zeros(4, 6), torch.zeros(6))], fitting])


def test_projector_gives_values_outside_the_graph():
    ensemble = ProjectorEnsemble(4, 6)
    ((weight, bias),) = ensemble.projector(1)
    assert not weight.requires_grad
    assert not bias.requires_grad
    assert weight.data_ptr() == ensemble.weight_0[1].data_ptr()  # a view, not a copy
