"""A run's folder as a report reads it: every file checked, what is not there said, nothing written."""

import contextlib
import csv
import fcntl
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.analysis.predictions import PREDICTIONS_FILE
from potstill.errors import RunError
from potstill.report.outputs import Outputs, read_outputs
from potstill.training.folder import RunFolder

__all__ = ["RunRecord", "number", "read_run"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run has left so far.

    Attributes:
        folder: as it was given.
        recipe: plain values.
        recipe_text: the file.
        epochs: rows of ``metrics.csv``: numbers, None for one that is not finite, and the phase's name.
        steps: rows of ``steps.jsonl``.
        result: of a finished run, else None.
        outputs: of the student and the teacher on the validation images, where the run has kept them.
        control: the same student without the teacher, where the run has one.
        running: whether a process is at work in the folder.
    """

    folder: Path
    recipe: Row
    recipe_text: str
    epochs: list[Row]
    steps: list[Row]
    result: Row | None
    outputs: Outputs | None
    control: "RunRecord | None"
    running: bool

    @property
    def rows(self) -> dict[str, Row]:
        """The results of ``student``, ``control`` and ``teacher``, as far as there are."""
        own = dict(self.result["rows"]) if self.result else {}
        found = {"student": own.get("student") or self._last_evaluation()}
        if self.control is not None:
            found["control"] = self.control.rows["student"]
        if own.get("teacher"):
            found["teacher"] = own["teacher"]
        return {name: row for name, row in found.items() if row or name == "student"}

    @property
    def classes(self) -> list[str]:
        """The classes' names, in the order of their numbers; none of a run that is not finished."""
        return list(self.result.get("classes") or []) if self.result else []

    @property
    def images(self) -> int | None:
        """How many images the accuracies are of."""
        if self.outputs is not None:
            return len(self.outputs.label)
        count = number((self.result or {}).get("data") or {}, "val")
        return int(count) if count else None

    @property
    def planned(self) -> int | None:
        """How many epochs the recipe asks for."""
        found = number(self.recipe, "epochs")
        return int(found) if found else None

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.recipe.get("seed")

    @property
    def taught(self) -> bool:
        """Whether it has a teacher."""
        return isinstance(self.recipe.get("teacher"), dict)

    @property
    def student(self) -> str:
        """The student's name."""
        return network_name(self.recipe.get("student"))

    @property
    def teacher(self) -> str:
        """The teacher's name: its model, or the folder that its weights are from."""
        told = (self.result or {}).get("teacher")
        model = told.get("model") if isinstance(told, dict) else None  # the card's, where the recipe has only a folder
        return str(model) if model else network_name(self.recipe.get("teacher"))

    @property
    def data(self) -> str:
        """The data's name: their folder's, or their kind."""
        data = self.recipe.get("data")
        data = data if isinstance(data, dict) else {}
        return Path(str(data["path"])).name if data.get("path") else str(data.get("source", "unknown data"))

    @property
    def terms(self) -> list[str]:
        """The objective's terms."""
        objective = self.recipe.get("objective")
        return [str(name) for name in objective] if isinstance(objective, dict) else []

    @property
    def banner(self) -> str:
        """How far a run has come that is not finished; nothing of a finished one."""
        if self.result is not None:
            return ""
        state = "is still running" if self.running else "has stopped before it was finished"
        planned = f" of {self.planned}" if self.planned else ""
        return f"This run {state}: {len(self.epochs)}{planned} epochs are done. What follows is as far as it has come."

    @property
    def command(self) -> str | None:
        """The command that made the run, as a shell takes it, where it is known."""
        told = (self.result or {}).get("command")
        if isinstance(told, list) and all(isinstance(word, str) for word in told) and told:
            return shlex.join(told)
        if isinstance(told, str) and told:
            return told
        second = "".join(self.recipe_text.splitlines()[1:2])  # below the versions
        return second[1:].strip() if second.startswith("# potstill ") else None

    def _last_evaluation(self) -> Row:
        """What the last evaluation found, of a run that has no result yet."""
        judged = [row for row in self.epochs if any(key.startswith(("top", "val_")) for key in row)]
        return {key: value for key, value in judged[-1].items() if key.startswith(("top", "val_"))} if judged else {}


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a row, or None where it has none by that name.

    Example:
        >>> number({"top1": 71}, "top1"), number({"top1": None}, "top1"), number({"top1": True}, "top1")
        (71.0, None, None)
    """
    value = row.get(name)
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real and value is not None else None


def network_name(section: Any) -> str:
    """What people call a network: its model, or the folder or file that its weights are from.

    Example:
        >>> network_name({"model": "resnet8"}), network_name({"model": None, "weights": "runs/large/"})
        ('resnet8', 'large')
    """
    section = section if isinstance(section, dict) else {}
    if section.get("model"):
        return str(section["model"])
    return Path(str(section["weights"])).name if section.get("weights") else "a network of the user's own"


def read_run(folder: str | Path) -> RunRecord:
    """What a run has left so far; writes nothing.

    Args:
        folder: the run's.

    Raises:
        RunError: where there is no run, or a file of it is damaged.
    """
    path = Path(folder)
    if not (path / "recipe.yaml").is_file():
        raise RunError(_why_no_run(path))
    control = path / "control"
    return _read(path, _read(control, None) if (control / "recipe.yaml").is_file() else None)


def _read(path: Path, control: RunRecord | None) -> RunRecord:
    text, recipe = _recipe(path / "recipe.yaml")
    result = RunFolder(path).result()
    if result is not None:
        _check_result(path / "result.json", result)
    return RunRecord(
        path, recipe, text, _metrics(path / "metrics.csv"), _steps(path / "steps.jsonl"), result,
        read_outputs(path / PREDICTIONS_FILE),
        control, _is_running(path),
    )  # fmt: skip


def _why_no_run(path: Path) -> str:
    if not path.exists():
        return f"There is no run {path}. Give the folder of a run."
    if not path.is_dir():
        return f"{path} is a file, not a run's folder. Give the folder of a run."
    runs = sorted(shlex.quote(str(recipe.parent)) for recipe in path.glob("*/recipe.yaml"))
    below = f" There are runs in it: potstill report {' '.join(runs[:8])}" if runs else ""
    return f"{path} is no run's folder: it has no recipe.yaml.{below or ' Give the folder of a run.'}"


def _recipe(path: Path) -> tuple[str, Row]:
    text = _text(path)
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"{path} is damaged: it is no valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(recipe, dict):
        raise RunError(f"{path} is damaged: it holds no recipe.")
    return text, recipe


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: it is no UTF-8 text ({error.reason} at byte {error.start}).") from None


def _metrics(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows: list[Row] = []
    lines = csv.reader(_text(path).splitlines())
    head = next(lines, [])
    if "epoch" not in head:
        raise RunError(f"{path} is damaged: its first line names no column epoch.")
    for cells in lines:
        if len(cells) != len(head):
            raise RunError(f"{path} is damaged: row {len(rows) + 1} has {len(cells)} values, expected {len(head)}.")
        row: Row = {}
        for name, cell in zip(head, cells, strict=True):
            if name == "phase":
                row[name] = cell
            elif cell:
                try:
                    value = float(cell)
                except ValueError:
                    raise RunError(
                        f"{path} is damaged: {name} is {cell[:40]!r} in row {len(rows) + 1}, expected a number."
                    ) from None
                row[name] = value if math.isfinite(value) else None
        if row.get("epoch") is None:
            raise RunError(f"{path} is damaged: row {len(rows) + 1} has no epoch.")
        rows.append(row)
    return rows


def _steps(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows = []
    lines = _text(path).splitlines()
    for count, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if count == len(lines):
                break  # the row that is being written, or that a kill cut short
            raise RunError(f"{path} is damaged: line {count} is no valid JSON.") from None
        if not isinstance(row, dict) or number(row, "step") is None:
            raise RunError(f"{path} is damaged: line {count} is no row of a step.")
        rows.append(row)
    return rows


def _check_result(path: Path, result: Row) -> None:
    """Look at the parts of a result that the report goes through."""
    kinds: Sequence[tuple[str, Callable[[Any], bool], str]] = (
        ("classes", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v), "a list of names"),
        ("times", lambda v: isinstance(v, dict), "seconds by name"),
        ("data", lambda v: isinstance(v, dict), "facts of the data by name"),
        ("versions", lambda v: isinstance(v, dict), "versions by name"),
    )
    for key, fits, expected in kinds:
        if key in result and result[key] is not None and not fits(result[key]):
            raise RunError(f"{path} is damaged: {key} is a {type(result[key]).__name__}, expected {expected}.")


def _is_running(path: Path) -> bool:
    """Whether a process holds the folder's lock; asks for it without writing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path / ".lock", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
