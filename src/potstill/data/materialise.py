"""Decode a whole source into one array, with the policy for damaged images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from potstill.data.decode import stopped_by
from potstill.data.source import Source
from potstill.data.workers import decoding_workers
from potstill.errors import DataError, nearest

__all__ = ["ON_ERROR", "Materialised", "Skipped", "check_policy", "fit_square", "materialise"]

ON_ERROR = ("stop", "skip")
CHUNK = 256  # images a task of the thread pool


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read.

    Attributes:
        index: its position in the source.
        where: what the source says of it.
        reason: what is wrong with it, as a sentence.
    """

    index: int
    where: str
    reason: str


class Materialised(NamedTuple):
    """A source in memory.

    Attributes:
        images: ``(K, H, W, 3)`` uint8.
        kept: ``(K,)`` int64, each image's position in the source.
        skipped: the images that were left out.
    """

    images: np.ndarray
    kept: np.ndarray
    skipped: list[Skipped]


def materialise(
    source: Source,
    size: int | None = None,
    on_error: str = "stop",
    threads: int | None = None,
) -> Materialised:
    """Decode every image of a source into one array.

    Args:
        source: where the images come from.
        size: height and width of the result: each image's short side is brought to it, and the centre cut out.
            None keeps the images as they are; they must all have one size then.
        on_error: ``"stop"`` raises at the first damaged image; ``"skip"`` leaves such images out and lists them.
        threads: how many decode at once; by default one a core that this process may use, at most 8.

    An array that lies in memory already, at the right size, is returned itself and not copied.

    Raises:
        DataError: a damaged image under ``"stop"``; no image that can be read; images of several sizes without
            ``size``; an unknown policy.

    Example:
        >>> from potstill.data.source import ArraySource
        >>> source = ArraySource(np.zeros((3, 4, 6, 3), dtype=np.uint8), None, name="three")
        >>> materialise(source, size=8).images.shape
        (3, 8, 8, 3)
    """
    check_policy(on_error)
    if source.in_memory and (size is None or source.fixed_size == (size, size)):
        whole = source.arrays()
        if whole is not None:
            return Materialised(whole, np.arange(len(source)), [])
    count = len(source)
    shape = (size, size) if size is not None else first_size(source, on_error)
    images = np.empty((count, *shape, 3), dtype=np.uint8)

    def place(index: int) -> None:
        image = source.image(index)
        if size is not None:
            image = fit_square(image, size)
        if image.shape != images.shape[1:]:
            raise UnevenError(
                f"{source.describe(index)} has {image.shape[1]} x {image.shape[0]} pixels, the images before it "
                f"{shape[1]} x {shape[0]}. Images of several sizes need data.size, the size to bring them to."
            )
        images[index] = image

    skipped = visit(source, place, stop=on_error == "stop", threads=threads)
    if len(skipped) == count:
        raise DataError(f"None of the {count} images of {source.name} can be read. The first: {skipped[0].reason}")
    if not skipped:
        return Materialised(images, np.arange(count), [])
    kept = np.setdiff1d(np.arange(count), [one.index for one in skipped])
    return Materialised(images[kept], kept, skipped)


def check_policy(on_error: str) -> None:
    """Raise a ``DataError`` unless the policy for damaged images is one that there is."""
    if on_error not in ON_ERROR:
        raise DataError(f"data.on_error must be 'stop' or 'skip', got {on_error!r}.{nearest(on_error, ON_ERROR)}")


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """``(H, W, 3)`` uint8 brought to ``(size, size, 3)``: the short side to ``size``, bilinear, then the centre.

    Example:
        >>> fit_square(np.zeros((10, 20, 3), dtype=np.uint8), 5).shape
        (5, 5, 3)
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    # One resampling of the centre square: the same as to resize first and to cut then, without the pixels cut off.
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


class UnevenError(DataError):
    """Images of several sizes: a mistake in the settings, which skipping must not hide."""


def first_size(source: Source, on_error: str) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    if not len(source):
        raise DataError(f"{source.name} has no images.")
    for index in range(len(source)):
        try:
            height, width = source.image(index).shape[:2]
        except DataError as error:
            if on_error == "stop":
                raise stopped_by(error) from error
        else:
            return height, width
    raise DataError(f"None of the {len(source)} images of {source.name} can be read.")


def visit(
    source: Source,
    each: Callable[[int], object],
    *,
    stop: bool,
    threads: int | None,
) -> list[Skipped]:
    """Call ``each`` for every index, in several threads, and return the images that raised, in their order."""
    if threads is None:
        threads = decoding_workers()

    def run(start: int) -> list[Skipped]:
        found = []
        for index in range(start, min(start + CHUNK, len(source))):
            try:
                each(index)
            except UnevenError:
                raise
            except DataError as error:
                if stop:
                    raise stopped_by(error) from error
                found.append(Skipped(index, source.describe(index), str(error)))
        return found

    pool = ThreadPoolExecutor(max_workers=max(threads, 1))
    try:
        skipped: list[Skipped] = []
        # map yields in order, so that the first damaged image is the one that stops.
        for found in pool.map(run, range(0, len(source), CHUNK)):
            skipped += found
        return skipped
    finally:
        pool.shutdown(cancel_futures=True)
