"""Cropping and resizing one image on the host."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["centre_crop", "crop_resize", "pad_crop", "resize_centre"]


def pad_crop(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The ``size`` window of an ``(H, W, 3)`` image that begins at (top, left), black where it reaches outside."""
    height, width = image.shape[:2]
    tall, wide = size
    out = np.zeros((tall, wide, 3), np.uint8)
    rows = slice(max(top, 0), min(top + tall, height))
    columns = slice(max(left, 0), min(left + wide, width))
    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return out


def crop_resize(image: np.ndarray, box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The (top, left, height, width) box of an ``(H, W, 3)`` image, resized by PIL's antialiased bilinear filter."""
    top, left, tall, wide = box
    part = Image.fromarray(np.ascontiguousarray(image[top : top + tall, left : left + wide]))
    return np.array(part.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def centre_crop(
    height: int, width: int, size: tuple[int, int], resize: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How evaluation sees an image: the (height, width) it is resized to, and the (top, left) of the crop in that.

    The resized image covers ``resize * size`` in both directions and meets it in one; whole pixels as torchvision's
    ``Resize`` (rounded down) and ``CenterCrop`` (rounded half to even) choose them.
    """
    tall, wide = round(size[0] * resize), round(size[1] * resize)
    if tall * width >= wide * height:
        wide = max(tall * width // height, wide)
    else:
        tall = max(wide * height // width, tall)
    return (tall, wide), (round((tall - size[0]) / 2), round((wide - size[1]) / 2))


def resize_centre(image: np.ndarray, size: tuple[int, int], resize: float) -> np.ndarray:
    """The centre of an ``(H, W, 3)`` image after a resize; see :func:`centre_crop`."""
    (tall, wide), (top, left) = centre_crop(image.shape[0], image.shape[1], size, resize)
    whole = Image.fromarray(np.ascontiguousarray(image)).resize((wide, tall), Image.Resampling.BILINEAR)
    return np.array(whole)[top : top + size[0], left : left + size[1]]
