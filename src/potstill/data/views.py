"""Views of an image: replayable augmentation for training, the fixed crop for evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.pixels import Cut, Raster, centre_crop
from potstill.data.random import Stream, integers, uniform
from potstill.errors import DataError

__all__ = ["EVALUATION_RATIO", "Augmentation", "Evaluation", "View", "image_size"]

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
        >>> cifar.offsets(torch.tensor([7, 7]), view=torch.tensor([0, 1]))
        (tensor([ 1, -2]), tensor([-1,  3]))
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
        return integers(self.seed, index, view, Stream.FLIP, 2).bool()

    def offsets(
        self, index: Tensor, view: Tensor, heights: int | Tensor | None = None, widths: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(B,)`` int64 rows and columns of 'pad' at which the result begins in the image; ``-padding`` at the least.

        Args:
            index: ``(B,)`` int64.
            view: ``(B,)`` int64.
            heights: of the images; the result's by default, which makes ``2 * padding + 1`` places.
            widths: of the images.
        """
        tall, wide = image_size(self.size)
        rows = (tall if heights is None else heights) + 2 * self.padding - tall + 1
        columns = (wide if widths is None else widths) + 2 * self.padding - wide + 1
        top = integers(self.seed, index, view, Stream.TOP, rows)
        left = integers(self.seed, index, view, Stream.LEFT, columns)
        return top - self.padding, left - self.padding

    def boxes(self, index: Tensor, view: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """``(B, 4)`` int64 (top, left, height, width) of 'resized', all arguments ``(B,)`` int64.

        Ten tries of a uniform area and a log-uniform ratio, of which the first that fits is taken at a uniform place;
        where none fits, the largest centred box with a ratio within bounds. Distributed as torchvision 0.26's
        ``RandomResizedCrop.get_params``. Ask for it on the host: exp and sqrt may differ in the last bit elsewhere.
        """
        tries = torch.arange(_TRIES, device=index.device)
        index_, view_ = index[:, None], view[:, None]  # (B, 1), against the tries
        part = uniform(self.seed, index_, view_, Stream.AREA + tries) * (self.scale[1] - self.scale[0]) + self.scale[0]
        least, greatest = (math.log(r) for r in self.ratio)
        ratio = torch.exp(uniform(self.seed, index_, view_, Stream.RATIO + tries) * (greatest - least) + least)
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
        top = torch.where(
            any_fits, integers(self.seed, index, view, Stream.TOP, heights - tall + 1), (heights - tall) // 2
        )
        left = torch.where(
            any_fits, integers(self.seed, index, view, Stream.LEFT, widths - wide + 1), (widths - wide) // 2
        )
        return torch.stack((top, left, tall, wide), dim=1)

    def require(self, height: int, width: int, name: str) -> None:
        """Raise a ``DataError`` that names the image where one of this size cannot be cropped so."""
        tall, wide = image_size(self.size)
        if self.crop == "none" and (height, width) != (tall, wide):
            raise DataError(
                f"{name} is {height}x{width} and crop 'none' changes no sizes, but the size asked for is "
                f"{tall}x{wide}; choose crop 'resized', or the images' own size where they share one."
            )
        if self.crop == "pad" and (height + 2 * self.padding < tall or width + 2 * self.padding < wide):
            raise DataError(
                f"{name} is {height}x{width}, which a padding of {self.padding} does not bring to the {tall}x{wide} of "
                "crop 'pad'; choose a smaller size or crop 'resized'."
            )

    def cuts(self, index: Tensor, view: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Cut]:
        """What the views show of images of these (height, width); ``index`` and ``view`` are ``(B,)`` int64."""
        tall, wide = size = image_size(self.size)
        heights, widths = torch.tensor(sizes).view(-1, 2).unbind(dim=1)
        if self.crop == "resized":
            boxes = self.boxes(index, view, heights, widths).tolist()
        elif self.crop == "pad":
            top, left = self.offsets(index, view, heights, widths)
            boxes = [[*place, tall, wide] for place in zip(top.tolist(), left.tolist(), strict=True)]
        else:
            boxes = [[0, 0, tall, wide] for _ in sizes]
        mirrored = self.flips(index, view).tolist()
        return [Cut(tuple(box), size, (0, 0), size, mirror) for box, mirror in zip(boxes, mirrored, strict=True)]

    def apply(self, images: Sequence[np.ndarray], index: Tensor, view: Tensor) -> np.ndarray:
        """``(B, h, w, 3)`` uint8: the views of B images ``(H, W, 3)`` uint8 of any sizes, on the host.

        'none' and 'pad' give exactly the pixels of the resident loader. 'resized' gives the same box, resampled in
        integers, whose pixels differ from the resident loader's by up to 1 of 255: it rounds twice.
        """
        for image in images:
            self.require(image.shape[0], image.shape[1], "An image")
        return _applied(self, images, index, view)


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

    def require(self, height: int, width: int, name: str) -> None:
        """Any size will do."""

    def cuts(self, index: Tensor, view: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Cut]:
        """What evaluation shows of images of these (height, width), the same for every index and view."""
        size = image_size(self.size)
        places = (centre_crop(height, width, size, self.resize) for height, width in sizes)
        return [
            Cut((0, 0, height, width), resized, corner, size)
            for (height, width), (resized, corner) in zip(sizes, places, strict=True)
        ]

    def apply(self, images: Sequence[np.ndarray], index: Tensor, view: Tensor) -> np.ndarray:
        """``(B, h, w, 3)`` uint8: the centres of B images ``(H, W, 3)`` uint8, the same for every index and view."""
        return _applied(self, images, index, view)


View = Augmentation | Evaluation


def _applied(view: View, images: Sequence[np.ndarray], index: Tensor, number: Tensor) -> np.ndarray:
    cuts = view.cuts(index, number, [(image.shape[0], image.shape[1]) for image in images])
    return torch.stack([cut.pixels(Raster.of(image)) for cut, image in zip(cuts, images, strict=True)]).numpy()
