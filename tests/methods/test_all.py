"""What holds for every method there is, driven by one table of settings as they are used."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.batch import Batch
from potstill.errors import PotstillError
from potstill.methods import methods
from potstill.methods.base import Known, Method, Setting
from potstill.methods.objective import Objective
from potstill.methods.registry import find_method
from potstill.networks.build import build_network
from potstill.networks.faces import identity_scale
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.peers import Peers
from potstill.networks.tap import Tapped
from potstill.networks.teacher import Teacher
from potstill.training.optimizers import make_optimizer
from potstill.training.step import TrainingStep

CLASSES, IMAGES, SAMPLES, SIDE = 5, 8, 40, 16
HALF, QUARTER = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

# Each method with its usual weight; FSP asks for networks of the same widths.
CANONICAL: dict[str, dict[str, Any]] = {
    "ab": {"weight": 1.0}, "afd": {"weight": 200.0}, "arcface": {"weight": 1.0}, "cosface": {"weight": 1.0},
    "sphereface": {"weight": 1.0}, "at": {"weight": 1000.0}, "cc": {"weight": 0.02},
    "ce": {"weight": 1.0}, "cid": {"weight": 1.0}, "cosine_mean": {"weight": 1.0}, "crd": {"weight": 0.8},
    "dgkd": {"weight": 1.0}, "dist": {"weight": 2.0}, "dkd": {"weight": 1.0, "beta": 8.0}, "dml": {"weight": 1.0},
    "fitnets": {"weight": 100.0}, "fsp": {"weight": 50.0}, "ft": {"weight": 200.0}, "hafn": {"weight": 0.05},
    "infonce_mean": {"weight": 1.0}, "kd": {"weight": 0.9}, "mimic": {"weight": 1.0}, "mutual": {"weight": 1.0},
    "nd": {"weight": 2.0}, "norm_match": {"weight": 0.1}, "nst": {"weight": 50.0}, "ofd": {"weight": 0.001},
    "pefd": {"weight": 25.0, "projectors": 3}, "pefd_maps": {"weight": 25.0, "projectors": 3},
    "pkt": {"weight": 30000.0}, "reviewkd": {"weight": 5.0},
    "rkd": {"weight": 1.0}, "safn": {"weight": 0.05}, "semckd": {"weight": 400.0}, "sp": {"weight": 3000.0},
    "srrl": {"weight": 1.0}, "vid": {"weight": 1.0}, "vkd": {"weight": 1.0},
}  # fmt: skip
OF_OTHER_TASKS = {"task"}  # which reads what a classifier does not show
BANKS = {"crd"}  # methods whose state is written in the step
MARGINS = ("arcface", "cosface", "sphereface")
STUDENTS = {"fsp": "resnet8", **dict.fromkeys(MARGINS, "iresnet10")}
ARGS = {name: {"width": 0.125, "img_size": SIDE, "dim": 16} for name in MARGINS}
TEACHERS = {"fsp": "resnet14"}
EVERY = pytest.mark.parametrize("name", CANONICAL)


def test_the_table_has_every_method():
    ours = {name for name in methods() if find_method(name).__module__.startswith("potstill.")}
    assert set(CANONICAL) | OF_OTHER_TASKS == ours


class Pair:
    """A small student and teacher for a method, its objective and a batch, all drawn from one seed."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        size = (3, SIDE, SIDE)
        model = STUDENTS.get(name, "resnet8")
        self.student: Tapped = build_network(model, classes=CLASSES, args=ARGS.get(name), input_size=size)
        if name == "mutual":
            self.student = Peers(self.student, [build_network("resnet14", classes=CLASSES, input_size=size)])
        network = build_network(TEACHERS.get(name, "resnet8x4"), classes=CLASSES, input_size=size)
        needs = find_method(name).needs.on_demand("teacher")
        network.open(**needs)
        self.teacher = Teacher(network, mean=HALF, std=QUARTER, student_mean=HALF, student_std=QUARTER)
        self.setting = Setting(
            self.student.spec, self.teacher.spec, samples=SAMPLES, batch_size=IMAGES,
            peers=int(name == "mutual"), classifier=network.classifier(), norms=network.norms(),
            identity_scale=identity_scale(self.student.network),
        )  # fmt: skip
        self.objective = Objective(self.setting, {name: CANONICAL[name]})
        labels = torch.arange(SAMPLES) % CLASSES
        self.objective.prepare(Known(labels, torch.rand(CLASSES, self.teacher.spec.embedding_dim)))
        self.objective.start_epoch(0)
        self.method: Method = self.objective.methods[name]
        self.step = TrainingStep(self.student, self.objective).train()
        index = torch.arange(IMAGES)
        self.batch = Batch(torch.randn(IMAGES, *size), labels[index], index, torch.zeros_like(index))

    def seen(self) -> Features:
        """The teacher's features of the batch."""
        return self.teacher(self.batch.images, **self.objective.needs.on_demand("teacher"))

    def losses(self, at: int = 0) -> dict[str, Tensor]:
        """One pass, with the random numbers of step ``at``."""
        torch.manual_seed(at)
        return self.step(self.batch, self.seen())[0]


@EVERY
def test_steps_lower_its_loss(name: str):
    pair = Pair(name)
    optimizer = make_optimizer([pair.student, pair.objective], name="adamw", lr=2e-3, weight_decay=0.0)
    values = []
    for _ in range(12):
        loss = pair.losses()["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    if name == "safn":  # its value is a constant by construction: what falls is the norm's distance to nothing
        assert values == pytest.approx([values[0]] * len(values))
        return
    assert min(values[-3:]) < values[0], values


@EVERY
def test_no_gradient_reaches_the_teacher(name: str):
    pair = Pair(name)
    seen = pair.seen()
    fields = {f: getattr(seen, f) for f in ("logits", "embedding", "maps", "preacts", "blocks", "peers")}
    leaves = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    watched = Features(**{f: tuple(map(leaf, v)) if isinstance(v, tuple) else leaf(v) for f, v in fields.items()})
    losses, _ = pair.step(pair.batch, watched)
    losses["total"].backward()
    assert all(tensor.grad is None for tensor in leaves)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.student.parameters())
    pair.teacher.verify()


