"""One candidate of a race: an ordinary run, trained in stretches and judged where they end."""

import csv
from collections.abc import Callable
from typing import Any

import torch

from potstill.config import Recipe
from potstill.errors import RecipeError, RunError
from potstill.headline import HEADLINES
from potstill.networks.peers import Peers
from potstill.networks.tap import Tapped
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data, DataFacts
from potstill.procedures.networks import build_student
from potstill.procedures.prepared import prepare_teaching
from potstill.procedures.single import SingleRun
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.reporting import Reporter
from potstill.training.settings import NonFiniteLoss

__all__ = ["Candidate", "Dropped"]

MakeReporter = Callable[[str, RunFolder], Reporter]


class Dropped(RunError):
    """A candidate that cannot go on, while the others can."""


class Candidate:
    """A run that stops at each rung that it reaches, and goes on from there if it may.

    The run is that of the whole recipe: its schedule is that of all epochs, and at a rung it pauses with a checkpoint.
    So what is judged there is the very network that a run of the whole recipe has after these epochs.

    Args:
        name: of the candidate.
        recipe: resolved; it names the run's folder.
        facts: of the data.
        processes: this process and the others.
        teacher: what all candidates share.
        rungs: the epochs at which it may be asked for.

    Raises:
        PotstillError: for whatever does not fit together, for a folder of another run, and for a rung at which it would
            not be judged or saved.

    Attributes:
        before: epochs that it takes before those of the recipe, for what a method trains first.
    """

    def __init__(
        self, name: str, recipe: Recipe, facts: DataFacts, processes: Processes, teacher: Teacher, rungs: list[int]
    ) -> None:
        self.name, self.recipe, self.facts, self.processes, self.teacher = name, recipe, facts, processes, teacher
        self.folder = RunFolder(str(recipe.run))
        run = self._run()
        self.before = sum(phase.epochs for phase in run.phases) - recipe.epochs
        self._must_pause_at(run, rungs)

    def network(self) -> Tapped:
        """The network that would ship, untrained."""
        student = build_student(self.recipe, self.facts, self.teacher)
        return student.first if isinstance(student, Peers) else student

    def train(self, epoch: int, data: Callable[[], Data], interrupt: Interrupt, reporter: MakeReporter) -> float:
        """Train on to an epoch, or find it reached; the headline's value there, in percent.

        Args:
            epoch: of the recipe's.
            data: decodes the data, or gives them where that is done.
            interrupt: raised when the race is told to stop.
            reporter: makes the one that is told how it goes, from its title and folder.

        Raises:
            Dropped: it diverged, or the device's memory does not suffice for it.
            Stopped: told to stop; the state is saved.
            PotstillError: for whatever else a user can mend.
        """
        if epoch not in self.accuracies() or not self._has_ended(epoch):
            try:
                self._advance(epoch, data, interrupt, reporter)
            except NonFiniteLoss as error:
                raise Dropped(str(error)) from error
            except torch.OutOfMemoryError as error:
                raise Dropped(f"The device's memory is full ({str(error).splitlines()[0]}).") from error
        found = self.accuracies()
        if epoch not in found:
            raise RunError(
                f"{self.folder.path / 'metrics.csv'} has no accuracy of epoch {epoch}, at which the candidates are "
                "compared. Delete the folder to train this candidate anew."
            )
        return found[epoch]

    def accuracies(self) -> dict[int, float]:
        """The headline's value in percent by epoch, as far as the run could go on from there. All must ask."""
        found: dict[int, float] = self.processes.gathered(self.processes.on_main(self._accuracies))[0]
        return found

    def _has_ended(self, epoch: int) -> bool:
        """Whether a run that was trained to that epoch has also left what runs leave at their end."""
        ended = self.processes.gathered(self.processes.on_main(lambda: self.folder.result() is not None))[0]
        return epoch < self.recipe.epochs or bool(ended)

    def _run(self) -> SingleRun:
        return SingleRun(self.recipe, self.facts, self.folder, self.processes, self.teacher)

    def _must_pause_at(self, run: SingleRun, rungs: list[int]) -> None:
        ends, end = [], 0
        for phase in run.phases:
            end += phase.epochs
            ends.append((end, phase))
        log, saves = self.recipe.log.evaluate, self.recipe.checkpoint.every_epochs
        for rung in rungs:
            epoch = rung + self.before
            last, phase = next((end, phase) for end, phase in ends if epoch <= end)
            if not phase.judged:
                begin = next(end - phase.epochs for end, phase in ends if phase.judged) - self.before
                raise RecipeError(
                    f"The candidate {self.name} cannot be judged at epoch {rung}, where the candidates are compared: "
                    f"its {phase.name} trains no head. Set race.min_epochs={begin + 1} or more, or take it out."
                )
            for key, every in (("log.evaluate", log), ("checkpoint.every_epochs", saves)):
                if epoch % every and epoch != last:
                    raise RecipeError(
                        f"The candidates are compared at epoch {rung}, and with {key}={every} {self.name} is not "
                        f"{'judged' if key == 'log.evaluate' else 'saved'} there. Leave {key} out."
                    )

    def _advance(self, epoch: int, data: Callable[[], Data], interrupt: Interrupt, reporter: MakeReporter) -> None:
        run = self._run()
        training = run.train(
            lambda: prepare_teaching(self.recipe, run.teacher, run.needs, data(), self.processes), interrupt,
            lambda title, folder: _Recorded(reporter(title, folder), folder, self.processes.main), self.name,
        )  # fmt: skip
        last = (epoch + self.before) * data().train.steps
        for step in training:
            if step > last:  # the epoch is judged and saved when the step after it comes; that one is taken again
                training.close()
                self.processes.on_main(lambda: self.folder.forget_steps_after(last))
                return

    def _accuracies(self) -> dict[int, float]:
        path, newest = self.folder.path / "metrics.csv", Checkpoints(self.folder.checkpoints).newest()
        if not path.exists() or (newest is None and self.folder.result() is None):
            return {}
        key = HEADLINES[self.recipe.task].key
        saved = int(newest.stem.rpartition("-")[2]) if newest and self.folder.result() is None else None
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = [(int(row["epoch"]), int(row["step"]), row.get(key)) for row in csv.DictReader(file)]
            # A row is written before its checkpoint: without that, the epoch is trained again.
            return {
                epoch - self.before: float(value)
                for epoch, step, value in rows
                if value and (saved is None or step <= saved)
            }
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path} is damaged ({error}). Put it back as it was, or delete the folder to train the candidate anew."
            ) from None


class _Recorded:
    """A reporter that also writes ``metrics.csv``, which the race reads: whoever listens need not.

    Args:
        inner: who is told.
        folder: the run's.
        writes: whether this process writes.
    """

    def __init__(self, inner: Reporter, folder: RunFolder, writes: bool) -> None:
        self.inner, self.folder, self.writes = inner, folder, writes
        self.started, self.advanced, self.logged = inner.started, inner.advanced, inner.logged

    def finished_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Tell and write."""
        if self.writes:
            self.folder.write_metrics(history)
        self.inner.finished_epoch(row, history)
