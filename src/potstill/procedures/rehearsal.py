"""A run's loop, taken a few steps at a time: nothing is evaluated, and nothing is kept."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from potstill.batch import Batch
from potstill.methods.base import Known
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.teacher import Teaches
from potstill.procedures.advice import STEP_PARTS
from potstill.procedures.prepared import Prepared
from potstill.procedures.single import SingleRun
from potstill.training.ema import WeightAverage
from potstill.training.interrupts import Interrupt
from potstill.training.reporting import Silent
from potstill.training.settings import Loader

__all__ = ["Continued", "Rehearsal", "Replayed", "Round"]

_RECENT = 4  # steps whose batches are kept, for others to see the same


@dataclass(frozen=True, slots=True)
class Round:
    """Some steps, in the mean of one.

    Attributes:
        parts: milliseconds of each of :data:`potstill.procedures.advice.STEP_PARTS`.
        wall: milliseconds by a watch that knows nothing of parts.
        images: of a step; 0 where the loader does not count them.
        launching: milliseconds that the host was at work on a GPU and did not wait for it.
    """

    parts: dict[str, float]
    wall: float
    images: float
    launching: float

    @property
    def ms(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


class Continued:
    """A loader's epochs as a single one, so that nothing is evaluated or saved between two of them.

    Args:
        loader: of the run.
        begin: the phase's first epoch.
        epochs: how many it has; after them they come again.
        least: steps that there must be.

    Attributes:
        images: how many were given out.
        recent: the batches of the last full steps.
    """

    def __init__(self, loader: Loader, begin: int, epochs: int, least: int) -> None:
        self.loader, self.begin, self.epochs = loader, begin, epochs
        self.steps = max(epochs * loader.steps, least)
        self.images = 0
        self.recent: deque[list[Batch]] = deque(maxlen=_RECENT)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step of all epochs, always from the first on."""
        left = self.steps
        while left > 0:
            for number in range(self.epochs):
                for batches in self.loader.epoch(self.begin + number):
                    count = sum(map(len, batches))
                    self.images += count
                    if not self.recent or count >= sum(map(len, self.recent[-1])):  # not an epoch's short last step
                        self.recent.append(batches)
                    left -= 1
                    yield batches


class Replayed:
    """A few steps' batches again and again.

    Args:
        batches: of each step.
        steps: how many there shall be.
    """

    def __init__(self, batches: Sequence[list[Batch]], steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.images = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step."""
        for step in range(start, self.steps):
            batches = self.batches[step % len(self.batches)]
            self.images += sum(map(len, batches))
            yield batches


class Rehearsal:
    """The loop of a run's last phase, from the weights that the run starts with.

    Args:
        run: in a folder that nobody needs.
        prepared: what it trains on.
        loader: in place of its loader.
        teaching: in place of its teacher's.
        epochs: of the loader, in place of the phase's.
    """

    def __init__(
        self, run: SingleRun, prepared: Prepared, loader: Loader, teaching: Teaches | None = None, epochs: int = 1
    ) -> None:
        self.run, self.loader, self.device = run, loader, run.processes.device
        memory = torch.channels_last if run.recipe.channels_last else torch.contiguous_format
        run.student.to(self.device).to(memory_format=memory)
        average = WeightAverage(run.student, run.recipe.ema) if run.recipe.ema else None
        prepared = replace(prepared, loader=loader, teaching=teaching or prepared.teaching)
        phase = run.phases[-1]
        phase.objective.to(self.device).prepare(self._known(prepared))
        begin = sum(earlier.epochs for earlier in run.phases[:-1])
        self.loop = run.loop(replace(phase, epochs=epochs), begin, prepared, average, Interrupt(), Silent())
        self._steps = self.loop.stepwise()

    def take(self, steps: int) -> Round:
        """Go on for some steps.

        Raises:
            PotstillError: as a run.
        """
        clock, images = self.loop.clock, self._images
        before, launched, began = clock.totals(), clock.launching, time.perf_counter()
        for _ in range(steps):
            next(self._steps)
        after = clock.totals()  # on a GPU this waits for the last step
        wall = time.perf_counter() - began
        return Round(
            parts={part: 1000 * (after[part] - before[part]) / steps for part in STEP_PARTS},
            wall=1000 * wall / steps,
            images=(self._images - images) / steps,
            launching=1000 * (clock.launching - launched) / steps,
        )

    @property
    def _images(self) -> int:
        return self.loader.images if isinstance(self.loader, Continued | Replayed) else 0

    def _known(self, prepared: Prepared) -> Known:
        """What the methods are told. Class means are numbers of the right shape: collecting them is a pass over all."""
        if self.run.teacher is None or not self.run.needs.class_means:
            return Known(prepared.data.labels)
        background = isinstance(self.run.teacher.network, TappedDetector)
        shape = len(prepared.data.classes) + background, self.run.teacher.spec.embedding_dim
        return Known(prepared.data.labels, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
