"""What a tracker is to a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Flat", "TrackedRun", "Tracker"]

Flat = str | int | float | bool


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as a tracker is told of it.

    Attributes:
        name: the run's folder by its name; that of a part (a control, an assistant) has the run's before it.
        project: what it belongs to.
        recipe: every value of the resolved recipe by its key, as ``optimizer.lr``.
        folder: where a tracker may put files of this run; need not be there yet.
        base: the folder beside the run's, for what several runs share.
        key: what :meth:`Tracker.begin` returned for the part of the run before; None for a run that is new.
    """

    name: str
    project: str
    recipe: Mapping[str, Flat]
    folder: Path
    base: Path
    key: str | None = None


class Tracker(Protocol):
    """One run in one tracker. Whatever it raises is said once, and it is asked no more."""

    def begin(self, run: TrackedRun) -> str:
        """Open the tracker's run, or go on in it; returns by which key it is found again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers by name, as ``loss/ce``; steps never fall."""

    def finish(self, result: Mapping[str, float] | None) -> None:
        """The run is finished, with its result; or it was interrupted (None) and may go on later."""
