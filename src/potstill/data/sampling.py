"""What a few of a source's images tell of all of them."""

from io import BytesIO

import numpy as np
from PIL import Image

from potstill.data.decode import DAMAGE, FORMATS
from potstill.data.source import Source
from potstill.errors import RunError

__all__ = ["SMALL", "common_size"]

SMALL = 96  # images up to this height and width may be held in memory as one array


def common_size(source: Source, first: int) -> tuple[int, int] | None:
    """The images' height and width, where those looked at are small and all of one size.

    Sixteen of the ``first`` so many images are looked at, by their headers; ``materialise`` finds out where that was
    not enough. The source's images are encoded in memory.
    """
    sizes = set()
    for index in np.linspace(0, first - 1, num=16, dtype=np.int64):
        try:
            content = source.encoded(int(index))
            if not isinstance(content, bytes):
                return None
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                sizes.add((image.height, image.width))
        except RunError:
            raise
        except DAMAGE:
            continue  # a damaged image tells nothing of the others; reading it will tell of it
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and max(size) <= SMALL else None