@EVERY
def test_a_resumed_run_is_the_same_run(name: str):
    def train(pair: Pair, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for at in steps:
            pair.losses(at)["total"].backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh() -> tuple[Pair, torch.optim.Optimizer]:
        pair = Pair(name)
        return pair, make_optimizer([pair.student, pair.objective], lr=1e-3)

    whole, optimizer = fresh()
    train(whole, optimizer, range(4))
    first, optimizer = fresh()
    train(first, optimizer, range(2))
    saved = copy.deepcopy((first.student.network.state_dict(), first.objective.state_dict(), optimizer.state_dict()))
    second, optimizer = fresh()
    second.student.network.load_state_dict(saved[0])
    second.objective.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    train(second, optimizer, range(2, 4))
    for one, other in ((whole.student.network, second.student.network), (whole.objective, second.objective)):
        expected, found = one.state_dict(), other.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


@EVERY
def test_bfloat16_is_computed_in_full(name: str):
    pair = Pair(name)
    exact = pair.losses()["total"]
    pair = Pair(name)
    half = TrainingStep(pair.student, pair.objective, autocast=torch.bfloat16).train()
    torch.manual_seed(0)
    losses, _ = half(pair.batch, pair.seen())
    losses["total"].backward()
    assert losses["total"].dtype == torch.float32
    assert losses["total"].item() == pytest.approx(exact.item(), rel=0.1, abs=0.05)
    assert all(p.grad.isfinite().all() for p in pair.step.parameters() if p.grad is not None)


def features(pair: Pair) -> Callable[[], tuple[Features, Features]]:
    """The student's features of the batch, cut off from the network, and the teacher's."""
    student = pair.student(pair.batch.images, **pair.objective.needs.on_demand("student"))

    def cut() -> tuple[Features, Features]:
        def leaf(value: Any) -> Any:
            return tuple(map(leaf, value)) if isinstance(value, tuple) else value.detach().clone().requires_grad_()

        fields = ("logits", "embedding", "maps", "preacts", "blocks", "peers")
        return Features(**{f: leaf(getattr(student, f)) for f in fields}), pair.seen()

    return cut


@pytest.mark.parametrize("name", [name for name in CANONICAL if name not in BANKS])
def test_in_one_graph(name: str):
    pair = Pair(name)
    give = features(pair)
    method = pair.method
    state = copy.deepcopy(method.state_dict())
    torch.manual_seed(0)
    expected = method(*give(), pair.batch)
    method.load_state_dict(state)
    torch._dynamo.reset()
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    found = compiled(*give(), pair.batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device: values read, shapes that depend on values."""

    READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero", "item", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0].lstrip("_")
        if any(name == read.lstrip("_") or name.startswith("unique") for read in self.READ):
            self.found.append(str(function))
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
        self.found += ["index by a mask"] * len(masks)
        return function(*args, **(kwargs or {}))


def test_the_counter_sees_what_waits():
    x = torch.randn(4)
    with Waits() as waits:
        x.sum().item()
        x[x > 0]
        torch.where(x > 0, x, 0.0)
        bool((x > 0).all())
    assert len(waits.found) == 3


@EVERY
def test_a_step_never_waits_for_the_device(name: str):
    pair = Pair(name)
    pair.losses()["total"].backward()  # CRD's first batch sets Z
    seen = pair.seen()
    with Waits() as waits:
        losses, _ = pair.step(pair.batch, seen)
        losses["total"].backward()
    assert waits.found == []


@EVERY
def test_what_ships_has_none_of_it(name: str):
    pair = Pair(name)
    plain = build_network(
        STUDENTS.get(name, "resnet8"), classes=CLASSES, args=ARGS.get(name), input_size=(3, SIDE, SIDE)
    )
    shipped = pair.student.first if isinstance(pair.student, Peers) else pair.student
    pair.losses()["total"].backward()
    assert shipped.network.state_dict().keys() == plain.network.state_dict().keys()
    pair.step.eval()
    assert torch.equal(pair.student(pair.batch.images).logits, shipped.eval()(pair.batch.images).logits)


@EVERY
def test_networks_without_what_it_reads_are_refused(name: str):
    pair, needs = Pair(name), find_method(name).needs
    spec = pair.student.spec
    bare = FeatureSpec(spec.classes, spec.embedding_dim)
    refused = [Setting(spec, spec, samples=SAMPLES, batch_size=IMAGES)] if name in MARGINS else []
    if needs.taught:
        refused.append(Setting(spec, None, samples=SAMPLES, batch_size=IMAGES))
    if {"maps", "preacts", "blocks"} & needs.student:
        refused.append(Setting(bare, bare, samples=SAMPLES, batch_size=IMAGES))
    if "logits" in needs.teacher:
        other = FeatureSpec(CLASSES + 1, pair.teacher.spec.embedding_dim, pair.teacher.spec.maps)
        refused.append(Setting(spec, other, samples=SAMPLES, batch_size=IMAGES))
    for setting in refused:
        with pytest.raises(PotstillError, match=r"[A-Za-z].*\."):
            Objective(setting, {name: CANONICAL[name]})
    assert refused or name in ("ce", "mutual", "safn", "hafn")
