"""Views of an image: replayable augmentation for training, the fixed crop for evaluation."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.pixels import crop_resize, pad_crop, resize_centre
from potstill.data.random import integers, uniform
from potstill.errors import DataError

__all__ = ["EVALUATION_RATIO", "Augmentation", "Evaluation", "View", "image_size"]

# A view's random numbers. The tries of a random resized crop take TRIES streams from AREA and from RATIO on.
_FLIP, _TOP, _LEFT, _AREA, _RATIO = 0, 1, 2, 16, 32
_TRIES = 10

EVALUATION_RATIO = 256 / 224


def image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise DataError(f"An image size of {size} has no pixels; give one positive number, or height and width.")
    return height, width


@dataclass(frozen=True)
class Augmentation:
    """Random crop and flip, a pure function of (seed, index, view).

    Attributes:
        size: of the result, one number or (height, width).
        crop: 'none'; 'pad': the image padded with ``padding`` black pixels on each side, then cut at a random place
            (the CIFAR recipe, torchvision's RandomCrop); 'resized': a random box, resized (the ImageNet recipe,
            torchvision's RandomResizedCrop).
        padding: of 'pad'; 4 in the CIFAR recipe.
        scale: of 'resized': the box's least and greatest part of the image's area.
        ratio: of 'resized': the box's least and greatest width over height.
        flip: whether half of the views are mirrored.
        seed: another seed, other views.

    Raises:
        DataError: at construction, for a value that describes no crop.

    Example:
        >>> cifar = Augmentation(size=32, crop="pad", flip=True, seed=0)
        >>> image = np.zeros((32, 32, 3), np.uint8)
        >>> cifar.apply(image, index=7, view=0).shape
        (32, 32, 3)
    """

    size: int | tuple[int, int]
    crop: Literal["none", "pad", "resized"] = "none"
    padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        image_size(self.size)
        if self.crop not in ("none", "pad", "resized"):
            raise DataError(f"crop={self.crop!r} is no crop; choose 'none', 'pad' or 'resized'.")
        if self.padding < 0:
            raise DataError(f"padding={self.padding} is negative; it counts black pixels and is 0 or more.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale={self.scale} must be two parts of the area, 0 < least <= greatest <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(f"ratio={self.ratio} must be two widths over heights, 0 < least <= greatest.")

    def flips(self, index: Tensor, view: Tensor) -> Tensor:
        """``(B,)`` bool: which views are mirrored left to right."""
        if not self.flip:
            return torch.zeros_like(index, dtype=torch.bool)
        return integers(self.seed, index, view, _FLIP, 2).bool()

    def offsets(
        self, index: Tensor, view: Tensor, height: int | None = None, width: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(B,)`` int64 rows and columns of 'pad' at which the result begins in the image; ``-padding`` at the least.

        Args:
            index: ``(B,)`` int64.
            view: ``(B,)`` int64.
            height: of the images; the result's by default, which makes ``2 * padding + 1`` places.
            width: of the images.
        """
        tall, wide = image_size(self.size)
        rows = (tall if height is None else height) + 2 * self.padding - tall + 1
        columns = (wide if width is None else width) + 2 * self.padding - wide + 1
        if min(rows, columns) < 1:
            raise DataError(
                f"A {height}x{width} image padded with {self.padding} is smaller than the crop of {tall}x{wide}; "
                "take a smaller size, or crop 'resized'."
            )
        top = integers(self.seed, index, view, _TOP, rows)
        left = integers(self.seed, index, view, _LEFT, columns)
        return top - self.padding, left - self.padding

    def boxes(self, index: Tensor, view: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """``(B, 4)`` int64 (top, left, height, width) of 'resized', all arguments ``(B,)`` int64.

        Ten tries of a uniform area and a log-uniform ratio, of which the first that fits is taken at a uniform place;
        where none fits, the largest centred box with a ratio within bounds. Distributed as torchvision 0.26's
        ``RandomResizedCrop.get_params``. Ask for it on the host: exp and sqrt may differ in the last bit elsewhere.
        """
        tries = torch.arange(_TRIES, device=index.device)
        index_, view_ = index[:, None], view[:, None]  # (B, 1), against the tries
        part = uniform(self.seed, index_, view_, _AREA + tries) * (self.scale[1] - self.scale[0]) + self.scale[0]
        least, greatest = (math.log(r) for r in self.ratio)
        ratio = torch.exp(uniform(self.seed, index_, view_, _RATIO + tries) * (greatest - least) + least)
        area = (heights * widths)[:, None] * part
        wide, tall = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()  # (B, tries)

        fits = (wide > 0) & (wide <= widths[:, None]) & (tall > 0) & (tall <= heights[:, None])
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # the first of equals
        any_fits = fits.any(dim=1)
        shape = widths / heights
        fallback_wide = torch.where(shape > self.ratio[1], (heights * self.ratio[1]).round().long(), widths)
        fallback_tall = torch.where(shape < self.ratio[0], (widths / self.ratio[0]).round().long(), heights)
        wide = torch.where(any_fits, wide.gather(1, first)[:, 0], fallback_wide)
        tall = torch.where(any_fits, tall.gather(1, first)[:, 0], fallback_tall)
        top = torch.where(any_fits, integers(self.seed, index, view, _TOP, heights - tall + 1), (heights - tall) // 2)
        left = torch.where(any_fits, integers(self.seed, index, view, _LEFT, widths - wide + 1), (widths - wide) // 2)
        return torch.stack((top, left, tall, wide), dim=1)

    def apply(self, image: np.ndarray, index: int, view: int) -> np.ndarray:
        """The view of one ``(H, W, 3)`` uint8 image.

        'none' and 'pad' give exactly the pixels of the resident loader. 'resized' gives the same box, resampled by
        PIL's bilinear filter, whose pixels differ from the resident loader's by up to 1 of 255: PIL rounds twice.
        """
        size = image_size(self.size)
        index_, view_ = torch.tensor([index]), torch.tensor([view])
        height, width = image.shape[:2]
        if self.crop == "pad":
            top, left = (int(t) for t in self.offsets(index_, view_, height, width))
            image = pad_crop(image, top, left, size)
        elif self.crop == "resized":
            box = self.boxes(index_, view_, torch.tensor([height]), torch.tensor([width]))[0].tolist()
            image = crop_resize(image, box, size)
        elif (height, width) != size:
            raise DataError(
                f"An image of {height}x{width} does not have the size {size[0]}x{size[1]} of the others, and crop "
                "'none' changes no sizes; choose crop 'resized'."
            )
        return np.ascontiguousarray(image[:, ::-1]) if bool(self.flips(index_, view_)) else image


@dataclass(frozen=True)
class Evaluation:
    """The fixed view of evaluation: the short side resized to ``resize`` times the size, then the centre.

    Attributes:
        size: of the result, one number or (height, width).
        resize: the resized image over the size; 256 / 224 as on ImageNet, 1 for the largest centred crop.
    """

    size: int | tuple[int, int]
    resize: float = EVALUATION_RATIO

    def __post_init__(self) -> None:
        image_size(self.size)
        if self.resize < 1:
            raise DataError(f"resize={self.resize} makes images smaller than the crop; it must be at least 1.")

    def apply(self, image: np.ndarray, index: int, view: int) -> np.ndarray:
        """The centre of one ``(H, W, 3)`` uint8 image; the same for every index and view."""
        return resize_centre(image, image_size(self.size), self.resize)


View = Augmentation | Evaluation
