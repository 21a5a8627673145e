"""Checkpoints that are whole or not there: written aside, flushed, then renamed."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch

from potstill.errors import RunError

__all__ = ["Checkpoints", "write_atomically"]

_SUFFIX = ".pt"


class Checkpoints:
    """The newest few states of a run, as ``step-00001564.pt`` in one folder.

    A file under that name is complete: it is written under another name, flushed to the disk and renamed. Loading
    unpickles tensors and plain containers only (``weights_only``).

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state reached after ``step`` steps, then drop what is older than the newest ``keep``.

        Raises:
            RunError: where it cannot be written; the older ones are as they were.
        """
        path = self.folder / f"step-{step:08d}{_SUFFIX}"

        def write(part: Path) -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:  # given the path alone, torch would not say why it cannot write
                torch.save(state, file)

        write_atomically(path, write)
        for old in self._paths()[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint's path, or None where there is none."""
        return paths[-1] if (paths := self._paths()) else None

    def load(self, path: Path) -> dict[str, Any]:
        """A checkpoint's state, on the CPU.

        Raises:
            RunError: for a file that is damaged or would run code; names the checkpoint before it.
        """
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and OS errors alike: the file is no checkpoint
            older = [other for other in self._paths() if other < path]
            way_on = f"delete it to go on from {older[-1].name}" if older else "delete it to start again"
            if code := re.search(r"GLOBAL (\S+)", str(error)):
                raise RunError(
                    f"The checkpoint {path} is refused: to load it would run code ({code[1]}), and no run writes "
                    f"such a file; {way_on}."
                ) from None
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise RunError(f"The checkpoint {path} cannot be read ({reason}); {way_on}.") from None

    def clear_parts(self) -> None:
        """Remove what a killed process left half-written."""
        if self.folder.is_dir():
            for part in self.folder.glob("*.part"):
                part.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-*{_SUFFIX}")) if self.folder.is_dir() else []


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write`` with a path beside ``path``, flush what it wrote, and rename it to ``path``.

    Raises:
        RunError: where the file cannot be written (a full disk, no permission); nothing half-written stays behind.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = _reason(error)
        if reason is None:  # nothing that the system said: not the disk's fault
            raise
        raise RunError(
            f"{path} could not be written: {reason}. What was there before is whole; when that is mended, the "
            "same command goes on."
        ) from None


def _reason(error: BaseException) -> str | None:
    """What the system said, which lies below what torch made of it; None where it said nothing."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError):
            return below.strerror or str(below)
        below = below.__context__
    return None


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut (where the system can flush a folder at all)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
