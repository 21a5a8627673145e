"""How a run shows itself: a bar on a terminal, plain lines on a pipe, and the rows in its folder."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from potstill.headline import headline_of
from potstill.methods.objective import share_warnings
from potstill.training.durations import duration
from potstill.training.folder import RunFolder
from potstill.training.reporting import Reporter, Silent

__all__ = ["Bar", "Lines", "progress_on"]

log = logging.getLogger(__name__)

Row = dict[str, Any]


class _Recorded:
    """What every talking reporter does: ``steps.jsonl``, ``metrics.csv``, and each warning once.

    Args:
        console: where to talk.
        title: the network that trains, as people call it.
        folder: the run's.
        batch_size: images a step, to turn steps into images a second.
    """

    def __init__(self, console: Console, title: str, folder: RunFolder, batch_size: int) -> None:
        self.console, self.title, self.folder, self.batch_size = console, title, folder, batch_size
        self.steps = self.epochs = 0
        self._warned: set[str] = set()

    def started(self, epoch: int, step: int, steps: int, epochs: int, begin: int) -> None:
        """Drop the rows of steps that will be taken again."""
        self.steps, self.epochs = steps, epochs
        self.folder.forget_steps_after(epoch * steps + step)
        if epoch > begin or step:
            where = f"epoch {epoch + 1}, step {step}" if step else f"epoch {epoch}"
            log.info("%s: going on after %s of %d.", self.title, where, epochs)

    def advanced(self, epoch: int, step: int) -> None:
        """Nothing."""

    def logged(self, row: Row) -> None:
        """Write the row; warn of terms that do nothing or drown the others."""
        self.folder.append_step(row)
        shares = {key.removeprefix("share_"): value for key, value in row.items() if key.startswith("share_")}
        for sentence in share_warnings(shares):
            kind = re.sub(r"[\d.]+", "", sentence)  # the same warning with another percentage is the same warning
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning(sentence)

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """Write the table of all epochs."""
        self.folder.write_metrics(history)

    def close(self) -> None:
        """Leave the terminal as it was found."""

    def _speed(self, row: Row) -> str:
        return f"{row['steps_per_second'] * self.batch_size:,.0f} images/s"


class Lines(_Recorded):
    """A plain line for each logged row and each epoch."""

    def logged(self, row: Row) -> None:
        """The step's losses, with the rate."""
        super().logged(row)
        step = row["step"] - row["epoch"] * self.steps
        terms = [f"{key} {value:.4g}" for key, value in row.items() if key in _terms(row)]
        self._print(
            f"epoch {row['epoch'] + 1}/{self.epochs}", f"step {step}/{self.steps}", f"loss {row['total']:.4g}",
            *terms, f"lr {row['lr']:.3g}", self._speed(row),
        )  # fmt: skip

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """The epoch's mean loss, accuracies and time, and what is left by the time so far."""
        super().finished_epoch(row, history)
        left = self.epochs - row["epoch"]
        seconds = left * sum(past["seconds"] for past in history) / len(history)
        self._print(
            f"epoch {row['epoch']}/{self.epochs}", "done", f"loss {row['total']:.4g}", *_accuracies(row),
            duration(row["seconds"]), *([f"about {duration(seconds)} left"] if left else []),
        )  # fmt: skip

    def _print(self, *parts: str) -> None:
        self.console.print("  ".join([self.title, *parts]), soft_wrap=True)


class Bar(_Recorded):
    """A bar over the whole run with loss, accuracy, images a second and the time left; a line for it at the end."""

    def __init__(self, console: Console, title: str, folder: RunFolder, batch_size: int) -> None:
        super().__init__(console, title, folder, batch_size)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in ("epoch", "loss", "accuracy", "speed")),
            _TimeLeft(), console=console, expand=True,
        )  # fmt: skip

    def started(self, epoch: int, step: int, steps: int, epochs: int, begin: int) -> None:
        """Show the bar."""
        super().started(epoch, step, steps, epochs, begin)
        done = epoch * steps + step
        self._task = self._progress.add_task(
            self.title, total=steps * epochs, completed=done, began=done, epoch=f"epoch {epoch + 1}/{epochs}",
            loss="", accuracy="", speed="",
        )  # fmt: skip
        self._progress.start()

    def advanced(self, epoch: int, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=epoch * self.steps + step)

    def logged(self, row: Row) -> None:
        """Show the losses and the rate."""
        super().logged(row)
        self._progress.update(self._task, loss=f"loss {row['total']:.3g}", speed=self._speed(row))

    def finished_epoch(self, row: Row, history: list[Row]) -> None:
        """Show the epoch's accuracy; take the bar away after the last."""
        super().finished_epoch(row, history)
        judged = (past for past in reversed(history) if headline_of(past).key in past)
        accuracies = _accuracies(row) or _accuracies(next(judged, {}))
        self._progress.update(
            self._task, epoch=f"epoch {min(row['epoch'] + 1, self.epochs)}/{self.epochs}",
            loss=f"loss {row['total']:.3g}", accuracy=accuracies[0] if accuracies else "",
        )  # fmt: skip
        if row["epoch"] == self.epochs:
            self.close()

    def close(self) -> None:
        """Stop the bar where it stands."""
        self._progress.stop()


class _TimeLeft(ProgressColumn):
    """The time left at the pace since the run began or went on: evaluations and saves count, as they will again."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["began"]
        if not done or task.total is None or task.elapsed is None:
            return Text("")
        return Text(f"{duration(task.elapsed / done * (task.total - task.completed))} left")


@contextmanager
def progress_on(console: Console, batch_size: int, talks: bool = True) -> Iterator[Any]:
    """The maker of reporters that a procedure asks for, one a run; the terminal is left as it was, whatever ends it.

    Args:
        console: a bar where it is a terminal, lines elsewhere.
        batch_size: images a step.
        talks: false for all processes but the first: theirs are silent.
    """
    made: list[_Recorded] = []

    def make(title: str, folder: RunFolder) -> Reporter:
        if not talks:
            return Silent()
        made.append((Bar if console.is_terminal else Lines)(console, title, folder, batch_size))
        return made[-1]

    try:
        yield make
    finally:
        for reporter in made:
            reporter.close()


def _terms(row: Row) -> list[str]:
    """The names of the objective's terms in a logged row; with a single one the total says it all."""
    other = {"step", "epoch", "phase", "lr", "total", "steps_per_second", "ms"}
    terms = [key for key in row if key not in other and not key.startswith("share_")]
    return terms if len(terms) > 1 else []


def _accuracies(row: Row) -> list[str]:
    """An evaluated epoch's accuracies; without labels the terms on the validation images, their weighted sum first."""
    if "val_total" in row:
        terms = [key for key in row if key.startswith("val_") and key != "val_total"]
        return [f"{key} {row[key]:.4g}" for key in ("val_total", *terms)]
    headline = headline_of(row)
    return [f"{headline.name(key)} {value:.2f} {headline.unit}" for key, value in headline.values(row)]
