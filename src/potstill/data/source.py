"""Where samples come from: a numbered set of images, with labels where there are any, behind one small interface."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.errors import DataError

__all__ = [
    "IMAGENET",
    "ArraySource",
    "Source",
    "Split",
    "Statistics",
    "Subset",
    "check_labels",
    "fingerprint",
    "subset",
]


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels between 0 and 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Source(ABC):
    """A numbered set of images. Index ``i`` means the same image for as long as ``identity`` is the same.

    Attributes:
        name: what messages call the set.
        classes: the classes' names, in the order of their numbers; empty where the set has no labels.
        labels: ``(N,)`` int64 class numbers, or None where the set has no labels.
        statistics: the mean and standard deviation that normalise the images, unless a recipe gives others.
        fixed_size: height and width where every image is known to have the same, else None.
        in_memory: whether ``arrays`` costs no decoding.
        mirrors: whether a mirrored image is still one of its class; False for digits and letters.
        groups: ``(G + 1,)`` int64, where each of the G runs of images that lie together begins, and the end of the
            last: row groups of Parquet, tar shards; None where nothing is gained by reading in such runs.
        scattered: whether images in random order cost far more than group by group.
        held: where reading an image means reading its group: how many images a process keeps of such groups.
    """

    name: str
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    statistics: Statistics = IMAGENET
    fixed_size: tuple[int, int] | None = None
    in_memory: bool = False
    mirrors: bool = True
    groups: np.ndarray | None = None
    scattered: bool = False
    held: int | None = None

    @property
    @abstractmethod
    def identity(self) -> str:
        """Sixteen hexadecimal digits that differ where the data differ; each source says what it looks at."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """One image as ``(H, W, 3)`` uint8 RGB at its full size; a ``DataError`` that names it where it is damaged."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where one image comes from, for messages: a file's path, or a row and its file."""

    def encoded(self, index: int) -> bytes | Path | None:
        """One image's file, undecoded, as its bytes or its path; None where the images do not come from files."""
        return None

    def arrays(self) -> np.ndarray | None:
        """All images as ``(N, H, W, 3)`` uint8 where they are small and of one size, else None."""
        return None


class ArraySource(Source):
    """Images that lie in memory.

    Args:
        images: ``(N, H, W, 3)`` uint8 RGB.
        labels: ``(N,)`` class numbers, or None.
        name: what messages call the set.
        classes: the classes' names.
        statistics: mean and standard deviation for normalising.
        mirrors: whether a mirrored image is still one of its class.

    Raises:
        DataError: where shapes, types or the range of the labels do not fit.

    ``identity`` is a hash of the pixels, the labels and the classes' names.

    Example:
        >>> pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
        >>> source = ArraySource(pixels, [0, 1], name="two squares", classes=("dark", "light"))
        >>> len(source), source.describe(1), source.fixed_size
        (2, 'image 1 of two squares', (4, 4))
    """

    in_memory = True

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int] | None,
        *,
        name: str,
        classes: Sequence[str] = (),
        statistics: Statistics = IMAGENET,
        mirrors: bool = True,
    ) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{name}: expected images as (N, H, W, 3) of uint8, got {tuple(images.shape)} of {images.dtype}."
            )
        self.name = name
        self.classes = tuple(classes)
        self.labels = None if labels is None else check_labels(np.asarray(labels), len(images), len(classes), name)
        self.statistics = statistics
        self.mirrors = mirrors
        self.fixed_size = (images.shape[1], images.shape[2])
        self._images = images
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """A hash of the pixels, the labels and the classes' names."""
        if self._identity is None:
            self._identity = fingerprint(self._images, self.labels, self.classes)
        return self._identity

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return self._images[index]

    def describe(self, index: int) -> str:
        """The image's number and the set's name."""
        return f"image {index} of {self.name}"

    def arrays(self) -> np.ndarray:
        """The images themselves, not a copy."""
        return self._images


class Subset(Source):
    """Some images of another source, in a given order; index ``i`` is position ``i`` in the subset.

    ``identity`` is a hash of the other source's identity and of the positions.
    """

    def __init__(self, source: Source, indices: np.ndarray | Sequence[int]) -> None:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.ndim != 1 or (chosen.size and (chosen.min() < 0 or chosen.max() >= len(source))):
            raise DataError(f"{source.name}: a subset's positions must lie between 0 and {len(source) - 1}.")
        self.source = source
        self.indices = chosen
        self.name = source.name
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[chosen]
        self.statistics = source.statistics
        self.fixed_size = source.fixed_size
        self.in_memory = source.in_memory
        self.mirrors = source.mirrors
        self.scattered = source.scattered
        if source.held is not None:  # a group takes its memory whole, however few of its images are of the subset
            self.held = source.held * len(chosen) // max(len(source), 1)
        if source.groups is not None and (chosen[1:] > chosen[:-1]).all():  # in another order, nothing lies together
            self.groups = np.unique(np.searchsorted(chosen, source.groups))

    @property
    def identity(self) -> str:
        """A hash of the whole source's identity and of the positions."""
        return fingerprint(self.source.identity, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return self.source.image(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """What the whole source says of this image."""
        return self.source.describe(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | Path | None:
        """What the whole source has of this image."""
        return self.source.encoded(int(self.indices[index]))

    def arrays(self) -> np.ndarray | None:
        """The subset's part of the whole source's arrays, as a copy."""
        whole = self.source.arrays()
        return None if whole is None else whole[self.indices]


def subset(source: Source, indices: np.ndarray | Sequence[int]) -> Source:
    """Some images of a source, by position; see ``Subset``."""
    return Subset(source, indices)


@dataclass(frozen=True)
class Split:
    """What training sees and what it is judged by.

    Attributes:
        train: the images to learn from.
        val: the images that accuracy is measured on, or None where there are none.
        note: the sentence to say out loud about how ``val`` came to be.
        test: what is done with ``val``, where that is more than naming each image's class: of faces a protocol.
    """

    train: Source
    val: Source | None
    note: str
    test: Any = None


def check_labels(labels: np.ndarray, images: int, classes: int, name: str) -> np.ndarray:
    """Labels as int64, or a ``DataError``: one for each image, whole numbers, between 0 and ``classes - 1``."""
    if labels.shape != (images,):
        raise DataError(f"{name}: {images} images but labels of shape {tuple(labels.shape)}; expected one an image.")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name}: labels must be whole numbers, got {labels.dtype}.")
    labels = labels.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{name}: {wrong.size} labels lie outside 0..{classes - 1}, the first at image {wrong[0]}: "
            f"{labels[wrong[0]]}. Labels must be numbers of the {classes} classes."
        )
    return labels


def fingerprint(*parts: object) -> str:
    """The first sixteen hexadecimal digits of a SHA-256 over arrays (type, shape and content) and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
