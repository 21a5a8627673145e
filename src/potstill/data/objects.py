"""The objects of one image, as its file has them."""

from typing import NamedTuple

import numpy as np

__all__ = ["ImageObjects"]


class ImageObjects(NamedTuple):
    """The objects of one image, in the pixels of its file.

    Attributes:
        boxes: ``(n, 4)`` float32, x1 y1 x2 y2; inside the image, and none without an area.
        labels: ``(n,)`` int64 class numbers.
        crowd: ``(n,)`` bool: regions of many objects, or objects too difficult to count, that are not learnt from and
            that no detection is counted wrong for.
        area: ``(n,)`` float32, in pixels, as the data tell it: of the object's outline where they have one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
