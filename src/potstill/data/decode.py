"""From an image file's bytes to RGB pixels; whatever is wrong with them becomes one sentence that names the file."""

import logging
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from potstill.errors import DataError

__all__ = ["MAX_PIXELS", "decode", "stopped_by"]

log = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of decompression bombs: about 9,500 x 9,400

# No PostScript, no PDF, no video: formats whose readers start other programs stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What Pillow's readers raise on damaged input, beside OSError and its own subclasses.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error,
          zlib.error, NotImplementedError, Image.DecompressionBombError)  # fmt: skip

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
    try:
        # The size is asked before anything is decoded: a bomb must not unfold.
        with Image.open(data if isinstance(data, Path) else BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that one image may have."
                )
            image.load()
            turn = UPRIGHT.get(orientation(image, name))
            upright = image if turn is None else image.transpose(turn)
            return np.array(to_rgb(upright, name))
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"Cannot read the image {name}: {reason_of(error, data)}.") from error


def stopped_by(damage: DataError) -> DataError:
    """The error that ends a run at a damaged image: what is wrong with it, and what to do.

    What is wrong alone is kept of an image that is skipped, where there is nothing to do.

    Example:
        >>> str(stopped_by(DataError("Cannot read the image a.png: it is empty.")))
        'Cannot read the image a.png: it is empty. Mend or remove it, or set data.on_error=skip to go on without it.'
    """
    return DataError(f"{damage} Mend or remove it, or set data.on_error=skip to go on without it.")


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


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image of any of Pillow's modes as RGB, with transparent parts on white."""
    if image.mode.startswith("I"):
        return Image.fromarray(eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{name} has floating-point pixels, which have no agreed range as 8 and 16 bits have.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """16-bit grey as 8-bit grey, rounded; Pillow's own conversion cuts everything above 255 off."""
    # Pillow opens some 16-bit files with 32-bit pixels, so the range of the values decides.
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise DataError(f"{name} has 32-bit pixels, which have no agreed range as 8 and 16 bits have.")
    return ((wide + 128) // 257).astype(np.uint8)
