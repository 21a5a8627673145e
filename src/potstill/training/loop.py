"""The training loop.

In short::

    resume, or start
    for epoch in epochs:
        for micro-batches in the loader:
            set the rate; seed
            replay the step, where it is recorded (graph.py), else:
                for batch in micro-batches:
                    teacher(batch); student(batch); objective -> backward
                clip; optimiser step
            average the weights (EMA)
            every `log.every` steps: the only wait for the device; a non-finite loss stops here
            told to stop? save, say how to go on, leave
        evaluate; write metrics; save

A step's random numbers (dropout) are a function of (seed, step, rank), its images of (seed, index, view), its learning
rate of (step, steps): so a state is weights, optimiser, averages and counters, and a resumed run is the same run.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from potstill.batch import Batch
from potstill.errors import RunError
from potstill.networks.teacher import Teaches
from potstill.training.checkpoints import Checkpoints
from potstill.training.clock import Clock
from potstill.training.distributed import Processes
from potstill.training.ema import WeightAverage
from potstill.training.graph import Capture, CudaCapture, GraphedStep
from potstill.training.interrupts import Interrupt
from potstill.training.optimizers import set_rate
from potstill.training.reporting import Reporter
from potstill.training.settings import Loader, NonFiniteLoss, Settings, Stopped
from potstill.training.state import restore, snapshot, weights_norm
from potstill.training.step import TrainingStep, seed_of
from potstill.training.tally import Tally

__all__ = ["Loop"]

_AGREE_EVERY = 10  # steps between two times that several processes ask each other whether to stop


class Loop:
    """One phase of training: these parameters, on this objective, for so many epochs.

    Args:
        step: student and objective, on the device.
        teacher: gives the teacher's features of a batch; not asked where no method of the objective reads any.
        loader: the training images.
        evaluate: gives the accuracies of an epoch's row; called on every process.
        optimizer: over the step's parameters.
        settings: numbers.
        checkpoints: where states go.
        processes: this process and the others.
        reporter: who is told.
        interrupt: raised when the run is told to stop.
        average: the moving average of the student's weights, where there is one.
        skipped: the damaged images that the loaders have left out so far, by the loader's name: each image's place and
            what is wrong with it. The loaders add to it; a checkpoint holds it, and a resumed run begins with it.
        capture: records the step where ``settings.graph`` is set; None for CUDA graphs.
    """

    def __init__(
        self,
        step: TrainingStep,
        teacher: Teaches | None,
        loader: Loader,
        evaluate: Callable[[], dict[str, float]],
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        checkpoints: Checkpoints,
        processes: Processes,
        reporter: Reporter,
        interrupt: Interrupt,
        average: WeightAverage | None = None,
        skipped: dict[str, dict[str, str]] | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.step, self.loader, self.evaluate = step, loader, evaluate
        self.teacher = teacher if step.objective.needs.teacher else None
        self.skipped = skipped if skipped is not None else {}
        self.optimizer, self.settings, self.average = optimizer, settings, average
        self.checkpoints, self.processes = checkpoints, processes
        self.reporter, self.interrupt = reporter, interrupt
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.fp16)
        self.tally = Tally([*step.objective.weights, "total"], processes)
        self.history: list[dict[str, Any]] = []
        self.epoch = self.done = 0  # the epoch at hand, and how many of its steps are done
        self.clock = Clock(processes.device)
        self.seconds, self._began = 0.0, 0.0  # training time of this epoch before, and what the clock said then
        self._logged = 0.0  # what it said at the last logged row
        self._teacher_reads = step.teacher_reads
        self._module: nn.Module = step  # with several processes, what joins their gradients around it
        self.graph: GraphedStep | None = None
        if settings.graph:
            self.graph = GraphedStep(step, loader, self._train, self.clock, capture or CudaCapture(processes.device))

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, from the newest checkpoint where there is one; return the rows of all epochs.

        Raises:
            Stopped: told to stop by a signal; the state is saved.
            NonFiniteLoss: names the last good checkpoint.
        """
        for _ in self.stepwise():
            pass
        return self.history

    def stepwise(self) -> Iterator[int]:
        """Train as :meth:`run` does, and yield after each step how many are done: so runs can go side by side."""
        self.processes.on_main(self.checkpoints.clear_parts)
        self._resume()
        self._module = self._distributed()
        settings, steps = self.settings, self.loader.steps
        if self.epoch < settings.epochs:
            self.reporter.started(self.epoch, self.done, steps, settings.epochs, settings.begin)
        for epoch in range(self.epoch, settings.epochs):
            self.step.train()
            self.step.objective.start_epoch(epoch - settings.begin, resumed=self.done > 0)
            self.clock.start()
            self.clock.read()
            self._began = self._logged = self.clock.wall
            for step in (self.graph or self.loader).epoch(epoch, start=self.done):
                self.clock.lap("data")
                shares = self._step(step, epoch * steps + self.done)
                self.done += 1
                position = epoch * steps + self.done
                self.reporter.advanced(epoch, self.done)
                if shares or position % settings.log_every == 0:
                    self._log(position, shares)
                if self._told_to_stop(position):
                    self._stop(position)
                if settings.checkpoint_steps and position % settings.checkpoint_steps == 0 and self.done < steps:
                    self._save(position)
                self.clock.lap("host")
                yield position
                self.clock.start()
            self._finish_epoch()
        if self.graph is not None:
            self.graph.forget()

    def _rate(self, position: int) -> float:
        """The learning rate of the step that begins after so many."""
        settings, steps = self.settings, self.loader.steps
        phase = (settings.epochs - settings.begin) * steps
        return settings.lr * settings.schedule(position - settings.begin * steps, phase)

    def _step(self, step: Any, position: int) -> dict[str, Tensor]:
        """One optimiser step on what the loader or the graph gave for it; the gradient's shares where they are due."""
        set_rate(self.optimizer, self._rate(position))
        torch.manual_seed(seed_of(self.settings.seed, position, self.processes.rank))
        every = self.settings.shares_every
        measure = bool(every) and position % every == 0 and len(self.step.objective.weights) > 1
        return (self.graph.take if self.graph else self._train)(step, measure)

    def _train(self, micro_batches: Sequence[Batch], measure: bool) -> dict[str, Tensor]:
        """The step itself; where it measures nothing it is work for the device alone, which a graph can record."""
        shares: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches):
            last, module = number + 1 == len(micro_batches), self._module
            with contextlib.nullcontext() if last or module is self.step else module.no_sync():  # type: ignore[operator]
                teacher = self.teacher.features(batch, **self._teacher_reads) if self.teacher else None
                self.clock.lap("teacher")
                losses, student = self._forward(batch, teacher, eager=measure and number == 0)
                self.clock.lap("forward")
                if measure and number == 0:
                    shares = self.step.objective.gradient_shares(losses, *student.trunk)
                    self.clock.lap("host")
                self.scaler.scale(losses["total"] * batch.weight).backward()
                self.clock.lap("backward")
            self.tally.add(losses, batch.weight)
        self.tally.step()
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.step.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step.student)
        self.clock.lap("optimizer")
        return shares

    def _forward(self, batch: Batch, teacher: Any, eager: bool) -> Any:
        try:
            return self._module(batch, teacher, eager=eager)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RunError(
                f"A batch of {len(batch)} image is too small for this student: its batch norm needs several values a "
                "channel. Take a batch_size that leaves no single image over, or less accumulate."
            ) from error

    def _log(self, position: int, shares: dict[str, Tensor]) -> None:
        times = self.clock.read()  # the one wait for the device; what follows is there then
        means, count = self.tally.recent()
        row: dict[str, Any] = {"step": position, "epoch": self.epoch, "lr": self._rate(position - 1)}
        row |= means | {f"share_{name}": value.item() for name, value in shares.items()}
        self._must_be_finite(means, position)
        ms = {part: round(1000 * seconds / count, 3) for part, seconds in times.items() if seconds}
        row |= {"steps_per_second": count / (self.clock.wall - self._logged), "ms": ms}
        self._logged = self.clock.wall
        self.reporter.logged(row)

    def _finish_epoch(self) -> None:
        self.clock.totals()
        means = self.tally.epoch()
        self.clock.lap("host")
        position = (self.epoch + 1) * self.loader.steps
        self._must_be_finite(means, position)
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": position, "lr": self._rate(position - 1)}
        row |= {"phase": self.settings.phase} if self.settings.phase != "joint" else {}
        row |= means | {"seconds": self.seconds + self.clock.wall - self._began}
        last = self.epoch + 1 == self.settings.epochs
        if last or (self.epoch + 1) % self.settings.evaluate_every == 0:
            row |= self.evaluate()
        self.clock.lap("evaluation")
        self.history.append(row)
        self.tally.reset()
        self.epoch, self.done, self.seconds = self.epoch + 1, 0, 0.0
        self.reporter.finished_epoch(row, self.history)
        if last or self.epoch % self.settings.checkpoint_epochs == 0:
            self._save(position)
        self.clock.lap("host")

    def seconds_so_far(self) -> float:
        """Training time of the epoch at hand, over all its parts where it was interrupted."""
        return self.seconds + self.clock.wall - self._began if self.done else 0.0

    def _must_be_finite(self, means: dict[str, float], position: int) -> None:
        bad = [f"{name}={value}" for name, value in means.items() if not math.isfinite(value)]
        if bad:
            newest = self.checkpoints.newest()
            good = f"The last good checkpoint is {newest}" if newest else "There is no checkpoint yet"
            raise NonFiniteLoss(
                f"The loss is not finite at step {position} ({', '.join(bad)}). {good}. "
                "Try a lower optimizer.lr, clip=1.0, or precision=bf16 in place of fp16"
                f"{', in another run=' if newest else ''}."
            )

    def _told_to_stop(self, position: int) -> bool:
        if self.processes.world == 1:
            return bool(self.interrupt)
        # Processes are told at different steps and must leave at the same one; torchrun gives them thirty seconds.
        return position % _AGREE_EVERY == 0 and self.processes.any(bool(self.interrupt))

    def _stop(self, position: int) -> None:
        path = self._save(position)
        name = self.interrupt.signal.name if self.interrupt.signal else "another process's signal"
        raise Stopped(f"Stopped by {name} after step {position}; saved {path}. The same command goes on from there.")

    def _save(self, position: int) -> Any:
        state = snapshot(self)
        self._must_be_finite(self.tally.epoch() | weights_norm(self.step), position)
        if self.teacher:
            self.teacher.settle()
        return self.processes.on_main(lambda: self.checkpoints.save(position, state))

    def _resume(self) -> None:
        newest = self.checkpoints.newest()
        names = self.processes.gathered(newest.name if newest else None)
        if len(set(names)) > 1:
            raise RunError(
                f"The processes see different checkpoints in {self.checkpoints.folder}: {names}. The run's folder must "
                "be one that all machines share."
            )
        if newest:
            restore(self, self.checkpoints.load(newest), newest)
        else:
            self.epoch = self.settings.begin

    def _distributed(self) -> nn.Module:
        if self.processes.world == 1:
            return self.step
        device = self.processes.device
        # Without a method that reads the student's logits, its classifier gets no gradient, and DDP must know.
        unused = not self.step.objective.needs.student & {"logits", "losses"}
        ids = [device] if device.type == "cuda" else None
        # Buffers are not broadcast at each step: batch norms' statistics are aligned where they are read, and methods
        # keep their own equal (CRD's banks gather what all processes have seen).
        return DistributedDataParallel(self.step, device_ids=ids, find_unused_parameters=unused, **_no_buffers())


def _no_buffers() -> dict[str, Any]:
    """The argument that keeps buffers from being sent at each step; PyTorch 2.15 has renamed it."""
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
