"""A run's folder as a report reads it: every file checked, what is not there said, nothing written."""

import contextlib
import fcntl
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.analysis.predictions import PREDICTIONS_FILE
from potstill.errors import RunError
from potstill.headline import Headline, headline_for, is_accuracy
from potstill.report.outputs import Outputs, read_outputs
from potstill.report.picture_files import Seen, read_pictures
from potstill.report.roc import Roc, read_roc
from potstill.report.run_files import Row, check_result, number, read_metrics, read_recipe, read_steps
from potstill.training.folder import RunFolder

__all__ = ["RunRecord", "read_run"]


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
        pictures: what it has kept of what the networks find in some images; of detection and segmentation.
        roc: its curves by network; of faces.
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
    pictures: tuple[Seen, ...]
    roc: dict[str, Roc]
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
    def headline(self) -> Headline:
        """The value that it is judged by."""
        return headline_for(self.recipe, [*((self.result or {}).get("rows") or {}).values(), *self.epochs])

    @property
    def classes(self) -> list[str]:
        """The classes' names, in the order of their numbers; none of a run that is not finished."""
        return list(self.result.get("classes") or []) if self.result else []

    @property
    def per_class(self) -> dict[str, Row]:
        """A value for each class by "student", "control", "teacher", of a task that measures one."""
        own = dict((self.result or {}).get("per_class") or {})
        theirs = self.control.per_class.get("student") if self.control else None
        return own | ({"control": theirs} if theirs else {})

    @property
    def curves(self) -> dict[str, Roc]:
        """The curves of ``roc``, with the control's own where it has one."""
        theirs = self.control.roc.get("student") if self.control else None
        return self.roc | ({"control": theirs} if theirs else {})

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
        values = [{key: value for key, value in row.items() if _evaluated(key)} for row in self.epochs]
        return next((found for found in reversed(values) if found), {})


def _evaluated(key: str) -> bool:
    return is_accuracy(key) or key.startswith("val_")


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
    text, recipe = read_recipe(path / "recipe.yaml")
    result = RunFolder(path).result()
    if result is not None:
        check_result(path / "result.json", result)
    return RunRecord(
        path, recipe, text, read_metrics(path / "metrics.csv"), read_steps(path / "steps.jsonl"), result,
        read_outputs(path / PREDICTIONS_FILE),
        control, read_pictures(path, (result or {}).get("classes") or ()), read_roc(path), _is_running(path),
    )  # fmt: skip


def _why_no_run(path: Path) -> str:
    if not path.exists():
        return f"There is no run {path}. Give the folder of a run."
    if not path.is_dir():
        return f"{path} is a file, not a run's folder. Give the folder of a run."
    runs = sorted(shlex.quote(str(recipe.parent)) for recipe in path.glob("*/recipe.yaml"))
    below = f" There are runs in it: potstill report {' '.join(runs[:8])}" if runs else ""
    return f"{path} is no run's folder: it has no recipe.yaml.{below or ' Give the folder of a run.'}"


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
