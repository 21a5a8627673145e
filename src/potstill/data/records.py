"""Faces in insightface's record format: one file of images, one of their positions, read without MXNet."""

import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from potstill.data.decode import MAX_BYTES, decode
from potstill.data.materialise import materialise
from potstill.data.sampling import common_size
from potstill.data.source import Source, Statistics, check_labels, fingerprint
from potstill.data.stored import LocalFile
from potstill.errors import DataError

__all__ = ["FACES", "RecordSource", "find_records"]

log = logging.getLogger(__name__)

FACES = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""How the field's networks read faces: pixels from -1 to 1."""

MAGIC = 0xCED7230A  # begins each part of a record
MARK = MAGIC.to_bytes(4, "little")
WHOLE, FIRST, MIDDLE, LAST = range(4)  # parts of a record, in the three highest bits of the word behind the magic
MOST = 1 << 24  # identities: beyond it, labels of 32-bit floating point would no longer tell neighbours apart
LENGTH = (1 << 29) - 1  # the other bits: bytes of the part
HEAD = 24  # bytes of an image's header: how many numbers its label has, the label if it is one, two ids of 8 bytes


class Positions(NamedTuple):
    """Where records begin; from an ``.idx`` file.

    Attributes:
        keys: ``(K,)`` int64, the records' numbers, rising.
        starts: ``(K,)`` int64, in bytes.
    """

    keys: np.ndarray
    starts: np.ndarray


