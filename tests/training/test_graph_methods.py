"""Every method's step in a recording: bit for bit the step itself, or refused by name."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods import test_all as ALL
from tests.training.tape import Tape, tensors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation
from potstill.errors import RunError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.networks.build import build_network
from potstill.training.clock import Clock
from potstill.training.graph import GraphedStep, hindrances
from potstill.training.optimizers import make_optimizer

CPU = torch.device("cpu")
NOT_RECORDED = {"vkd"}


class Draws(ResidentLoader):
    """Eight images again and again, with a view that decides over them."""

    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (ALL.SAMPLES, ALL.SIDE, ALL.SIDE, 3), dtype=np.uint8)
        plan = Plan(length=ALL.SAMPLES, batch_size=ALL.IMAGES, seed=0, shuffle=True)
        augmentation = Augmentation(ALL.SIDE, "pad", padding=2, flip=True)
        super().__init__(pixels, np.arange(ALL.SAMPLES) % ALL.CLASSES, plan, augmentation, ALL.HALF, ALL.QUARTER)


def trained(name: str, tape: Tape | None, epochs: int = 2) -> tuple[list[float], dict[str, Tensor]]:
    """Five steps an epoch of a method by itself; its losses and what became of everything."""
    pair, loader, values = ALL.Pair(name), Draws(), []
    optimizer = make_optimizer([pair.student, pair.objective], lr=1e-3, recorded=True)
    loss = torch.zeros(())

    def train(batches: Any, measure: bool) -> dict[str, Tensor]:
        (batch,) = batches
        found, _ = pair.step(batch, pair.teacher.features(batch, **pair.objective.needs.on_demand("teacher")))
        found["total"].backward()
        loss.copy_(found["total"].detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {}

    graph = GraphedStep(pair.step, loader, train, Clock(CPU), tape) if tape else None
    for epoch in range(epochs):
        pair.objective.start_epoch(epoch)
        for number, place in enumerate(loader.places(epoch) if graph is None else graph.epoch(epoch)):
            torch.manual_seed(10 * epoch + number)
            train([loader.made(*place)], False) if graph is None else graph.take(place, False)
            values.append(loss.item())
    return values, {**pair.step.state_dict()}


@ALL.EVERY
def test_every_method_is_recorded_or_refused_by_name(name: str) -> None:
    if name in NOT_RECORDED:
        with pytest.raises(RunError, match=f"{name} factorises matrices"):
            trained(name, Tape())
        return
    tape = Tape()
    expected, found = trained(name, None), trained(name, tape)
    assert tape.history.count("replay") >= 4
    assert found[0] == expected[0]
    assert [key for key in expected[1] if not torch.equal(expected[1][key], found[1][key])] == []


class OnOneDevice(TorchDispatchMode):
    """Finds kernels that meet tensors of two devices, make one on the host, or factorise a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.crossed: list[str] = []
        self.factorised: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if len({tensor.device.type for tensor in tensors((args, kwargs, found))} | {"cuda"}) > 1:
            self.crossed.append(str(function))
        if re.search(r"linalg_(?!vector_norm|cross)|cholesky|triangular_solve", str(function)):
            self.factorised.append(str(function))
        return found


def on_the_device(value: Any, seen: dict[int, Any]) -> Any:
    """Every tensor within replaced by one of the same shape on a GPU that need not be there."""
    if isinstance(value, Tensor):
        if id(value) not in seen:
            other = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            seen[id(value)] = nn.Parameter(other, value.requires_grad) if isinstance(value, nn.Parameter) else other
        return seen[id(value)]
    if isinstance(value, nn.Module) and id(value) not in seen:
        seen[id(value)] = value
        for part in (value._parameters, value._buffers):
            part.update({name: on_the_device(one, seen) for name, one in part.items()})
        for part in value._modules.values():
            on_the_device(part, seen)
    return value


needs_cuda_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this PyTorch was built without CUDA, and cannot make tensors for it"
)


@needs_cuda_build
def test_the_finder_sees_what_goes_over_the_host() -> None:
    with FakeTensorMode(), OnOneDevice() as finder:
        x = torch.empty(3, 3, device="cuda")
        assert not finder.crossed
        x + torch.tensor(2.0)
        x[torch.tensor([0, 1])]
        torch.linalg.solve_ex(x, x)
    assert len(finder.crossed) >= 2
    assert finder.factorised


@needs_cuda_build
@ALL.EVERY
def test_every_step_stays_on_the_device(name: str) -> None:
    """Images, both passes and all terms, on tensors that have a GPU's device and no memory: no GPU is needed."""
    pair, loader = ALL.Pair(name), Draws()
    pair.losses()["total"].backward()  # CRD's first batch sets Z
    reads, seen = pair.objective.needs.on_demand("teacher"), {}
    with FakeTensorMode():
        for owner in (loader, loader.views, loader.views.normalise, pair.teacher):
            for key, value in vars(owner).items():
                setattr(owner, key, on_the_device(value, seen))
        on_the_device(pair.step, seen)
        loader.device = pair.teacher.device = torch.device("cuda", 0)
        index = torch.empty(ALL.IMAGES, dtype=torch.int64, device="cuda")
        with OnOneDevice() as finder:
            batch = loader.made(index, index.clone())
            pair.step(batch, pair.teacher.features(batch, **reads))
    assert finder.crossed == []
    assert bool(finder.factorised) == (name in NOT_RECORDED)


def test_whitening_is_refused_too() -> None:
    size = (3, ALL.SIDE, ALL.SIDE)
    student, teacher = (build_network(name, classes=5, input_size=size) for name in ("resnet8", "resnet8x4"))
    setting = Setting(student.spec, teacher.spec, samples=600, batch_size=300)
    assert len(hindrances(Objective(setting, {"vkd": {"weight": 1.0, "normalisation": "whitening"}}))) == 1
    assert hindrances(nn.Linear(2, 2)) == []
