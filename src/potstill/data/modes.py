"""Images of any of Pillow's modes as 8-bit RGB."""

import numpy as np
from PIL import Image

from potstill.errors import DataError

__all__ = ["to_rgb"]


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image as RGB, with transparent parts on white; ``name`` is what an error calls it.

    Raises:
        DataError: for values without an agreed range (floating point, 32 bits).
    """
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
