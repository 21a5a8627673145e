"""Images in Parquet, in the layout of the Hugging Face hub, read row group by row group."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from potstill.data.columns import choose_columns, number_labels
from potstill.data.decode import decode
from potstill.data.materialise import materialise
from potstill.data.remote import RemoteFile, each, reaching, stored
from potstill.data.sampling import common_size
from potstill.data.source import IMAGENET, Source, Statistics, fingerprint
from potstill.data.stored import StoredFile
from potstill.errors import DataError, RunError

__all__ = ["ParquetSource"]

CACHE = 1 << 30  # bytes of undecoded row groups that one process keeps


class ParquetSource(Source):
    """Images that lie as files inside Parquet files.

    Labels are read at once, images when they are asked for: the row group they lie in is read and kept, up to 1 GiB of
    them in each process. A larger set is slow in any order, which reads whole row groups for single images:
    :func:`~potstill.data.groups.choose_order` has one that does not. The ``path`` beside an image's bytes is never
    opened.

    Args:
        files: the shards, in order.
        name: what messages call the set.
        image_column: the image column, where it is not to be found.
        label_column: the label column, where it is not to be found.
        classes: the classes' names, from the training set; by default from the files.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: files that are damaged or differ in their columns, columns or labels that cannot be used, no rows.

    Attributes:
        columns: the columns that are read.
        note: what to say out loud about their choice; empty where there is nothing to say.

    ``identity`` is a hash of each file's name, size and footer (which tells where every column of every row group
    lies, and the range of its values), of the labels and of the classes' names.
    """

    def __init__(
        self,
        files: Sequence[Path | StoredFile],
        *,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: Sequence[str] = (),
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.name = name
        self.statistics = statistics
        self.files = [file if isinstance(file, StoredFile) else stored(file) for file in files]
        remote = any(isinstance(file, RemoteFile) for file in self.files)
        self._start_reading()
        each(self._open, range(len(self.files)), remote)
        schema = self._open(0).schema_arrow
        self.columns = choose_columns(schema, name, image_column, label_column)
        wanted = [column for column in (self.columns.image, self.columns.label) if column is not None]
        groups: list[tuple[int, int, int]] = []  # file, row group in it, rows
        for number in range(len(self.files)):
            file = self._open(number)
            for column in wanted:
                if column not in file.schema_arrow.names or not file.schema_arrow.field(column).equals(
                    schema.field(column)
                ):
                    raise DataError(f"{self.files[number]} and {self.files[0]} differ in column {column!r}.")
            meta = file.metadata
            groups += [(number, group, meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
        self._row_groups = groups
        rows = np.array([rows for _, _, rows in groups], dtype=np.int64)
        self._ends = np.cumsum(rows)  # row number after each group
        files_of = np.array([number for number, _, _ in groups], dtype=np.int64)
        self._firsts = [int(rows[files_of < number].sum()) for number in range(len(self.files))]  # of each file
        if not len(self):
            raise DataError(f"{name} has no rows.")
        self.groups = np.unique(np.append(self._ends, 0))
        stored_bytes = sum(
            self._open(number).metadata.row_group(group).total_byte_size for number, group, _ in self._row_groups
        )
        self.held = CACHE * len(self) // max(stored_bytes, 1)
        self.scattered = remote or stored_bytes > CACHE
        self.note = self.columns.note
        if self.columns.label is not None:
            if classes and self.columns.classes and self.columns.classes != tuple(classes):
                raise DataError(f"{name}: the classes of column {self.columns.label!r} differ from the training set's.")
            tables = each(self._labels, range(len(self.files)), remote)
            chunks = [chunk for table in tables for chunk in table.chunks]
            self.labels, self.classes = number_labels(
                pa.chunked_array(chunks), self.columns.label, name, tuple(classes) or self.columns.classes
            )
            if self.labels is None:
                self.note = f"Column {self.columns.label!r} is -1 throughout, so the images go without labels."
        self.fixed_size = common_size(self, next(rows for _, _, rows in self._row_groups if rows))
        self._identity = fingerprint(each(self._footer, range(len(self.files)), remote), self.labels, self.classes)

    @property
    def identity(self) -> str:
        """A hash of the files' names, sizes and footers, of the labels and of the classes' names."""
        return self._identity

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def describe(self, index: int) -> str:
        """The row and its file."""
        number, _, _ = self._row_groups[self._locate(index)[0]]
        return f"row {index - self._firsts[number]} of {self.files[number]}"

    def arrays(self) -> np.ndarray | None:
        """All images, where the images looked at are small and of one size; decoded anew at each call."""
        return None if self.fixed_size is None else materialise(self).images

    def encoded(self, index: int) -> bytes:
        """The image file of one row, undecoded."""
        group, row = self._locate(index)
        value = self._group(group)[row].as_py()
        if value is None:
            raise DataError(
                f"{self.describe(index)} holds no bytes of an image in column {self.columns.image!r} (a path beside "
                "them is not followed)."
            )
        return value

    def _locate(self, index: int) -> tuple[int, int]:
        """The row group, and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no image {index}.")
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _group(self, group: int) -> pa.Array:
        """The image column of one row group, from the cache or from the file."""
        if self._owner != os.getpid():
            self._start_reading()
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            number, within, _ = self._row_groups[group]
            column = self._read(number, [within], self.columns.image).combine_chunks()
            if isinstance(column, pa.ChunkedArray):  # bytes over 2 GiB stay in several pieces
                raise DataError(f"{self.files[number]}: row group {within} is too large; write it in smaller ones.")
            self._cache[group] = column.field("bytes") if self.columns.nested else column
            self._held += self._cache[group].nbytes
            while self._held > CACHE and len(self._cache) > 2:  # two, which a window of one group's length can touch
                _, dropped = self._cache.popitem(last=False)
                self._held -= dropped.nbytes
            return self._cache[group]

    def _read(self, number: int, groups: Sequence[int], column: str) -> pa.ChunkedArray:
        """One column of some row groups; of a struct only its field ``bytes``."""
        nested = column == self.columns.image and self.columns.nested
        file = self.files[number]
        try:
            # No threads of pyarrow's own: they do not survive the fork into a loader's workers.
            table = self._open(number).read_row_groups(
                list(groups), columns=[f"{column}.bytes" if nested else column], use_threads=False
            )
        except Exception as error:
            if isinstance(file, RemoteFile):  # no image's damage: the way there, with the errors of its own library
                raise RunError(f"Cannot read {file}: {error}.") from error
            if not isinstance(error, OSError | pa.ArrowException):
                raise
            raise DataError(f"Cannot read {file}: {error}. The file is damaged; fetch it again.") from error
        return table.column(column)

    def _open(self, number: int) -> pq.ParquetFile:
        """One file, opened once in each process."""
        if self._owner != os.getpid():
            self._start_reading()
        if number not in self._handles:
            file = self.files[number]
            try:
                with reaching(str(file)):
                    # Of a remote file, a row group's column is one request, and what lies behind it none.
                    self._handles[number] = (
                        pq.ParquetFile(file.open(cache="none"))
                        if isinstance(file, RemoteFile)
                        else pq.ParquetFile(str(file), memory_map=True)
                    )
            except DataError as error:
                if isinstance(error.__cause__, OSError | pa.ArrowException):
                    raise DataError(
                        f"Cannot read {file} as Parquet: {error.__cause__}. Fetch it again, or give another file."
                    ) from error.__cause__
                raise
        return self._handles[number]

    def _labels(self, number: int) -> pa.ChunkedArray:
        """The label column of one file."""
        return self._read(number, range(self._open(number).metadata.num_row_groups), str(self.columns.label))

    def _footer(self, number: int) -> tuple[str, int, str]:
        """A file's name, size and the hash of its footer."""
        file = self.files[number]
        length = int.from_bytes(file.read(file.size - 8, 4), "little")  # then four bytes of magic
        return file.name, file.size, hashlib.sha256(file.read(file.size - 8 - length, length)).hexdigest()

    def _start_reading(self) -> None:
        """Forget open files and cached row groups, and take this process as their owner."""
        self._owner = os.getpid()
        self._handles: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Array] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        private = ("_handles", "_cache", "_held", "_lock", "_owner")
        return {key: value for key, value in self.__dict__.items() if key not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()
