"""The projector ensemble against q plain stacks of ``nn.Linear``, and the number of matrix products it takes."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from potstill import projectors as module
from potstill.errors import NetworkError, RecipeError
from potstill.projectors import Activation, Init, ProjectorEnsemble

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
    assert tuple(module._INITS) == get_args(Init)


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
        ({"init": "xavier"}, "init is 'xavier'; it is one of default, orthogonal"),
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
