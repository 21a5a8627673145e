"""A study's result: each combination's runs together, beside its control and the paper's number."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from potstill.errors import RecipeError, RunError
from potstill.headline import HEADLINES, Headline, headline_of
from potstill.study.file import column_of
from potstill.study.plan import Plan
from potstill.study.run import State, Status
from potstill.study.statistics import Difference, Spread, difference, spread
from potstill.training.folder import RunFolder

__all__ = ["Entry", "Reader", "SeedRun", "Table", "read_table"]


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run of a combination.

    Attributes:
        seed: the run's.
        folder: the run's.
        state: where it is.
        reason: why it failed.
        epoch: how many epochs are done.
        last: the metric after the last epoch, in percent; None before it is finished.
        best: the largest of any epoch.
        seconds: of training and evaluating.
        teacher_share: part of the time that went to the teacher (its pass, or reading its store).
        memory: the largest resident memory of the process, in bytes, where the run recorded it.
        row: the student's row of ``result.json``.
        teacher_row: the teacher's.
    """

    seed: int
    folder: str
    state: State
    reason: str | None = None
    epoch: int = 0
    last: float | None = None
    best: float | None = None
    seconds: float | None = None
    teacher_share: float | None = None
    memory: int | None = None
    row: Mapping[str, Any] | None = None
    teacher_row: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One combination of levels, over its seeds.

    Attributes:
        levels: the level of each axis.
        runs: one for each seed.
        last: of the finished runs' last epochs; None where none is finished.
        best: of their best epochs.
        control: whether this is what the others are compared with.
        difference: to the control of the same other levels; None for it, or where either has no finished run.
        paper: the published number.
        paper_difference: to the published number of the control.
    """

    levels: Mapping[str, str]
    runs: tuple[SeedRun, ...]
    last: Spread | None
    best: Spread | None
    control: bool
    difference: Difference | None
    paper: float | None
    paper_difference: float | None

    def mean(self, name: str) -> float | None:
        """The mean of a run's field, or of a value of its student's row, over the finished runs that have it."""
        found = [getattr(run, name, None) if hasattr(run, name) else (run.row or {}).get(name) for run in self.runs]
        known = [value for value in map(_number, found) if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Table:
    """A study's result.

    Attributes:
        name: of the study.
        title: of its table.
        metric: what ``last`` and ``best`` are.
        rows: the axis of the rows.
        axes: axis -> its levels.
        entries: in the grid's order.
        teachers: a row of ``result.json`` for each teacher, as the runs measured it.
        paper: source and note of the published numbers.
    """

    name: str
    title: str
    metric: str
    rows: str
    axes: Mapping[str, tuple[str, ...]]
    entries: tuple[Entry, ...]
    teachers: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, str] | None

    def column(self, entry: Entry) -> str:
        """The name of an entry's column: its levels but for the rows' axis."""
        return column_of(entry.levels, self.rows)

    @property
    def headline(self) -> Headline:
        """What the metric is called, and in which unit it is."""
        return headline_of({self.metric: None})

    @property
    def columns(self) -> list[str]:
        """The columns, in the grid's order."""
        return list(dict.fromkeys(self.column(entry) for entry in self.entries))

    @property
    def failed(self) -> list[tuple[Entry, SeedRun]]:
        """The runs that could not be done."""
        return [(entry, run) for entry in self.entries for run in entry.runs if run.state == "failed"]

    @property
    def incomparable(self) -> bool:
        """Whether runs are finished and none of them has the metric, as with data that have no labels."""
        done = [run for entry in self.entries for run in entry.runs if run.state == "done"]
        return bool(done) and all(run.last is None for run in done)

    def plain(self) -> dict[str, Any]:
        """Everything, as plain values for ``study.json``."""
        return asdict(self)


