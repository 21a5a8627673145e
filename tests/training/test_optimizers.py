import pytest
import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.methods import PEFD, Setting
from potstill.methods.objective import Objective
from potstill.networks.features import FeatureSpec
from potstill.projectors import ProjectorEnsemble
from potstill.training.optimizers import make_optimizer, set_rate


def test_one_decay_for_everything_by_default() -> None:
    optimizer = make_optimizer([nn.BatchNorm1d(3), ProjectorEnsemble(4, 8)])
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(4, 5e-4)]
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, False)


def test_norms_and_biases_can_be_spared_stacked_ones_too() -> None:
    ensemble = ProjectorEnsemble(4, 8)
    optimizer = make_optimizer([nn.BatchNorm1d(3), ensemble], decay_norm_and_bias=False)
    decayed, spared = (group["params"] for group in optimizer.param_groups)
    assert [tuple(p.shape) for p in decayed] == [(3, 8, 4)]
    assert sorted(tuple(p.shape) for p in spared) == [(3,), (3,), (3, 8)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]


def test_adamw() -> None:
    optimizer = make_optimizer([nn.Linear(2, 2)], name="adamw", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    assert len(make_optimizer([layer]).param_groups[0]["params"]) == 1
    layer.bias.requires_grad_(False)
    with pytest.raises(RecipeError, match="Nothing would train"):
        make_optimizer([layer])


def test_what_methods_train_of_their_own_can_have_its_own_rate_and_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    student, setting = nn.Linear(2, 2), Setting(FeatureSpec(2, 4), FeatureSpec(2, 8))
    objective = Objective(setting, {"ce": 1, "pefd": 25})
    optimizer = make_optimizer([student, objective], lr=0.1, helper_lr=2.0, helper_weight_decay=1e-2)
    found = [(len(g["params"]), g["weight_decay"], g["lr"], g["lr_factor"]) for g in optimizer.param_groups]
    assert found == [(2, 5e-4, 0.1, 1.0), (2, 1e-2, 0.2, 2.0)]
    monkeypatch.setattr(PEFD, "decays", False)
    spared = make_optimizer([student, objective], helper_weight_decay=1e-2)
    assert [(len(g["params"]), g["weight_decay"]) for g in spared.param_groups] == [(2, 5e-4), (2, 0.0)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_for_a_recording_each_group_has_a_rate_of_its_own_on_the_device(name: str) -> None:
    student, objective = (
        nn.Linear(2, 2),
        Objective(Setting(FeatureSpec(2, 4), FeatureSpec(2, 8)), {"ce": 1, "pefd": 25}),
    )
    optimizer = make_optimizer([student, objective], name=name, lr=0.1, helper_lr=2.0, recorded=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [(rate.dtype, rate.item()) for rate in rates] == [(torch.float32, pytest.approx(x)) for x in (0.1, 0.2)]
    assert all(group["fused"] for group in optimizer.param_groups)
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == rates  # the same tensors
    assert [rate.item() for rate in rates] == [0.5, 1.0]


def test_a_rate_is_a_number_elsewhere() -> None:
    optimizer = make_optimizer([nn.Linear(2, 2)], lr=0.1)
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_step_reads_the_rate_that_the_tensor_holds(name: str) -> None:
    """The rule of both, once with numbers and once with tensors."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 3), nn.Linear(3, 3)
    layers[1].load_state_dict(layers[0].state_dict())
    plain, recorded = (
        make_optimizer([layer], name=name, recorded=flag) for layer, flag in zip(layers, (False, True), strict=True)
    )
    for rate in (0.5, 0.1, 0.02):
        for layer, optimizer in zip(layers, (plain, recorded), strict=True):
            set_rate(optimizer, rate)
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-5, atol=1e-6)


def test_a_loaded_state_leaves_the_rates_where_the_parameters_are() -> None:
    optimizer = make_optimizer([nn.Linear(2, 2)], lr=0.1, recorded=True)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = torch.tensor(0.3, dtype=torch.float64)
    optimizer.load_state_dict(state)
    (group,) = optimizer.param_groups
    assert (group["lr"].dtype, group["lr"].item()) == (torch.float32, pytest.approx(0.3))
