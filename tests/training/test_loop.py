"""The loop's arithmetic: the same losses whatever way a batch is cut, and nothing that fails in silence."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation
from potstill.methods.base import Setting
from potstill.methods.objective import PEFD_OBJECTIVE, Objective
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.ema import WeightAverage
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Silent
from potstill.training.schedules import Schedule
from potstill.training.settings import NonFiniteLoss, Settings
from potstill.training.step import TrainingStep

HALF = (0.5, 0.5, 0.5)


class Listener(Silent):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []

    def logged(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finished_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        self.epochs.append(row)

    @property
    def totals(self) -> list[float]:
        return [row["total"] for row in self.rows]


def small(width: int, seed: int) -> nn.Module:
    """No batch norm: its loss is a mean over samples, so micro-batches and processes must add up exactly."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)
    )


def make_loop(
    folder: Path, *, accumulate: int = 1, compiled: bool = False, decay: float | None = None, seed: int = 0,
    objective: dict[str, Any] | None = None, **settings: Any,
) -> tuple[Loop, Listener]:  # fmt: skip
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 50)
    plan = Plan(length=50, batch_size=16, seed=3, shuffle=True, accumulate=accumulate)  # the last step has two images
    loader = ResidentLoader(images, labels, plan, Augmentation(8, "pad", padding=1, flip=True, seed=3), HALF, HALF)
    student = tap(small(4, seed=1), input_size=(3, 8, 8))
    network = tap(small(8, seed=2), input_size=(3, 8, 8))
    teacher = Teacher(network, mean=HALF, std=HALF, student_mean=HALF, student_std=HALF)
    torch.manual_seed(seed)
    terms = Objective(Setting(student.spec, teacher.spec), objective or PEFD_OBJECTIVE)
    listener = Listener()
    loop = Loop(
        TrainingStep(student, terms, compiled=compiled), teacher, loader, dict,
        make_optimizer([student, terms]), Settings(**({"epochs": 2, "log_every": 1} | settings)), Checkpoints(folder),
        Processes(torch.device("cpu")), listener, Interrupt(), WeightAverage(student, decay) if decay else None,
    )  # fmt: skip
    return loop, listener


