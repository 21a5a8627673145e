"""What a run's trackers have been told, so that a run that goes on tells nothing twice."""

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from potstill.plain_json import to_json
from potstill.tracking.tracker import TrackedRun, Tracker
from potstill.tracking.trackers import make_tracker
from potstill.tracking.values import epoch_values, flat_recipe, flat_result, step_values
from potstill.training.folder import RunFolder

__all__ = ["Told"]

log = logging.getLogger(__name__)

_ROOM = "tracking"  # in a run's folder


class Told:
    """A run's folder and its trackers. The folder's files are the record, and the trackers are told what is in them.

    ``tracking/told.json`` holds each tracker's key of the run, and up to which step it was told the rows of
    ``steps.jsonl`` and those of ``metrics.csv``. A tracker that fails is let go with one warning: a server that is gone
    is no reason to lose a night's training, and when the run goes on it is told what it has missed.

    Args:
        names: of the trackers.
        folder: the run's.
        title: what trains there, as people call it; ``control``, or ``student, stage 1``.
        project: what the run belongs to.
    """

    def __init__(self, names: tuple[str, ...], folder: RunFolder, title: str, project: str) -> None:
        self.folder, self.project = folder, project
        self._names = names
        self._base, self._name = _place(folder.path, title)
        self._trackers: dict[str, Tracker] = {}
        self._keys: dict[str, dict[str, Any]] = {}
        self._open = False

    def open(self, fresh: bool) -> None:
        """Begin with every tracker, or go on where it was left. Once; phases of a run come to the same trackers.

        Args:
            fresh: nothing of the run is there to go on with: whatever the trackers were told was of another.
        """
        if self._open:
            return
        self._open = True
        path = self.folder.path / _ROOM / "told.json"
        if fresh:
            path.unlink(missing_ok=True)
        for name in self._names:
            self._guarded(name, lambda name=name: self._begin(name, path))  # type: ignore[misc]

    def _begin(self, name: str, path: Path) -> None:
        known = json.loads(path.read_bytes()) if path.exists() else {}
        own = known.get(name) or {"key": None, "steps": 0, "epochs": 0}
        tracker = make_tracker(name)
        recipe = yaml.safe_load(self.folder.recipe.read_bytes())
        run = TrackedRun(
            self._name, self.project, flat_recipe(recipe), self.folder.path / _ROOM, self._base, own["key"]
        )
        self._keys = known | self._keys | {name: {**own, "key": tracker.begin(run)}}
        self._trackers[name] = tracker
        self._keep()

    def catch_up(self, phase: str) -> None:
        """Tell what the folder's files hold and a tracker was not told.

        Args:
            phase: the one at hand, where there are several; else empty.
        """
        rows = list(_epochs(self.folder.path / "metrics.csv"))
        phases = {row["epoch"]: str(row.get("phase") or "joint") for row in rows} if phase else {}
        found = [
            ("steps", row["step"], _prefixed(step_values(row), phases.get(row["epoch"] + 1, phase)))
            for row in _steps(self.folder.path / "steps.jsonl")
        ]
        found += [("epochs", row["step"], _prefixed(epoch_values(row), phases.get(row["epoch"], ""))) for row in rows]
        for kind, step, values in sorted(found, key=lambda one: (one[1], one[0] == "epochs")):
            self._tell(kind, step, values)

    def step(self, row: Mapping[str, Any], phase: str) -> None:
        """Tell a row of ``steps.jsonl``."""
        self._tell("steps", row["step"], _prefixed(step_values(row), phase))

    def epoch(self, row: Mapping[str, Any], phase: str) -> None:
        """Tell a row of ``metrics.csv``."""
        self._tell("epochs", row["step"], _prefixed(epoch_values(row), phase))

    def close(self, finished: bool) -> None:
        """Tell how the run ended: with its result, or interrupted, so that it may go on later.

        A run that was killed after its last step has its result without having trained: its trackers are opened for it.
        """
        if finished and not self._open:
            self.open(fresh=False)
            self.catch_up("")
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: self._finish(tracker, finished))  # type: ignore[misc]
        self._trackers = {}

    def _finish(self, tracker: Tracker, finished: bool) -> None:
        result = self.folder.result() if finished else None
        tracker.finish(None if result is None else flat_result(result["rows"]))

    def _tell(self, kind: str, step: int, values: dict[str, float]) -> None:
        told = False
        for name, tracker in list(self._trackers.items()):
            if step > self._keys[name][kind]:  # else told before the run was interrupted; the row is the same
                told |= self._guarded(name, lambda tracker=tracker: tracker.log(step, values))  # type: ignore[misc]
                self._keys[name][kind] = step
        if told and self._trackers:
            self._guarded(next(iter(self._trackers)), self._keep)

    def _keep(self) -> None:
        """Write ``told.json``: renamed into place, but not flushed, as a row that a power cut undoes is told again."""
        path = self.folder.path / _ROOM / "told.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(to_json(self._keys) + "\n", encoding="utf-8")
        os.replace(part, path)

    def _guarded(self, name: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except Exception as error:  # whatever a tracker, its server or its disk may raise
            self._trackers.pop(name, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            log.warning(
                f"{name} is told no more of {self._name}: {reason}. The run goes on, and its folder holds everything; "
                "a run that is interrupted and goes on tells it the rest."
            )
            return False
        return True


def _place(path: Path, title: str) -> tuple[Path, str]:
    """The folder beside the run's, and the run's name; a control or an assistant is a part of the run above it.

    Example:
        >>> _place(Path("runs/small/control"), "control")
        (PosixPath('runs'), 'small/control')
        >>> _place(Path("runs/small"), "student, head")
        (PosixPath('runs'), 'small')
    """
    path = Path(os.path.abspath(path)) if path.name in ("", "..") else path
    role = title.partition(",")[0].replace(" ", "-")
    if role == path.name and role not in ("student", "teacher"):
        return path.parent.parent, f"{path.parent.name}/{path.name}"
    return path.parent, path.name


def _prefixed(values: dict[str, float], phase: str) -> dict[str, float]:
    """The values of a phase under its name, as several phases may have terms of one name."""
    return {f"{phase.replace(' ', '-')}/{name}": value for name, value in values.items()} if phase else values


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def _epochs(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                values: dict[str, Any] = {key: _number(value) for key, value in row.items() if value}
                yield values | {key: int(values[key]) for key in ("epoch", "step")}


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
