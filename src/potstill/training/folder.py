"""A run's folder: who owns it, and the files that every run leaves."""

import contextlib
import csv
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.errors import RunError
from potstill.files import write_whole
from potstill.plain_json import to_json
from potstill.training.checkpoints import Checkpoints

__all__ = ["Busy", "RunFolder", "held", "is_held"]

# What a folder can hold before its first checkpoint, beside the recipe; the control is a run of its own.
_FIRST = (
    ".lock", "class_means.safetensors", "control", "identity.json", "steps.jsonl", "metrics.csv", "tracking",
)  # fmt: skip

_LOOKS, _LOOK_SECONDS = 5, 0.05  # at a lock: whoever only asks whether it is held holds it for a moment


class Busy(RunError):
    """Another process is at work where this one wanted to be.

    Attributes:
        lock: the file that it holds.
    """

    def __init__(self, message: str, lock: Path) -> None:
        super().__init__(message)
        self.lock = lock


@contextlib.contextmanager
def held(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock, which falls with the process, however it ends.

    Args:
        lock: a file, made where it is missing; what is in it stays.
        busy: the sentence where another process holds it.

    Raises:
        Busy: another process holds it.
        OSError: the file cannot be made or written to.
    """
    with open(lock, "ab") as file:
        for look in range(_LOOKS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if look + 1 == _LOOKS:
                    raise Busy(busy, lock) from None
                time.sleep(_LOOK_SECONDS)
        yield


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class RunFolder:
    """``recipe.yaml``, ``metrics.csv``, ``steps.jsonl``, ``checkpoints/``, and at the end ``result.json``.

    Args:
        path: made when something is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, with versions and the command in its head."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the trainer's states."""
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with or to lose: a checkpoint, or what a finished run leaves."""
        finished = any((self.path / name).exists() for name in ("result.json", "student.safetensors"))
        return finished or Checkpoints(self.checkpoints).newest() is not None

    def foreign(self) -> list[str]:
        """The names of what a folder holds beside the beginnings of a run, or of a run's files without a recipe."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        own = {*_FIRST, *(f"{name}.part" for name in _FIRST)}
        own |= {name for name in names if name.startswith("assistant-")}  # runs of their own, that come before this one
        if "identity.json" in names:  # written first: with it, a recipe is the run's copy and not somebody's own file
            own |= {"recipe.yaml", "recipe.yaml.part"}
        if "recipe.yaml" in names or not self.begun:
            own |= {"checkpoints"}
        return sorted(names - own)

    def check_place(self) -> None:
        """Look whether the folder can be made and written to, before much is done for it; a finished run is let be.

        Raises:
            RunError: a file lies in its place or above it, or nothing may be written there.
        """
        place = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
        if not os.path.isdir(place):
            so = "" if place == self.path else f", so there can be no folder {self.path}"
            raise RunError(f"{place} is a file{so}; give another run=.")
        if not os.access(place, os.W_OK | os.X_OK) and not (self.path / "result.json").exists():
            cannot = "written to" if place == self.path else f"made in {place}"
            raise RunError(f"The run's folder {self.path} cannot be {cannot}: permission denied. Give another run=.")

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder; the lock falls with the process, however it ends.

        Raises:
            Busy: where another process trains in it.
            RunError: where it cannot be written to.
        """
        self.make()
        busy = f"Another process is at work in {self.path}; wait for it, or give another run=."
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(self.path / ".lock", busy))
            except OSError as error:
                raise RunError(f"The run's folder {self.path} cannot be written to: {error.strerror}.") from None
            yield

    def make(self) -> None:
        """Make the folder.

        Raises:
            RunError: where it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run's folder {self.path} cannot be made: {error.strerror}.") from None

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        self.make()
        write_whole(self.path / name, text)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """All epochs' rows, as ``metrics.csv``."""
        columns = list(dict.fromkeys(key for row in history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write_text("metrics.csv", text.getvalue())

    def append_step(self, row: dict[str, Any]) -> None:
        """One row of ``steps.jsonl``.

        Raises:
            RunError: where it cannot be written (a full disk); the rows and checkpoints are as they were.
        """
        path = self.path / "steps.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(to_json(row) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # no half row
            raise RunError(
                f"{path} could not be written: {error.strerror}. The checkpoints are whole; the same command goes on "
                "from the last one."
            ) from None

    def forget_steps_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run takes again, and a last row cut short by a kill."""
        path = self.path / "steps.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        self.write_text("steps.jsonl", "".join(kept))

    def write_identity(self, identity: dict[str, Any]) -> None:
        """Hashes of what the run is made from, for a resumed run to compare with."""
        self.write_text("identity.json", to_json(identity, indent=2) + "\n")

    def identity(self) -> dict[str, Any]:
        """What :meth:`write_identity` wrote.

        Raises:
            RunError: where it is missing or damaged.
        """
        identity = self._read("identity.json", "Put it back as it was, or give another run=.")
        if identity is None:
            raise RunError(
                f"{self.path / 'identity.json'} is missing: nothing tells whether data and teacher are still those of "
                "the run. Put it back, or give another run=."
            )
        return identity

    def write_result(self, result: dict[str, Any]) -> None:
        """The run's outcome; its presence says that the run is finished."""
        self.write_text("result.json", to_json(result, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """The outcome of a finished run, or None.

        Raises:
            RunError: where it is damaged.
        """
        advice = "Delete it, and the same command goes on from the last checkpoint."
        result = self._read("result.json", advice)
        rows = {} if result is None else result.get("rows")
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise RunError(f"{self.path / 'result.json'} is damaged: it has no rows of results. {advice}")
        if result is not None and "student" not in rows:
            raise RunError(f"{self.path / 'result.json'} is damaged: it has no row of the student. {advice}")
        return result

    def _read(self, name: str, advice: str) -> dict[str, Any] | None:
        """An object in a JSON file, or None where there is no file; a damaged one is told with the advice."""
        path = self.path / name
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}. {advice}") from None
        except ValueError as error:  # covers broken UTF-8 too
            raise RunError(f"{path} is damaged: it is no valid JSON ({error}). {advice}") from None
        if not isinstance(content, dict):
            raise RunError(f"{path} is damaged: it holds a {type(content).__name__}, not an object. {advice}")
        return content
