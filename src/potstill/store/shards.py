"""Files of fixed-size rows: mapped for reading, written in place, flushed together."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from potstill.errors import RunError

__all__ = ["SHARD_BYTES", "RowFile", "Shards", "disk", "lengthen"]

SHARD_BYTES = 1 << 28
"""About how large a shard is: 256 MiB."""


class RowFile:
    """A file of rows of one size; row r lies at the byte ``r * row_bytes``.

    Reading goes through a read-only map, so that a reader cannot harm a file, and sees what other processes write.
    Writing is positioned (``pwrite``): processes that write other rows do not disturb each other, and a full disk is an
    error and not a signal.

    Args:
        path: of a file that is there.
        row_bytes: the length of a row.
        rows: how many there are; the file may be longer (see :func:`lengthen`).

    Raises:
        RunError: the file is missing, too short or cannot be read.
    """

    def __init__(self, path: Path, row_bytes: int, rows: int) -> None:
        self.path = path
        self.row_bytes = row_bytes
        self._file: BinaryIO | None = None
        require_size(path, row_bytes * rows)
        # As one opaque value a row, which numpy copies whole.
        try:
            mapped = np.memmap(path, dtype=np.dtype((np.void, row_bytes)), mode="r", shape=(rows,))
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
        self._rows = np.asarray(mapped)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """``(B, row_bytes)`` uint8, a copy of the rows numbered ``rows`` ``(B,)``."""
        return self._rows.take(rows).view(np.uint8).reshape(len(rows), self.row_bytes)

    def span(self, start: int, stop: int) -> np.ndarray:
        """``(stop - start, row_bytes)`` uint8, read-only: the rows from ``start`` to ``stop`` as they lie there."""
        return self._rows[start:stop].view(np.uint8).reshape(-1, self.row_bytes)

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write ``values`` ``(B, row_bytes)`` uint8 to the rows ``(B,)``, which ascend; what is adjacent goes at once.

        Raises:
            RunError: where the disk takes no more.
        """
        values = np.ascontiguousarray(values)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        with disk(self.path):
            if self._file is None:
                self._file = open(self.path, "rb+", buffering=0)  # noqa: SIM115 - flush() closes it
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                write_at(self._file.fileno(), values[start:stop], int(rows[start]) * self.row_bytes)

    def flush(self) -> None:
        """Wait until what was written lies on the disk.

        Raises:
            RunError: where it does not get there.
        """
        if self._file is not None:
            with disk(self.path):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class Shards:
    """The records of a store, divided among files of at most about 256 MiB.

    ::

        rows-00000.bin   | row 0 | row 1 | ... | row R-1 |
        rows-00001.bin   | row R | ...        | row 2R-1 |
        rows-00002.bin   | row 2R | ... | the last row |

    Args:
        folder: where they lie.
        record_bytes: the length of a row.
        rows: how many there are in all.
        rows_per_shard: R.

    Raises:
        RunError: a file is missing or too short.
    """

    def __init__(self, folder: Path, record_bytes: int, rows: int, rows_per_shard: int) -> None:
        self.folder = folder
        self.record_bytes = record_bytes
        self.rows = rows
        self.rows_per_shard = rows_per_shard
        self._open: dict[int, RowFile] = {}
        for number in range(self.count):
            require_size(self.path(number), self.bytes_of(number))

    @staticmethod
    def default_rows(record_bytes: int) -> int:
        """R, for records of this length."""
        return max(1, SHARD_BYTES // record_bytes)

    @property
    def count(self) -> int:
        """How many files there are."""
        return -(-self.rows // self.rows_per_shard)

    def path(self, number: int) -> Path:
        """A shard's file."""
        return shard_path(self.folder, number)

    def bytes_of(self, number: int) -> int:
        """How long a shard's file is."""
        return min(self.rows_per_shard, self.rows - number * self.rows_per_shard) * self.record_bytes

    def read(self, rows: np.ndarray) -> np.ndarray:
        """``(B, record_bytes)`` uint8, a copy of the rows numbered ``rows`` ``(B,)``, in any order."""
        numbers = rows // self.rows_per_shard
        if len(rows) and (numbers == numbers[0]).all():
            number = int(numbers[0])
            return self._file(number).read(rows - number * self.rows_per_shard)
        found = np.empty((len(rows), self.record_bytes), dtype=np.uint8)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            found[places] = self._file(number).read(rows[places] - number * self.rows_per_shard)
        return found

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """The rows from ``start`` to ``stop`` in parts of at most ``most``: the first row's number, and the records."""
        while start < stop:
            number, first = divmod(start, self.rows_per_shard)
            last = min(first + most, self.rows_per_shard, first + stop - start)
            yield start, self._file(number).span(first, last)
            start += last - first

    def write(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Write records ``(B, record_bytes)`` uint8 to the rows ``(B,)``, in any order; of equal rows the last counts.

        Raises:
            RunError: where the disk takes no more.
        """
        order = np.argsort(rows, kind="stable")
        rows, records = rows[order], records[order]
        numbers = rows // self.rows_per_shard
        for number in np.unique(numbers).tolist():
            here = numbers == number
            self._file(number).write(rows[here] - number * self.rows_per_shard, records[here])

    def flush(self) -> None:
        """Wait until what was written lies on the disk.

        Raises:
            RunError: where it does not get there.
        """
        for file in self._open.values():
            file.flush()

    def _file(self, number: int) -> RowFile:
        if number not in self._open:
            self._open[number] = RowFile(
                self.path(number), self.record_bytes, self.bytes_of(number) // self.record_bytes
            )
        return self._open[number]


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.bin"


def lengthen(path: Path, size: int) -> None:
    """Make a file at least ``size`` bytes long, by zeros that take no place on the disk until they are written over.

    A file that is longer stays so: those are zeros of an extension that was broken off, or another process's.

    Raises:
        RunError: where it cannot be made.
    """
    with disk(path), open(path, "ab") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into a sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error.strerror or error}. What was committed before is whole; when that is "
            "mended, the same command goes on."
        ) from None


def require_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found is None or found < size:
        state = "is missing" if found is None else f"was cut short: it has {found} bytes of {size}"
        raise RunError(
            f"{path} {state}. Put the whole file back; or mend the store (`potstill store verify {path.parent} "
            "--mend`), and building it makes those rows again"
        )


def write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    left = values.data.cast("B")
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
