"""Cropping and resizing one image on the host."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["SCALES", "Cut", "Raster", "centre_crop"]

SCALES = (1, 2, 4, 8)  # at which a JPEG can be decoded


@dataclass(frozen=True)
class Raster:
    """A decoded image, at its full size or at a part of it.

    Row ``r`` of the full image lies at ``(r + top) / scale`` here, and column ``c`` at ``(c + left) / scale``.

    Attributes:
        pixels: RGB; an array is ``(H, W, 3)`` uint8 and at full size.
        full: height and width of the full image.
        scale: how many pixels of the full image, in each direction, one pixel here stands for.
        top: of the first row's full pixels, how many lie outside the image.
        left: the same of the first column.
    """

    pixels: np.ndarray | Image.Image
    full: tuple[int, int]
    scale: int = 1
    top: int = 0
    left: int = 0

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Raster":
        """The raster of an ``(H, W, 3)`` uint8 array."""
        return cls(pixels, (pixels.shape[0], pixels.shape[1]))

    @property
    def memory(self) -> int:
        """Bytes of the pixels."""
        return 3 * self.full[0] * self.full[1] // self.scale**2

    @property
    def reducible(self) -> bool:
        """Never: it is decoded already."""
        return False

    def raster(self, scale: int = 1) -> "Raster":
        """Itself, as an image file that is to be decoded would be asked."""
        return self


@dataclass(frozen=True)
class Cut:
    """Which part of an image a view shows, all of it in pixels of the full image.

    The ``box`` alone is read, resized to ``resized`` (antialiased, bilinear), and of that the window of ``size`` at
    ``corner`` is shown. Where a box reaches outside the image it is black; it does so only where nothing is resized.

    Attributes:
        box: top, left, height, width.
        resized: height and width.
        corner: top and left in the resized box.
        size: height and width of the result.
        mirrored: whether the result is mirrored left to right.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    @property
    def scale(self) -> int:
        """The greatest scale at which the box still has the pixels of the resized one, in both directions.

        1 where the box is enlarged or as it is: what the full image has is never made up from fewer pixels.
        """
        return max(
            s for s in SCALES if s == 1 or (self.box[2] >= s * self.resized[0] and self.box[3] >= s * self.resized[1])
        )

    def pixels(self, image: Raster) -> Tensor:
        """``(h, w, 3)`` uint8, contiguous.

        At full size the filter is torch's own for bytes, which differs from PIL's by up to 1 of 255 and is several
        times faster; where the box begins between the pixels of a smaller scale it is PIL's.
        """
        (tall, wide), (top, left) = self.size, self.corner
        if image.scale > 1:
            out = torch.from_numpy(self._from_reduced(image))[top : top + tall, left : left + wide]
        elif self.resized == self.box[2:]:
            out = torch.from_numpy(_part(image.pixels, self.box[0] + top, self.box[1] + left, tall, wide))
        else:
            part = torch.from_numpy(_part(image.pixels, *self.box))[None].permute(0, 3, 1, 2)
            whole = F.interpolate(part, self.resized, mode="bilinear", antialias=True)
            out = whole[0].permute(1, 2, 0)[top : top + tall, left : left + wide]
        return out.flip(1) if self.mirrored else out.contiguous()

    def _from_reduced(self, image: Raster) -> np.ndarray:
        """The resized box of an image at a smaller scale."""
        pixels = image.pixels if isinstance(image.pixels, Image.Image) else Image.fromarray(image.pixels)
        top, left, tall, wide = self.box
        begin = ((left + image.left) / image.scale, (top + image.top) / image.scale)
        end = ((left + wide + image.left) / image.scale, (top + tall + image.top) / image.scale)
        # The pixels that the box touches, because PIL's filter looks beyond the box, and no further than the image.
        x, y = int(begin[0]), int(begin[1])
        part = pixels.crop((x, y, -int(-end[0] // 1), -int(-end[1] // 1)))
        box = (begin[0] - x, begin[1] - y, end[0] - x, end[1] - y)
        return np.array(part.resize(self.resized[::-1], Image.Resampling.BILINEAR, box=box))


def _part(pixels: np.ndarray | Image.Image, top: int, left: int, tall: int, wide: int) -> np.ndarray:
    """The ``(tall, wide, 3)`` window at (top, left), black where it reaches outside; one that may be written to."""
    if isinstance(pixels, Image.Image):
        return np.array(pixels.crop((left, top, left + wide, top + tall)))
    height, width = pixels.shape[:2]
    if 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width:
        return np.require(pixels[top : top + tall, left : left + wide], requirements="W")
    out = np.zeros((tall, wide, 3), np.uint8)
    # Cut off at both ends at both edges: with much padding, a window may lie outside altogether.
    first, last = (min(max(row, 0), height) for row in (top, top + tall))
    begin, end = (min(max(column, 0), width) for column in (left, left + wide))
    out[first - top : last - top, begin - left : end - left] = pixels[first:last, begin:end]
    return out


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
