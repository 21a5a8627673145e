"""Reading a run's folder while another process writes it: files are opened for reading, one moment each, never locked.

``steps.jsonl`` grows by lines, of which the last may be half there, and is replaced as a whole when a run goes on from
a checkpoint; the other files are always replaced as a whole. Nothing of torch is imported here.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from potstill.headline import Headline, headline_for

__all__ = ["Follower", "RunView"]

Row = dict[str, Any]

# Folders in a run's that hold no run.
_OTHER = {"checkpoints", "tracking", "student_network"}
_DEPTH = 3  # a study's runs, their controls
_IN_TURN = 60.0  # seconds between the rows of runs that go side by side


@dataclass(frozen=True, slots=True)
class RunView:
    """What a folder says of a run at one moment.

    Attributes:
        folder: the run's, or one with several runs in it.
        recipe: as it was resolved; empty before the run has begun.
        steps: the rows of ``steps.jsonl``.
        epochs: the rows of ``metrics.csv``, with numbers.
        result: ``result.json``; None before the run is finished.
        parts: the runs in folders of its own: a control, assistants, students side by side; each like this one.
        teacher_accuracy: the headline's value of the network that it learns from, by its own result or by the result of
            the run that trained that network on the same data; None where neither says it.
        written: when one of its own files was last written, in seconds since 1970; 0 where there is none.
    """

    folder: Path
    recipe: Row = field(default_factory=dict)
    steps: tuple[Row, ...] = ()
    epochs: tuple[Row, ...] = ()
    result: Row | None = None
    parts: dict[str, "RunView"] = field(default_factory=dict)
    teacher_accuracy: float | None = None
    written: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether there is anything of it, or of a part."""
        return bool(self.recipe or self.parts)

    @property
    def finished(self) -> bool:
        """Whether it is finished with all its parts; one that has only a control is still to come itself."""
        parts = all(part.finished for part in self.parts.values())
        own = self.result is not None if self.recipe else bool(self._several)
        return parts and own

    @property
    def _several(self) -> list[str]:
        """The parts that are not on the way to this run itself."""
        return [name for name in self.parts if name != "control" and not name.startswith("assistant-")]

    @property
    def newest(self) -> float:
        """When anything of it or of a part was last written."""
        return max((self.written, *(part.newest for part in self.parts.values())))

    def at_work(self) -> "RunView":
        """The part that trains now, itself among them; of several the first, of finished ones the last."""
        runs = [run for run in self.all_runs() if run.recipe]
        going = [run for run in runs if run.result is None]
        if going:  # those side by side write in turn
            return next(run for run in going if run.written >= max(one.written for one in going) - _IN_TURN)
        return max(runs, key=lambda run: run.written, default=self)

    def all_runs(self) -> list["RunView"]:
        """Itself and everything below it."""
        return [self, *(run for part in self.parts.values() for run in part.all_runs())]

    @property
    def headline(self) -> Headline:
        """The value that it is judged by."""
        return headline_for(self.recipe, self.epochs)

    @property
    def epochs_wanted(self) -> int:
        """How many epochs it will have, as the recipe says; 0 where that is not known yet."""
        return int(self.recipe.get("epochs") or 0)

    @property
    def epoch_steps(self) -> int | None:
        """Steps of an epoch, known once one is over."""
        return round(self.epochs[-1]["step"] / self.epochs[-1]["epoch"]) if self.epochs else None

    @property
    def position(self) -> int:
        """Steps that are known to be done."""
        return int(max((rows[-1]["step"] for rows in (self.steps, self.epochs) if rows), default=0))

    @property
    def images_per_second(self) -> float | None:
        """Of the last logged steps."""
        pace = self.steps[-1].get("steps_per_second") if self.steps else None
        return pace * self.recipe.get("batch_size", 0) if pace else None

    def seconds_left(self) -> float | None:
        """By the time of the epochs so far, or of the last steps; None before either says anything."""
        wanted, steps = self.epochs_wanted, self.epoch_steps
        if self.result is not None or not wanted or not steps:
            return None
        step = sum(row["seconds"] for row in self.epochs) / self.epochs[-1]["step"]
        return max(0.0, step * (wanted * steps - self.position))

    def evaluated(self) -> Row | None:
        """The last epoch's row that has an evaluation."""
        key = self.headline.key
        return next((row for row in reversed(self.epochs) if key in row or "val_total" in row), None)

    def shares(self) -> dict[str, float]:
        """The terms' shares of the gradient when they were last measured."""
        for row in reversed(self.steps):
            found = {key.removeprefix("share_"): row[key] for key in row if key.startswith("share_")}
            if found:
                return {name: share for name, share in found.items() if share is not None}
        return {}

    def milliseconds(self) -> dict[str, float]:
        """Of a step, by part, over the last logged steps."""
        return dict(self.steps[-1].get("ms") or {}) if self.steps else {}

    def terms(self) -> list[str]:
        """The objective's terms in the logged rows, in their order, and ``total``."""
        other = {"step", "epoch", "phase", "lr", "steps_per_second", "ms"}
        names = (key for row in self.steps for key in row if key not in other and not key.startswith("share_"))
        return list(dict.fromkeys(names))