class RecordSource(Source):
    """Images and identities out of ``train.rec``, by position, with ``train.idx`` and ``property`` beside it.

    The layout is MXNet's RecordIO. A record is the magic number, a word with the length, and its bytes, filled up to
    whole words; one that holds the magic number itself lies in several parts. An image's record begins with a header
    (its label, or how many numbers the label has and then those numbers, of which the first is the identity).
    Record 0 holds no image where its label has two numbers: images are then the records from 1 to below the
    first of them, and what follows are ranges of the identities, which are not needed. ``property`` holds the number of
    identities, the height and the width: ``85742,112,112``.

    Opening looks at the beginning of every record. An image is then one read at its position.

    Args:
        path: the ``.rec`` file, or the folder with one.
        name: what messages call the set.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: a missing file; positions that are not those of records in this file; labels that are no identities;
            records that are missing.

    ``identity`` is a hash of the file's name and size, of the records' numbers, positions and lengths, and of the
    labels. The images are not read for it: one replaced by another of the same size in bytes goes unnoticed.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, statistics: Statistics = FACES) -> None:
        record = find_records(path)
        self.file = LocalFile(record)
        self.name = name or str(path)
        self.statistics = statistics
        index = read_positions(record.with_suffix(".idx"))
        words = self._words()
        kinds, lengths = self._parts(words, index)
        self._keys, self._starts, chosen = self._images(words, index)
        self._kinds, self._lengths = kinds[chosen], lengths[chosen]
        self._extra, labels = self._labels(words)
        count = read_count(record.with_name("property"))
        if count is None:
            count = int(labels.max()) + 1
            if count > max(len(labels), 2):
                raise DataError(
                    f"{self.name}: labels go up to {count - 1:,}, but there are only {len(labels):,} images. Put the "
                    "file 'property' beside the .rec file: the number of identities, height and width, 85742,112,112."
                )
        if count < 2:
            raise DataError(f"{self.name} has one identity only; a set to learn from needs at least two.")
        self.classes = tuple(str(number) for number in range(count))
        self.labels = check_labels(labels, len(labels), count, self.name)
        absent = count - len(np.unique(labels))
        if absent:
            log.warning("%s: %d of its %d identities have no image.", self.name, absent, count)
        self._identity = fingerprint(
            (self.file.name, self.file.size), self._keys, self._starts, self._lengths, self.labels, count
        )
        self.fixed_size = common_size(self, len(self))

    @property
    def identity(self) -> str:
        """A hash of the file's name and size, the records' positions and lengths and the labels; not of the pixels."""
        return self._identity

    def __len__(self) -> int:
        return len(self._keys)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> bytes:
        """The image's file, by one read at its position; by several where the record lies in parts."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no image {index}.")
        place, length = int(self._starts[index]), int(self._lengths[index])
        if length > MAX_BYTES:
            raise DataError(f"{self.describe(index)} has {length:,} bytes, more than the {MAX_BYTES:,} of one image.")
        content = self.file.read(place + 8, length)
        if self._kinds[index] != WHOLE:
            content = self._joined(index, content)
        return content[HEAD + 4 * int(self._extra[index]) :]

    def describe(self, index: int) -> str:
        """The record's number and its file."""
        return f"record {self._keys[index]} of {self.file}"

    def arrays(self) -> np.ndarray | None:
        """All images, where the images looked at are small and of one size; decoded anew at each call."""
        return None if self.fixed_size is None else materialise(self).images

    def _joined(self, index: int, content: bytes) -> bytes:
        """A record that lies in parts, whole: the magic number stood where it was cut."""
        parts, place, kind = [content], int(self._starts[index]), FIRST
        while kind != LAST:
            place += 8 + (len(parts[-1]) + 3) // 4 * 4
            if place + 8 > self.file.size:
                raise DataError(f"Cannot read {self.describe(index)}: its last part is missing.")
            magic, word = np.frombuffer(self.file.read(place, 8), "<u4").tolist()
            kind, length = word >> 29, word & LENGTH
            if magic != MAGIC or kind not in (MIDDLE, LAST) or place + 8 + length > self.file.size:
                raise DataError(f"Cannot read {self.describe(index)}: at byte {place:,} there is no part of it.")
            parts.append(self.file.read(place + 8, length))
            if sum(map(len, parts)) > MAX_BYTES:
                raise DataError(f"{self.describe(index)} has more than the {MAX_BYTES:,} bytes of one image.")
        return MARK.join(parts)

    def _words(self) -> np.ndarray:
        """The file as 32-bit words, mapped and not read."""
        if self.file.size < 8:
            raise DataError(f"{self.file} has {self.file.size} bytes; that is no record. Fetch it again.")
        return np.memmap(self.file.path, "<u4", mode="r", shape=(self.file.size // 4,))

    def _parts(self, words: np.ndarray, index: Positions) -> tuple[np.ndarray, np.ndarray]:
        """Of each record which part begins it and the bytes of that part, once all of them are found to be there."""
        wrong = (index.starts % 4 != 0) | (index.starts < 0) | (index.starts + 8 > 4 * len(words))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{self.file} has {self.file.size:,} bytes, and record {index.keys[at]} should begin at byte "
                f"{index.starts[at]:,}. The .rec file is truncated, or the .idx file is another one's."
            )
        at_word = index.starts // 4
        magic, sizes = words[at_word], words[at_word + 1]
        kinds, lengths = (sizes >> 29).astype(np.int8), (sizes & LENGTH).astype(np.int64)
        wrong = (magic != MAGIC) | (kinds > FIRST) | (lengths < HEAD) | (index.starts + 8 + lengths > self.file.size)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{self.file}: at byte {index.starts[at]:,}, where record {index.keys[at]} should begin, there is no "
                f"whole record; nor at {int(wrong.sum()) - 1:,} other places. The file is damaged or truncated, or the "
                ".idx file is another one's."
            )
        return kinds, lengths

    def _images(self, words: np.ndarray, index: Positions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers and positions of the records that are images, and where they stand in ``index``."""
        chosen = np.arange(len(index.keys))
        place = int(index.starts[0]) // 4 + 2
        if index.keys[0] == 0 and int(words[place]) > 0:  # a label of several numbers: it tells where the images end
            end = float(words[place + HEAD // 4 : place + HEAD // 4 + 1].view("<f4")[0])
            if not end.is_integer() or end < 2:
                raise DataError(f"{self.file}: record 0 says that the images end before record {end}. It is damaged.")
            chosen = np.flatnonzero((index.keys > 0) & (index.keys < end))
            if len(chosen) != end - 1:
                raise DataError(
                    f"{self.file} should have images in the records 1 to {int(end) - 1:,}, and the .idx file knows "
                    f"{len(chosen):,} of them. One of the two files is incomplete."
                )
        return index.keys[chosen], index.starts[chosen], chosen

    def _labels(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each image how many numbers its label has beside the header, and its identity, both int64."""
        place = self._starts // 4 + 2
        extra = words[place].astype(np.int64)
        behind = HEAD + 4 * extra
        wrong = np.flatnonzero(behind >= self._lengths)
        if wrong.size:
            raise DataError(f"{self.file}: record {self._keys[wrong[0]]} has a label and no image. It is damaged.")
        values = words[place + np.where(extra > 0, HEAD // 4, 1)].view("<f4")
        wrong = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > MOST))
        if wrong.size:
            raise DataError(
                f"{self.file}: the label of record {self._keys[wrong[0]]} is {values[wrong[0]]}, but must be the "
                "number of its identity."
            )
        return extra, values.astype(np.int64)


def find_records(path: str | Path) -> Path:
    """The ``.rec`` file at a path: the file itself, or the only one in a folder, or ``train.rec`` of several.

    Raises:
        DataError: there is none, or there are several and none is ``train.rec``.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".rec":
        return path
    found = sorted(path.glob("*.rec")) if path.is_dir() else []
    named = [one for one in found if one.name == "train.rec"] or found
    if len(named) != 1:
        several = f"has several .rec files ({', '.join(one.name for one in found[:3])}); name one of them"
        raise DataError(f"{path} {several if found else 'has no .rec file; give that file, or the folder with it'}.")
    return named[0]


def read_positions(path: Path) -> Positions:
    """The ``.idx`` file: a line for each record, its number and its position in bytes.

    Raises:
        DataError: no such file, no records, a line that is not two whole numbers, a number that comes twice.
    """
    should = f"{path} should have lines of two whole numbers, a record's number and its position"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of a file without lines, which is refused below
            rows = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None)
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror or 'there is no such file'}. It has the positions of the records in "
            "the .rec file beside it."
        ) from error
    except ValueError as error:
        raise DataError(f"{should}, but it cannot be read so: {str(error).partition(';')[0]}.") from error
    if not rows.size:
        raise DataError(f"{should}, but it is empty.")
    if rows.shape[1] != 2 or rows.min() < 0:
        raise DataError(f"{should}, but it has {'numbers below 0' if rows.shape[1] == 2 else 'rows of other lengths'}.")
    keys, starts = rows.T
    order = np.argsort(keys, kind="stable")
    keys, starts = keys[order], starts[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.size:
        raise DataError(f"{path} has record {keys[twice[0]]} twice.")
    return Positions(keys, starts)


def read_count(path: Path) -> int | None:
    """The number of identities in a ``property`` file; None where there is no such file.

    Raises:
        DataError: a file that does not begin with a number above 0.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and 0 < int(part) <= MOST for part in parts):
        raise DataError(
            f"{path} should hold the number of identities, the height and the width, like 85742,112,112, and holds "
            f"{text[:40]!r}."
        )
    return int(parts[0])