class Reader:
    """Reads a study's table again and again, and of the runs only what has changed.

    Args:
        plan: of the study.
        metric: of the rows of ``result.json`` and ``metrics.csv``; None for the headline of the runs' task.

    Raises:
        RecipeError: for runs of several tasks, without a metric.
    """

    def __init__(self, plan: Plan, metric: str | None = None) -> None:
        self.plan, self.metric = plan, metric or _headline(plan).key
        self._runs: dict[str, tuple[object, SeedRun]] = {}
        self._table: Table | None = None

    def read(self, status: Status) -> Table:
        """The table as the runs' folders have it now; the same one as before where nothing has changed.

        Args:
            status: where the study's jobs are.
        """
        changed = False
        for name in dict.fromkeys(cell.job for cell in self.plan.cells):
            folder, state = self.plan.jobs[name].folder, status.states[name]
            # Files are looked at only where somebody writes them.
            stamp = (state, status.reasons.get(name), _stamp(folder) if state == "running" else None)
            if name not in self._runs or self._runs[name][0] != stamp:
                self._runs[name] = stamp, _read(folder, state, status.reasons.get(name), self.metric)
                changed = True
        if self._table is None or changed:
            self._table = self._made()
        return self._table

    def _made(self) -> Table:
        plan, file = self.plan, self.plan.file
        runs: dict[tuple[str, ...], list[SeedRun]] = {}
        for cell in plan.cells:
            run = replace(self._runs[cell.job][1], seed=cell.seed)
            runs.setdefault(tuple(cell.levels.values()), []).append(run)
        entries = tuple(_entry(plan, dict(zip(file.grid, names, strict=True)), runs) for names in runs)
        paper = {"source": file.paper.source, "note": file.paper.note} if file.paper else None
        axes = {axis: tuple(levels) for axis, levels in file.grid.items()}
        title = file.title or plan.name
        return Table(plan.name, title, self.metric, file.row_axis, axes, entries, self._teachers(), paper)

    def _teachers(self) -> dict[str, Mapping[str, Any]]:
        """A row for each teacher: from the first finished run that learnt from it."""
        found: dict[str, Mapping[str, Any]] = {}
        for cell in self.plan.cells:
            row = self._runs[cell.job][1].teacher_row
            if cell.teacher is not None and row is not None:
                found.setdefault(cell.teacher, row)
        return found


def read_table(plan: Plan, status: Status, metric: str | None = None) -> Table:
    """The table as the runs' folders have it now; unfinished and failed runs are in it as such.

    Args:
        plan: of the study.
        status: where its jobs are.
        metric: of the rows of ``result.json`` and ``metrics.csv``; None for the headline of the runs' task.

    Raises:
        RecipeError: for runs of several tasks, without a metric.
    """
    return Reader(plan, metric).read(status)


def _headline(plan: Plan) -> Headline:
    tasks = sorted({plan.jobs[cell.job].recipe.task for cell in plan.cells})
    if len(tasks) > 1:
        raise RecipeError(
            f"The study {plan.name} has runs of several tasks ({', '.join(tasks)}), whose values do not compare; make "
            "it a study for each."
        )
    return HEADLINES[tasks[0]]


def _entry(plan: Plan, levels: dict[str, str], runs: Mapping[tuple[str, ...], Sequence[SeedRun]]) -> Entry:
    file, own = plan.file, tuple(levels.values())
    control = tuple((levels | file.control).values()) if file.control else None
    last, best = _known(run.last for run in runs[own]), _known(run.best for run in runs[own])
    paper, theirs = _published(plan, levels), _published(plan, levels | file.control)
    beside = _known(run.last for run in runs.get(control, ())) if control is not None and control != own else []
    return Entry(
        levels=levels,
        runs=tuple(runs[own]),
        last=spread(last) if last else None,
        best=spread(best) if best else None,
        control=control == own,
        difference=difference(last, beside) if last and beside else None,
        paper=paper,
        paper_difference=None if control in (None, own) or paper is None or theirs is None else paper - theirs,
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _published(plan: Plan, levels: Mapping[str, str]) -> float | None:
    rows = plan.file.row_axis
    return (
        None if plan.file.paper is None else plan.file.paper.values.get(column_of(levels, rows), {}).get(levels[rows])
    )


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when a run's files do, which are always replaced as a whole."""
    found = []
    for name in ("metrics.csv", "result.json"):
        try:
            found.append(os.stat(folder / name).st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _read(folder: Path, state: State, reason: str | None, metric: str) -> SeedRun:
    """One run, of whatever seed."""
    try:
        result = RunFolder(folder).result() if state != "failed" else None
        history = _history(folder, metric)
    except RunError as error:
        return SeedRun(0, str(folder), "failed", str(error))
    values = _known(history)
    if result is None:
        return SeedRun(0, str(folder), state, reason, len(history))
    rows, times = result["rows"], result.get("times") or {}
    whole = sum(_known(map(_number, times.values())))
    return SeedRun(
        seed=0,
        folder=str(folder),
        state="done",
        epoch=result.get("epochs", len(history)),
        last=_number(rows["student"].get(metric)),
        best=max(values, default=None),
        seconds=_number(result.get("seconds")),
        teacher_share=times.get("teacher", 0.0) / whole if whole else None,
        memory=result.get("memory"),
        row=rows["student"],
        teacher_row=rows.get("teacher"),
    )


def _history(folder: Path, metric: str) -> list[float | None]:
    """A value for each epoch so far; None for one without an evaluation, or with one that is no number."""
    path = folder / "metrics.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [_number(float(row[metric])) if row.get(metric) else None for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:  # broken UTF-8 too
        raise RunError(f"{path} is damaged: {error}. Delete the run's folder, and it is run again.") from None


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