class Follower:
    """Reads a folder again and again; what has not changed is not read twice.

    Args:
        folder: of a run, or with several runs in it; need not be there yet.

    Example:
        >>> Follower(Path("no/such/run")).look().begun
        False
    """

    def __init__(self, folder: Path, depth: int = _DEPTH) -> None:
        self.folder, self._depth = folder, depth
        self._parts: dict[str, Follower] = {}
        self._seen: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._steps: list[Row] = []
        self._teacher: tuple[str, float | None] | None = None  # its weights, and what the run that trained them says
        self._file = 0  # which steps.jsonl was read, by its inode
        self._offset = 0  # up to where

    def look(self) -> RunView:
        """The folder as it is now."""
        written: list[float] = []
        recipe = self._whole("recipe.yaml", _recipe, written)
        epochs = self._whole("metrics.csv", _table, written)
        result = self._whole("result.json", _object, written)
        self._read_steps(written)
        # A run that stopped before its first checkpoint leaves rows; in its folder another one may begin.
        steps = tuple(self._steps) if recipe else ()
        return RunView(
            self.folder, recipe or {}, steps, tuple(epochs or ()), result, self._look_below(),
            self._teacher_accuracy(recipe or {}, epochs or (), result), max(written, default=0.0),
        )  # fmt: skip

    def _teacher_accuracy(self, recipe: Row, epochs: Sequence[Row], result: Row | None) -> float | None:
        key = headline_for(recipe, epochs).key
        weights = (recipe.get("teacher") or {}).get("weights")
        if not weights:
            return None
        row = (result or {"rows": {}})["rows"].get("teacher")
        if row is None:
            if self._teacher is None or self._teacher[0] != weights:
                self._teacher = (weights, _finished_elsewhere(Path(weights), self.folder, key))
            return self._teacher[1]
        return row.get(key)

    def _look_below(self) -> dict[str, RunView]:
        if not self._depth:
            return {}
        try:
            with os.scandir(self.folder) as entries:
                names = sorted(e.name for e in entries if e.name not in _OTHER and e.name[0] != "." and e.is_dir())
        except OSError:  # not there yet
            names = []
        self._parts = {name: self._parts.get(name) or Follower(self.folder / name, self._depth - 1) for name in names}
        views = {name: part.look() for name, part in self._parts.items()}
        return {name: view for name, view in views.items() if view.begun}

    def _whole(self, name: str, parse: Any, written: list[float]) -> Any:
        """A file that is replaced as a whole, parsed where it is another than last time."""
        path = self.folder / name
        try:
            found = path.stat()
            written.append(found.st_mtime)
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._seen.get(name, ((), None))[0] != mark:
                self._seen[name] = (mark, parse(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            self._seen.pop(name, None)
            return None
        except (OSError, ValueError, KeyError, yaml.YAMLError):  # damaged; `potstill` says so when the run goes on
            return None
        return self._seen[name][1]

    def _read_steps(self, written: list[float]) -> None:
        """The lines that have come since last time; all of them where the file is another or shorter."""
        try:
            with open(self.folder / "steps.jsonl", "rb") as file:
                found = os.fstat(file.fileno())
                written.append(found.st_mtime)
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._file, self._offset, self._steps = found.st_ino, 0, []
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")  # the rest is being written
        except OSError:
            self._file, self._offset, self._steps = 0, 0, []
            return
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a kill, before the run went on
                continue
            if isinstance(row, dict) and "step" in row and "epoch" in row:
                self._steps.append(row)


def _recipe(text: str) -> Row:
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found if isinstance(found, dict) else {}


def _object(text: str) -> Row | None:
    found = json.loads(text)
    return found if isinstance(found, dict) and isinstance(found.get("rows"), dict) else None


def _finished_elsewhere(teacher: Path, folder: Path, key: str) -> float | None:
    """The value that a run ended with, where it was measured on the data that another run has."""
    try:
        result, own = (json.loads(path.read_bytes()) for path in (teacher / "result.json", folder / "identity.json"))
        if result["data"]["identity"] != own["data"]:
            return None
        return float(result["rows"]["student"][key])
    except (OSError, ValueError, KeyError, TypeError):  # no run, or one without that value
        return None


def _table(text: str) -> list[Row]:
    rows = [{key: _number(value) for key, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]
    return [row | {"epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
