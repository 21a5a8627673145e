"""Segmentation data: images, and for each a PNG in which every pixel has the number of its class."""

import copy
import logging
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from potstill.data.decode import DAMAGE, FORMATS, MAX_PIXELS, ORIENTATION, decode, reason_of
from potstill.data.listed import file_sizes, positions
from potstill.data.source import IMAGENET, Source, Statistics, fingerprint
from potstill.errors import DataError

__all__ = ["UNCOUNTED", "MaskSource", "find_classes", "read_mask"]

log = logging.getLogger(__name__)

UNCOUNTED = 255  # of a pixel that belongs to no class and does not count


class MaskSource(Source):
    """Images with a class for each of their pixels.

    Args:
        images: the folder of the images.
        masks: the folder of the masks: PNG, with a palette or grey of 8 bits; a pixel's value (not its colour) is its
            class, 255 does not count.
        pairs: of each image its file in ``images`` and its mask's in ``masks``.
        classes: the classes' names in the order of their numbers, at least two.
        name: what messages call the set.
        root: the folder that no link may leave.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: an image or mask that is not there, or that a link leads to outside ``root``; fewer than two classes
            or more than 255.

    ``identity`` is a hash of the paths and the sizes in bytes of the images and of the masks, and of the classes'
    names. The files' content is not read for it.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        pairs: Sequence[tuple[str, str]],
        classes: Sequence[str],
        *,
        name: str | None = None,
        root: Path,
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.name = name or str(images)
        if not 2 <= len(classes) <= UNCOUNTED:
            raise DataError(f"{self.name}: masks tell from 2 to {UNCOUNTED} classes apart, got {len(classes)}.")
        self.images, self.masks = images, masks
        self.classes = tuple(classes)
        self.statistics = statistics
        self._files = [image for image, _ in pairs]
        self._masks = [mask for _, mask in pairs]
        in_bytes = [
            file_sizes(folder, files, root, self.name)
            for folder, files in ((images, self._files), (masks, self._masks))
        ]
        self._identity = fingerprint(self._files, self._masks, in_bytes, self.classes)

    @property
    def identity(self) -> str:
        """A hash of the files' paths and sizes and of the classes' names; not of the files' content."""
        return self._identity

    def __len__(self) -> int:
        return len(self._files)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> Path:
        """The image file's path."""
        return self.images / self._files[index]

    def describe(self, index: int) -> str:
        """The image file's path, as text."""
        return str(self.encoded(index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one image, upright, from its file's header.

        Raises:
            DataError: where the header cannot be read.
        """
        path = self.encoded(index)
        try:
            with Image.open(path, formats=FORMATS) as image:
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
        except DAMAGE as error:
            raise DataError(f"Cannot read the image {path}: {reason_of(error, path)}.") from error

    def mask(self, index: int) -> np.ndarray:
        """``(H, W)`` uint8: the class of each pixel of one image, 255 where it does not count.

        Raises:
            DataError: a mask that cannot be read, has another size than its image, or a class that there is not.
        """
        path = self.masks / self._masks[index]
        mask = read_mask(path)
        if mask.shape != (size := self.size(index)):
            raise DataError(
                f"The mask {path} is {mask.shape[0]} pixels high and {mask.shape[1]} wide, but its image is {size[0]} "
                f"high and {size[1]} wide. Both need one size."
            )
        wrong = mask[(mask >= len(self.classes)) & (mask != UNCOUNTED)]
        if wrong.size:
            raise DataError(
                f"The mask {path} has {wrong.size:,} pixels of values that are no class, {wrong.min()} for one: there "
                f"are {len(self.classes)} classes, from 0 on, and {UNCOUNTED} does not count."
            )
        return mask

    def select(self, indices: np.ndarray | Sequence[int]) -> "MaskSource":
        """Some of the images with their masks, by position; another identity, the same classes.

        Raises:
            DataError: for positions that are none.
        """
        chosen = positions(indices, len(self), self.name)
        part = copy.copy(self)
        part._files, part._masks = ([files[number] for number in chosen] for files in (self._files, self._masks))
        part._identity = fingerprint(self._identity, chosen)
        return part


def read_mask(path: Path) -> np.ndarray:
    """``(H, W)`` uint8: the values of a PNG's pixels, with a palette the numbers in that.

    Raises:
        DataError: a file that is no PNG, is damaged, too large, or has colours instead of numbers.
    """
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"The mask {path} has more than the {MAX_PIXELS:,} pixels that one image may have.")
            # Pillow spreads grey of 2 and 4 bits over 0 to 255; the header tells (bits, then kind; 0 is grey).
            if image.mode not in ("L", "P", "1") or (content[24] in (2, 4) and content[25] == 0):
                raise DataError(
                    f"The mask {path} has pixels of {content[24]} bits of kind {image.mode}, which are no class "
                    "numbers: save it as PNG with a palette or in grey of 8 bits."
                )
            return np.array(image, dtype=np.uint8)
    except DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Cannot read the mask {path}: {reason_of(error, path)}.") from error


def find_classes(paths: Sequence[Path]) -> tuple[str, ...]:
    """The classes that masks have pixels of, called by their numbers; every mask is read for it.

    Raises:
        DataError: a mask that cannot be read; numbers with gaps; fewer than two classes.
    """
    log.info("Reading %d masks for the classes in them; a file classes.txt would save that.", len(paths))
    seen = np.zeros(256, dtype=bool)
    for path in paths:
        seen[np.unique(read_mask(path))] = True
    numbers = np.flatnonzero(seen[:UNCOUNTED])
    if len(numbers) < 2:
        raise DataError(
            f"{os.path.commonpath(paths) if paths else 'The masks'}: the masks have {len(numbers)} class, and at least "
            "two are needed. Name all classes in a file classes.txt, one a line."
        )
    gaps = np.flatnonzero(~seen[: numbers[-1] + 1])
    if gaps.size:
        raise DataError(
            f"{os.path.commonpath(paths)}: the masks have the values {', '.join(map(str, numbers))}, so of the classes "
            f"from 0 to {numbers[-1]} these are nowhere: {', '.join(map(str, gaps))}. Renumber them, or name all "
            "classes in a file classes.txt, one a line."
        )
    return tuple(str(number) for number in numbers)
