"""A run's newest few states, each whole or not there."""

import re
from pathlib import Path
from typing import Any

import torch

from potstill.errors import RunError
from potstill.files import write_atomically

__all__ = ["Checkpoints"]

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
