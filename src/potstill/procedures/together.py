"""Several students of one teacher side by side: each batch is made once, and the teacher sees it once."""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from potstill.batch import Batch
from potstill.networks.features import Features
from potstill.networks.teacher import Teaches
from potstill.training.settings import Loader, Stopped

__all__ = ["SharedLoader", "SharedTeaching", "side_by_side"]

T = TypeVar("T")


class SharedLoader:
    """A loader whose steps are made once for all who ask for them one after the other.

    Who asks for another step than the others (a run that goes on from further back) has it made, and nothing else is
    different for them: the steps are those of the loader, always.

    Args:
        loader: makes the steps.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._place: tuple[int, int] | None = None  # of the step at hand
        self._step: list[Batch] = []
        self._rest: Iterator[list[Batch]] = iter(())

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self.loader.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step from ``start`` on."""
        for step in range(start, self.steps):
            yield self._at(epoch, step)

    def _at(self, epoch: int, step: int) -> list[Batch]:
        if self._place != (epoch, step):
            if self._place != (epoch, step - 1):
                self._rest = self.loader.epoch(epoch, step)
            self._step, self._place = next(self._rest), (epoch, step)
        return self._step


class SharedTeaching:
    """The teacher's features of a batch, computed once for all who ask for them one after the other.

    Args:
        teaching: computes them.
        reads: which of the features that are filled on demand any of the students reads.
    """

    def __init__(self, teaching: Teaches, reads: Mapping[str, bool]) -> None:
        self.teaching = teaching
        self.reads = dict(reads)
        self._seen: tuple[Tensor, Features] | None = None

    def features(self, batch: Batch, **reads: bool) -> Features:
        """The features of a batch; those that were not announced are computed for the one who asks."""
        if any(wanted and not self.reads.get(field) for field, wanted in reads.items()):
            return self.teaching.features(batch, **reads)
        if self._seen is None or self._seen[0] is not batch.images:
            self._seen = (batch.images, self.teaching.features(batch, **self.reads))
        return self._seen[1]

    def settle(self) -> None:
        """As of what it shares."""
        self.teaching.settle()


def side_by_side(runs: Mapping[str, Callable[[], Generator[int, None, T]]]) -> dict[str, T]:
    """Advance several runs a step at a time, whoever is furthest behind first; what each returns, by its name.

    Where one is told to stop, the others are at the same step and save themselves too.

    Args:
        runs: makes each run's generator, which yields the steps that it has done.

    Raises:
        Stopped: once all have saved themselves.
    """
    going: dict[str, Any] = {name: make() for name, make in runs.items()}
    done = dict.fromkeys(going, 0)
    ended: dict[str, T] = {}
    stopped: Stopped | None = None
    while going:
        name = min(going, key=done.__getitem__)  # the first of equals
        try:
            done[name] = next(going[name])
        except StopIteration as end:
            ended[name] = end.value
            del going[name]
        except Stopped as told:
            stopped = stopped or told
            del going[name]
    if stopped is not None:
        raise stopped
    return {name: ended[name] for name in runs}
