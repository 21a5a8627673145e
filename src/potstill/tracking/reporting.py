"""The reporter that tells trackers, around the one that talks to people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.tracking.told import Told
from potstill.training.folder import RunFolder
from potstill.training.reporting import Reporter

__all__ = ["tracked"]

Row = dict[str, Any]
Make = Callable[[str, RunFolder], Reporter]


class _Tracked:
    """Passes everything on to another reporter, which writes the folder's files, and then tells the trackers."""

    def __init__(self, inner: Reporter, told: Told, phase: str) -> None:
        self._inner, self._told, self._phase = inner, told, phase

    def started(self, epoch: int, step: int, steps: int, epochs: int, begin: int) -> None:
        """Open the trackers, and tell them what they have missed."""
        self._inner.started(epoch, step, steps, epochs, begin)
        self._told.open(fresh=epoch == 0 and step == 0)
        self._told.catch_up(self._phase)

    def advanced(self, epoch: int, step: int) -> None:
        """Pass it on."""
        self._inner.advanced(epoch, step)

    def logged(self, row: Row) -> None:
        """Tell the row's values."""
        self._inner.logged(row)
        self._told.step(row, self._phase)

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """Tell the epoch's values."""
        self._inner.finished_epoch(row, history)
        self._told.epoch(row, self._phase)


@contextmanager
def tracked(make: Make, asked: Callable[[str], tuple[tuple[str, ...], str]], talks: bool = True) -> Iterator[Make]:
    """The maker of reporters that also tell trackers; each run's trackers are closed when it has ended.

    Args:
        make: makes the reporters that talk to people and write the folder's files.
        asked: which trackers a run asks for, by its title, and the project's name.
        talks: false for all processes but the first, which tell nobody anything.
    """
    going: dict[Path, Told] = {}

    def settle(ended: bool) -> None:
        for path, told in list(going.items()):
            finished = (path / "result.json").exists()
            if finished or ended:
                del going[path]
                told.close(finished)

    def make_tracked(title: str, folder: RunFolder) -> Reporter:
        settle(ended=False)  # the control is finished when its student comes
        inner = make(title, folder)
        names, project = asked(title)
        if not talks or not names:
            return inner
        told = going.setdefault(folder.path, Told(names, folder, title, project))
        return _Tracked(inner, told, title.partition(", ")[2])

    try:
        yield make_tracked
    finally:
        settle(ended=True)