def test_the_losses_are_these(tmp_path: Path) -> None:
    """A refactor that changes these numbers changed the mathematics, the order of the data or the augmentation."""
    loop, listener = make_loop(tmp_path)
    loop.run()
    expected = [10.92231, 7.26845, 6.95329, 7.31759, 7.0186, 6.47147, 6.90181, 6.16747]
    assert listener.totals == pytest.approx(expected, rel=1e-4)
    assert [row["step"] for row in listener.rows] == list(range(1, 9))
    first = listener.rows[0]
    assert first["total"] == pytest.approx(first["ce"] + 25 * first["pefd"], rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_micro_batches_change_nothing(tmp_path: Path, accumulate: int) -> None:
    whole, cut = make_loop(tmp_path / "a"), make_loop(tmp_path / "b", accumulate=accumulate)
    whole[0].run(), cut[0].run()
    # With two images in the last step and more than two micro-batches, fillers take part and count for nothing.
    assert cut[1].totals == pytest.approx(whole[1].totals, rel=1e-5)
    for one, other in zip(whole[0].step.parameters(), cut[0].step.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiled_losses_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tracing is what can go wrong here; generating C++ for it takes a minute and belongs to PyTorch.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    eager, compiled = make_loop(tmp_path / "a"), make_loop(tmp_path / "b", compiled=True)
    eager[0].run(), compiled[0].run()
    assert compiled[1].totals == pytest.approx(eager[1].totals, rel=1e-5)


def test_an_epochs_row_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    loop, listener = make_loop(tmp_path)
    loop.run()
    for epoch in (0, 1):
        steps = [row["total"] for row in listener.rows if row["epoch"] == epoch]
        assert listener.epochs[epoch]["total"] == pytest.approx(np.mean(steps), rel=1e-6)


def test_shares_are_measured_when_due_and_sum_to_one(tmp_path: Path) -> None:
    loop, listener = make_loop(tmp_path, log_every=100, shares_every=3)
    loop.run()
    assert [row["step"] for row in listener.rows] == [1, 4, 7]
    for row in listener.rows:
        assert row["share_ce"] + row["share_pefd"] == pytest.approx(1, abs=1e-5)
        assert 0 < row["share_ce"] < row["share_pefd"]  # a weight of 25 pulls harder


def test_measuring_shares_changes_no_weight(tmp_path: Path) -> None:
    one, other = make_loop(tmp_path / "a", shares_every=0)[0], make_loop(tmp_path / "b", shares_every=1)[0]
    one.run(), other.run()
    for a, b in zip(one.step.parameters(), other.step.parameters(), strict=True):
        assert torch.equal(a, b)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path, epochs=1, clip=1e-6, lr=1.0)
    before = [p.detach().clone() for p in loop.step.parameters()]
    loop.optimizer.param_groups[0]["weight_decay"] = 0.0
    loop.run()
    moved = torch.stack([(a - b).norm() for a, b in zip(before, loop.step.parameters(), strict=True)]).norm()
    assert 0 < moved < 4 * 1e-6 * 4  # four steps, each of at most the clip times what momentum makes of it


def test_the_average_is_of_the_weights(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path, decay=0.5, epochs=1)
    seen: list[torch.Tensor] = []
    update = loop.average.update

    def spy(network: nn.Module) -> None:
        seen.append(next(network.parameters()).detach().clone())
        update(network)

    loop.average.update = spy
    loop.run()
    expected = seen[0]  # the average begins as the weights after the first step
    for weights in seen[1:]:
        expected = 0.5 * expected + 0.5 * weights
    torch.testing.assert_close(next(loop.average.network.parameters()), expected)


def test_a_non_finite_loss_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path, epochs=1)
    loop.run()
    broken, _ = make_loop(tmp_path, epochs=3, lr=1e30)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step \d+ .*last good checkpoint is .*step-00000004\.pt"):
        broken.run()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004.pt"]  # nothing broken was saved


def test_without_a_checkpoint_it_says_so(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path, epochs=3, lr=1e30)
    with pytest.raises(NonFiniteLoss, match="There is no checkpoint yet"):
        loop.run()


def test_the_teacher_is_in_no_module_and_unchanged(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path)
    before = {name: tensor.clone() for name, tensor in loop.teacher.network.state_dict().items()}
    loop.run()
    inside = set(loop.step.modules())
    assert not inside & set(loop.teacher.network.modules())
    for name, tensor in loop.teacher.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    loop.teacher.verify()


def test_an_objective_without_logits_trains_no_classifier(tmp_path: Path) -> None:
    loop, _ = make_loop(tmp_path, objective={"pefd": 25})
    classifier = loop.step.student.network[-1].weight
    before = classifier.detach().clone()
    loop.run()
    assert torch.equal(classifier, before)


def test_its_parts_make_up_the_time_of_a_row(tmp_path: Path) -> None:
    loop, listener = make_loop(tmp_path, log_every=2)
    loop.run()
    for row in listener.rows[1:]:  # the first one's begins before the loop does
        assert sum(row["ms"].values()) == pytest.approx(1000 / row["steps_per_second"], rel=0.02)
    assert {"data", "teacher", "forward", "backward", "optimizer"} <= set(listener.rows[1]["ms"])
    assert sum(loop.clock.totals().values()) == pytest.approx(loop.clock.wall, rel=1e-6)


def test_the_rate_of_a_row_is_that_of_its_step(tmp_path: Path) -> None:
    schedule = Schedule("step", drops=(0.5,))
    loop, listener = make_loop(tmp_path, schedule=schedule, lr=0.1)
    loop.run()
    assert [row["lr"] for row in listener.rows] == pytest.approx([0.1] * 4 + [0.01] * 4)
    assert [row["lr"] for row in listener.epochs] == pytest.approx([0.1, 0.01])
