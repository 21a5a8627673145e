"""Files that are whole under their name or not there: written aside, flushed to the disk, then renamed."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from potstill.errors import RunError

__all__ = ["write_atomically", "write_whole"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a path beside ``path``, flush what it wrote, and rename it to ``path``.

    A process that is killed on the way leaves at most ``NAME.part``, which the next write of that name replaces.

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


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file's bytes, or its text in UTF-8, by :func:`write_atomically`.

    Raises:
        RunError: where it cannot be written.
    """
    encoded = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda part: part.write_bytes(encoded))


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
