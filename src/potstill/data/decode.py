"""From an image file's bytes to RGB pixels; whatever is wrong with them becomes one sentence that names the file."""

import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from potstill.data.modes import to_rgb
from potstill.data.pixels import SCALES, Raster
from potstill.errors import DataError

__all__ = ["MAX_PIXELS", "EncodedImage", "decode", "decoding", "stopped_by"]

log = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of decompression bombs: about 9,500 x 9,400

MAX_BYTES = 1 << 30  # of a file, which is read whole: MAX_PIXELS of 16 bits and four channels take 0.7 of it

# No PostScript, no PDF, no video: formats whose readers start other programs stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What Pillow's readers raise on damaged input, beside OSError and its own subclasses.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error,
          zlib.error, Image.DecompressionBombError)  # fmt: skip

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Whose upright image begins, from the left or from the top, where a row or column of the file ends.
FROM_THE_RIGHT = (2, 3, 6, 7)
FROM_THE_BOTTOM = (3, 4, 7, 8)


class EncodedImage:
    """An image file whose size is known; of a JPEG, nothing but the header is read until its pixels are asked for.

    Args:
        data: the file's bytes, or its path.
        name: what an error calls the image.

    Attributes:
        full: height and width of the upright image.
        reducible: whether it can be decoded smaller than it is, which only JPEG can.
        memory: bytes that it holds, roughly.

    Raises:
        DataError: empty data, an unknown format, more than ``MAX_PIXELS``, damage as far as it is read.

    Example:
        >>> image = EncodedImage(b"P5 2 1 255 " + bytes([0, 200]), "two grey pixels")
        >>> image.full, image.reducible
        ((1, 2), False)
    """

    def __init__(self, data: bytes | Path, name: str) -> None:
        self.name = name
        with _named(name, data):
            self._content = _read(data, name) if isinstance(data, Path) else data
            image = self._open()
            width, height = image.size
            # The size is asked before anything is decoded: a bomb must not unfold.
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that one image may have."
                )
            self.reducible = isinstance(image, JpegImageFile)
            if not self.reducible:
                image.load()  # TIFF's reader turns the image itself, and PNG may tell its orientation at the end
                width, height = image.size
            self._orientation = orientation(image, name)
        self.full = (width, height) if self._orientation in (5, 6, 7, 8) else (height, width)
        self.memory = len(self._content) + (0 if self.reducible else 4 * width * height)
        self._opened: Image.Image | None = image

    def raster(self, scale: int = 1) -> Raster:
        """The pixels, upright and in RGB.

        Of a JPEG at scale 2, 4 or 8, one pixel is decoded for each 2 x 2, 4 x 4 or 8 x 8 of the full size, by a
        smaller inverse transform of each block ("draft" in Pillow); it is the faster the larger the scale.

        Raises:
            DataError: truncated or damaged data, values without an agreed range, a scale that the format has not.
        """
        if scale not in (SCALES if self.reducible else (1,)):
            raise DataError(f"{self.name} cannot be decoded at 1/{scale} of its size; a JPEG can, at 1/2, 1/4 and 1/8.")
        with _named(self.name, self._content):
            image = self._opened or self._open()
            if self.reducible:
                self._opened = None  # decoded once, it cannot be decoded at another scale
            width, height = image.size
            if scale > 1:
                image.draft(None, (max(width // scale, 1), max(height // scale, 1)))
                if image.size != (-(-width // scale), -(-height // scale)):
                    raise DataError(f"Pillow {PIL.__version__} decodes {self.name} at another scale than 1/{scale}.")
            image.load()
            turn = UPRIGHT.get(self._orientation)
            upright = to_rgb(image if turn is None else image.transpose(turn), self.name)
        # The file's last pixel may stand for fewer than scale; where the upright image begins with it, that counts.
        return Raster(
            upright,
            self.full,
            scale,
            top=-self.full[0] % scale if self._orientation in FROM_THE_BOTTOM else 0,
            left=-self.full[1] % scale if self._orientation in FROM_THE_RIGHT else 0,
        )

    def _open(self) -> Image.Image:
        return Image.open(BytesIO(self._content), formats=FORMATS)


def decode(data: bytes | Path, name: str) -> np.ndarray:
    """One image as ``(H, W, 3)`` uint8 RGB, upright.

    Grey, two-level, palette and CMYK images become RGB. Transparent parts show white, as on a page (not what the file
    hides under them, often black). 16-bit grey is scaled to 8 bits, ``round(v / 257)``; 16-bit colour keeps its high
    byte. The EXIF orientation is applied. Of an animation the first frame counts.

    Args:
        data: the file's bytes, or its path.
        name: what an error calls the image.

    Raises:
        DataError: empty, truncated or damaged data, an unknown format, more than ``MAX_PIXELS``, or values without an
            agreed range (floating point, 32 bits).

    Example:
        >>> decode(b"P5 2 1 255 " + bytes([0, 200]), "two grey pixels").tolist()
        [[[0, 0, 0], [200, 200, 200]]]
    """
    return np.array(EncodedImage(data, name).raster().pixels)


def decoding(draft: bool) -> str:
    """All that the streaming loader's pixels depend on beside the files and (seed, index, view), as one text.

    What is stored under a view's coordinates, a teacher's outputs say, is right for pixels of one such text only.

    Example:
        >>> decoding(draft=True).endswith(", draft")
        True
    """
    jpeg = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
    if not features.check_feature("libjpeg_turbo"):
        jpeg = f"libjpeg {features.version_codec('jpg')}"
    resampling = torch.__version__.partition("+")[0]  # not the CUDA version that it was built for
    return f"pillow {PIL.__version__}, {jpeg}, torch {resampling}{', draft' if draft else ''}"


def stopped_by(damage: DataError) -> DataError:
    """The error that ends a run at a damaged image: what is wrong with it, and what to do.

    What is wrong alone is kept of an image that is skipped, where there is nothing to do.

    Example:
        >>> str(stopped_by(DataError("Cannot read the image a.png: it is empty.")))
        'Cannot read the image a.png: it is empty. Mend or remove it, or set data.on_error=skip to go on without it.'
    """
    return DataError(f"{damage} Mend or remove it, or set data.on_error=skip to go on without it.")


@contextmanager
def _named(name: str, data: bytes | Path) -> Iterator[None]:
    """Whatever Pillow finds wrong, as a ``DataError`` that names the image."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"Cannot read the image {name}: {reason_of(error, data)}.") from error


def _read(path: Path, name: str) -> bytes:
    """A file's content."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} that one image file may have.")
    return path.read_bytes()


def reason_of(error: Exception, data: bytes | Path) -> str:
    """What is wrong with an image, in words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if (data.stat().st_size if isinstance(data, Path) else len(data)) == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its beginning is damaged"
    return str(error).rstrip(".") or type(error).__name__


def orientation(image: Image.Image, name: str) -> int:
    """The EXIF orientation, 1 (upright) where there is none. Damaged EXIF data are told, not fatal."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGE as error:
        log.warning("%s: its EXIF data are damaged (%s); the image is taken as upright.", name, error)
        return 1
