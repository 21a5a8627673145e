"""Pairs of faces to verify: insightface's ``.bin`` files, and LFW's ``pairs.txt`` over a folder of identities."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from potstill.data.decode import decode
from potstill.data.folder import FolderSource
from potstill.data.records import FACES
from potstill.data.source import Source, Statistics, fingerprint, subset
from potstill.data.unpickle import read_pickle
from potstill.errors import DataError

__all__ = ["EncodedSource", "PairSet", "read_bin", "read_pairs"]


@dataclass(frozen=True, slots=True, eq=False)
class PairSet:
    """Pairs of images, and whether both show one person.

    Attributes:
        name: what messages and results call the set.
        images: every image of a pair, once.
        first: ``(P,)`` int64, the position in ``images`` of each pair's first image.
        second: ``(P,)`` int64, of its second.
        same: ``(P,)`` bool, whether it is one person.
        folds: into how many parts the pairs fall for cross-validation, in their order; :meth:`fold` has each pair's.

    Raises:
        DataError: arrays of other shapes or types, positions that are not there, fewer pairs than folds, pairs of one
            kind only.

    Example:
        >>> from potstill.data.source import ArraySource
        >>> images = ArraySource(np.zeros((3, 4, 4, 3), dtype=np.uint8), None, name="three")
        >>> pairs = PairSet("two", images, np.array([0, 0]), np.array([1, 2]), np.array([True, False]), folds=2)
        >>> len(pairs), pairs.fold.tolist()
        (2, [0, 1])
    """

    name: str
    images: Source
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: int = 10

    def __post_init__(self) -> None:
        shape = self.first.shape
        if len(shape) != 1 or self.second.shape != shape or self.same.shape != shape or self.same.dtype != bool:
            raise DataError(
                f"{self.name}: first, second and same must be rows of one length, got {shape}, {self.second.shape} and "
                f"{self.same.shape} of {self.same.dtype}."
            )
        places = np.concatenate([self.first, self.second])
        if places.dtype.kind != "i" or (places.size and not 0 <= places.min() <= places.max() < len(self.images)):
            raise DataError(f"{self.name}: a pair's images must be positions from 0 to {len(self.images) - 1}.")
        if not 1 <= self.folds <= len(self):
            raise DataError(f"{self.name} has {len(self)} pairs, which cannot fall into {self.folds} parts.")
        if self.same.all() or not self.same.any():
            kind = "of one person" if self.same.all() else "of two people"
            raise DataError(f"{self.name}: all its {len(self)} pairs are {kind}; both kinds are needed to verify.")

    def __len__(self) -> int:
        return len(self.first)

    @property
    def fold(self) -> np.ndarray:
        """``(P,)`` int64, the part of each pair: as equal as can be, the first ones larger by one where it must be."""
        return np.repeat(np.arange(self.folds), [len(part) for part in np.array_split(self.first, self.folds)])

    @property
    def identity(self) -> str:
        """A hash of the images' identity, of the pairs and of their parts."""
        return fingerprint(self.images.identity, self.first, self.second, self.same, self.folds)


class EncodedSource(Source):
    """Image files that lie in memory, without labels.

    ``identity`` is a hash of the files' bytes.

    Args:
        contents: each image's file.
        name: what messages call the set.
        statistics: mean and standard deviation for normalising.
    """

    def __init__(self, contents: list[bytes], *, name: str, statistics: Statistics = FACES) -> None:
        self.name = name
        self.statistics = statistics
        self._contents = contents
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """A hash of the files' bytes."""
        if self._identity is None:
            self._identity = fingerprint(*self._contents)
        return self._identity

    def __len__(self) -> int:
        return len(self._contents)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> bytes:
        """One image's file."""
        return self._contents[index]

    def describe(self, index: int) -> str:
        """The image's number and the set's name."""
        return f"image {index} of {self.name}"


def read_bin(path: str | Path, *, folds: int = 10, statistics: Statistics = FACES) -> PairSet:
    """Pairs out of a ``.bin`` file, as LFW, CFP-FP, AgeDB-30 and others come with insightface's sets.

    Such a file is a pickle of two lists: the images' files, two for each pair, and for each pair whether it is one
    person. It is read without running what a pickle may name. The folds are the pairs in their order, cut in
    ``folds`` parts, as insightface judges them.

    Args:
        path: the file.
        folds: into how many parts the pairs fall.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: a file that is not there, is damaged, wants to run code, or holds something else.
    """
    path = Path(path)
    content = read_pickle(path)
    if not isinstance(content, tuple | list) or len(content) != 2 or not all(isinstance(x, list) for x in content):
        raise DataError(f"{path} should hold two lists, the images and whether each pair is one person.")
    files, same = content
    if len(files) != 2 * len(same):
        raise DataError(f"{path} has {len(files)} images for {len(same)} pairs; expected two for each.")
    truths = np.array([truth(value, path, number) for number, value in enumerate(same)], dtype=bool)
    images = EncodedSource(
        [as_bytes(one, path, number) for number, one in enumerate(files)], name=str(path), statistics=statistics
    )
    first = 2 * np.arange(len(same), dtype=np.int64)
    return PairSet(path.stem, images, first, first + 1, truths, folds)


