"""Looking at every byte of a store, and clearing the way to build again what is damaged."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.errors import RunError
from potstill.store.creation import MARKS_FILE
from potstill.store.manifest import Manifest, read_manifest
from potstill.store.means import MEANS_FILE, read_means
from potstill.store.seal import sound
from potstill.store.shards import RowFile, disk, lengthen, shard_path

__all__ = ["Report", "mend", "verify"]

_CHUNK_BYTES = 1 << 23
_NAMED = 10  # records that a report's sentence lists


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found.

    Attributes:
        folder: the store's.
        manifest: what ``store.json`` says.
        missing: ``(M,)`` int64, rows that are not written: no harm, but work to do.
        damaged: ``(K,)`` int64, rows that are marked as written and are not what was written.
        files: a sentence for each file that is missing, too short, too long or not ours.
    """

    folder: Path
    manifest: Manifest
    missing: np.ndarray
    damaged: np.ndarray
    files: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether all that is marked as written is there, as it was written."""
        return not len(self.damaged) and not self.files

    @property
    def complete(self) -> bool:
        """Whether it is sound and every record is there."""
        return self.sound and not len(self.missing)

    def sentences(self) -> list[str]:
        """What was found, in words; the first of the rows by sample, view and file."""
        rows = self.manifest.rows
        if self.complete:
            return [f"all {rows:,} records are there and whole"]
        found = list(self.files)
        if len(self.damaged):
            found.append(f"{len(self.damaged):,} of {rows:,} records are damaged: {self._named(self.damaged)}")
        if len(self.missing):
            found.append(f"{len(self.missing):,} of {rows:,} records are not written yet: {self._named(self.missing)}")
        return found

    def _named(self, rows: np.ndarray) -> str:
        places = [
            f"sample {row % self.manifest.samples} view {row // self.manifest.samples} in "
            f"{shard_path(self.folder, row // self.manifest.rows_per_shard).name}"
            for row in rows[:_NAMED].tolist()
        ]
        return "; ".join(places) + ("; ..." if len(rows) > _NAMED else "")


def verify(path: str | Path, progress: Callable[[int, int], object] | None = None) -> Report:
    """Look at every record that is marked as written, and at the size of every file.

    A flipped bit, a record in another's place, a shard that was cut short or exchanged for another one's or another
    store's: all are found by the CRC-32, which is begun from the store's key and the row's number. What is not marked
    may hold anything.

    Args:
        path: a store's folder.
        progress: called with how many of all rows have been looked at.

    Raises:
        RunError: there is no store, or its ``store.json`` is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    files: list[str] = []
    marks = read_rows(folder / MARKS_FILE, 1, manifest.rows, files)
    written = np.zeros(manifest.rows, dtype=np.uint8)
    written[: len(marks)] = marks[:, 0]
    damaged = [np.flatnonzero(written > 1)]  # a mark is 0 or 1
    for number, start in enumerate(range(0, manifest.rows, manifest.rows_per_shard)):
        stop = min(start + manifest.rows_per_shard, manifest.rows)
        records = read_rows(shard_path(folder, number), manifest.layout.record_bytes, stop - start, files)
        damaged.append(np.flatnonzero(written[start + len(records) : stop]) + start + len(records))
        for rows in parts(np.flatnonzero(written[start : start + len(records)]), manifest.layout.record_bytes):
            whole = sound(records[rows], rows + start, manifest.salt)
            damaged.append(rows[~whole] + start)
        if progress is not None:
            progress(stop, manifest.rows)
    if not means_are_whole(folder, manifest):
        files.append(f"{MEANS_FILE} is damaged, or another store's")
    return Report(folder, manifest, np.flatnonzero(written == 0), np.unique(np.concatenate(damaged)), tuple(files))


def mend(report: Report) -> None:
    """Make a store sound again: what is damaged is as if it had never been written, and building goes on with that.

    Damaged records lose their marks, every file gets the length that it must have, and damaged class means are deleted.
    The marks go first: broken off on the way, nothing is marked that is not there. Nobody may write meanwhile.

    Raises:
        RunError: the files cannot be written.
    """
    folder, manifest = report.folder, report.manifest
    marks = folder / MARKS_FILE
    set_length(marks, manifest.rows)
    if len(report.damaged):
        file = RowFile(marks, 1, manifest.rows)
        file.write(report.damaged, np.zeros((len(report.damaged), 1), dtype=np.uint8))
        file.flush()
    for number, start in enumerate(range(0, manifest.rows, manifest.rows_per_shard)):
        rows = min(manifest.rows_per_shard, manifest.rows - start)
        set_length(shard_path(folder, number), rows * manifest.layout.record_bytes)
    if not means_are_whole(report.folder, manifest):
        with disk(folder / MEANS_FILE):
            (folder / MEANS_FILE).unlink()


def set_length(path: Path, size: int) -> None:
    """Make a file exactly so long."""
    lengthen(path, size)
    with disk(path):
        os.truncate(path, size)


def means_are_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether the class means, if there are any, are those that were written."""
    try:
        read_means(folder, "", manifest.key.digest)
    except RunError:
        return False
    return True


def read_rows(path: Path, row_bytes: int, rows: int, files: list[str]) -> np.ndarray:
    """The whole rows ``(n <= rows, row_bytes)`` that a file has; what is wrong with its size is added to ``files``."""
    size = path.stat().st_size if path.is_file() else 0
    needed = rows * row_bytes
    if size < needed:
        state = f"has {size:,} bytes of {needed:,}" if path.is_file() else "is missing"
        files.append(f"{path.name} {state}")
    elif size > needed and np.memmap(path, dtype=np.uint8, mode="r", offset=needed).any():
        files.append(f"{path.name} has {size:,} bytes, and {needed:,} are the store's")
    if not (there := min(rows, size // row_bytes)):
        return np.empty((0, row_bytes), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(there, row_bytes))


def parts(rows: np.ndarray, record_bytes: int) -> Iterator[np.ndarray]:
    """Rows in parts of a few megabytes of records."""
    most = max(1, _CHUNK_BYTES // record_bytes)
    yield from (rows[start : start + most] for start in range(0, len(rows), most))