def truth(value: Any, path: Path, number: int) -> bool:
    """Whether a pair is one person: a truth value, or 0 or 1."""
    if isinstance(value, bool | int | np.bool_ | np.integer) and value in (0, 1):
        return bool(value)
    raise DataError(f"{path}: whether pair {number} is one person should be true or false, got {value!r:.40}.")


def as_bytes(value: Any, path: Path, number: int) -> bytes:
    """An image's file: bytes, or a row of them."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8:
        return value.tobytes()
    raise DataError(f"{path}: image {number} should be the bytes of an image file, got {type(value).__name__}.")


def read_pairs(path: str | Path, folder: str | Path, *, statistics: Statistics = FACES) -> PairSet:
    """Pairs out of a text file in the layout of LFW's ``pairs.txt``, over a folder with one sub-folder a person.

    The first line is the number of folds and of pairs of each kind in a fold, as in ``10 300``, or that number
    alone for one fold. A line of three words is a person and the numbers of two of their images, one of four is two
    people, each with a number. Image 7 of ``Ada_Lovelace`` is ``Ada_Lovelace/Ada_Lovelace_0007``, with any extension
    that an image may have.

    Args:
        path: the text file.
        folder: the folder of the people's folders.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: a file that cannot be read, a line of another form, another number of lines than the first one says,
            folds of other numbers of pairs, an image that is not there or that is there with two extensions.
    """
    path, folder = Path(path), Path(folder)
    folds, each, rows = parse_pairs(path)
    source = FolderSource(folder, statistics=statistics)
    known: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index in range(len(source)):
        file = PurePosixPath(source.encoded(index).relative_to(folder).as_posix())
        known[str(file.parent), file.stem].append(index)

    def find(person: str, number: int) -> int:
        stem = f"{person}_{number:04}"
        found = known.get((person, stem), [])
        if len(found) == 1:
            return found[0]
        how = "is there with several extensions" if found else "is not there"
        raise DataError(f"{path} names image {number} of {person}, and {folder / person / stem} {how}.")

    places = np.array([[find(*one), find(*other)] for one, other in rows], dtype=np.int64)
    same = np.array([one[0] == other[0] for one, other in rows])
    for fold, part in enumerate(np.array_split(same, folds)):
        if part.sum() != each:
            raise DataError(
                f"{path} says {each} pairs of one person in a fold, and fold {fold + 1} has {part.sum()}. Folds follow "
                "each other, each with its pairs of both kinds."
            )
    used, renumbered = np.unique(places, return_inverse=True)
    first, second = renumbered.reshape(places.shape).T
    return PairSet(path.stem, subset(source, used), first.astype(np.int64), second.astype(np.int64), same, folds)


Face = tuple[str, int]


def parse_pairs(path: Path) -> tuple[int, int, list[tuple[Face, Face]]]:
    """Folds, pairs of each kind in a fold, and the pairs as (person, number) twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"Cannot read {path}: {reason}.") from error
    head = lines[0].split() if lines else []
    if len(head) not in (1, 2) or not all(word.isdecimal() and int(word) > 0 for word in head):
        raise DataError(
            f"{path} should begin with the numbers of folds and of pairs of each kind in a fold, such as 10 300."
        )
    folds, each = (1, int(head[0])) if len(head) == 1 else (int(head[0]), int(head[1]))
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        people, numbers = ([words[0]] * 2, words[1:]) if len(words) == 3 else (words[::2], words[1::2])
        if len(words) not in (3, 4) or not all(word.isdecimal() for word in numbers):
            raise DataError(f"{path}, line {number}: expected a name and two numbers, or two names each with a number.")
        rows.append(((people[0], int(numbers[0])), (people[1], int(numbers[1]))))
    if len(rows) != 2 * folds * each:
        raise DataError(
            f"{path} says {folds} x {each} pairs of each kind, {2 * folds * each:,}, and has {len(rows):,}."
        )
    return folds, each, rows
