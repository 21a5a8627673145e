"""Views of whole scenes, with the boxes and masks in them: replayable for training, fixed for evaluation."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from potstill.data.random import Stream, integers, uniform
from potstill.errors import DataError

__all__ = ["Placement", "Scene", "SceneAugmentation", "SceneEvaluation", "SceneView", "fitted", "scene"]

_LEAST = 1.0  # pixels of a box's width and height in the view


class Placement(NamedTuple):
    """What a view shows of an image: resized, mirrored, then cut.

    Attributes:
        resized: height and width.
        mirrored: whether left and right are exchanged.
        window: top, left, height and width of the part of the resized, mirrored image that is shown.
    """

    resized: tuple[int, int]
    mirrored: bool
    window: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the view."""
        return self.window[2], self.window[3]


class Scene(NamedTuple):
    """An image, as a view shows it.

    Attributes:
        pixels: ``(h, w, 3)`` uint8.
        boxes: ``(n, 4)`` float32, x1 y1 x2 y2 in the view's pixels, clipped to it.
        kept: ``(n,)`` int64: which of the boxes that were given these are; the others are not in the view, or smaller
            than a pixel there.
        mask: ``(h, w)`` uint8, None where none was given.
    """

    pixels: Tensor
    boxes: Tensor
    kept: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class SceneAugmentation:
    """Multi-scale training: a random size and flip, and a random window where ``crop`` is given.

    A pure function of (seed, index, view). The short side becomes one of ``sizes``, or less where the long one would
    be over ``longest``; with ``crop``, both are multiplied by a random factor within ``scale`` first. The window is
    smaller than ``crop`` where the resized image is; what loads a batch fills it up.

    Attributes:
        sizes: of the short side, in pixels, each as likely as the others.
        longest: of the long side, at most.
        flip: whether half of the views are mirrored.
        crop: height and width of the window; None shows the whole image.
        scale: least and greatest factor, with ``crop``.
        seed: another seed, other views.

    Raises:
        DataError: at construction, for a value that describes no view.

    Example:
        >>> view = SceneAugmentation(sizes=(240, 320), longest=400, flip=True, seed=0)
        >>> [view.place(index=1, view=epoch, height=480, width=640).resized for epoch in range(4)]
        [(240, 320), (300, 400), (300, 400), (300, 400)]
    """

    sizes: tuple[int, ...]
    longest: int
    flip: bool = True
    crop: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise DataError(f"sizes={self.sizes} must be one or more lengths of the short side, in pixels.")
        if self.longest < max(self.sizes):
            raise DataError(f"longest={self.longest} is less than the short side of {max(self.sizes)}.")
        if self.crop is not None and self.crop < 1:
            raise DataError(f"crop={self.crop} has no pixels; give a positive number, or None for the whole image.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"scale={self.scale} must be two factors, 0 < least <= greatest.")

    @property
    def canvas(self) -> tuple[int, int]:
        """The least height and width of a batch: the window's, so that it does not change from batch to batch."""
        return (0, 0) if self.crop is None else (self.crop, self.crop)

    @property
    def typical(self) -> tuple[int, int]:
        """Height and width that stand for a view's, where there is no image."""
        return (max(self.sizes),) * 2 if self.crop is None else self.canvas

    def place(self, index: int, view: int, height: int, width: int) -> Placement:
        """What the view of a number shows of an image of this size."""
        at = (self.seed, torch.tensor(index), torch.tensor(view))
        short: float = self.sizes[int(integers(*at, Stream.SHORT, len(self.sizes)))]
        longest: float = self.longest
        if self.crop is not None:
            least, greatest = self.scale
            factor = least + float(uniform(*at, Stream.SCALE)) * (greatest - least)
            short, longest = short * factor, longest * factor
        tall, wide = resized = fitted(height, width, short, longest)
        mirrored = self.flip and bool(integers(*at, Stream.FLIP, 2))
        if self.crop is None:
            return Placement(resized, mirrored, (0, 0, tall, wide))
        size = (min(self.crop, tall), min(self.crop, wide))
        top = int(integers(*at, Stream.WINDOW_TOP, tall - size[0] + 1))
        left = int(integers(*at, Stream.WINDOW_LEFT, wide - size[1] + 1))
        return Placement(resized, mirrored, (top, left, *size))


@dataclass(frozen=True)
class SceneEvaluation:
    """The fixed view of evaluation: the whole image, its short side ``size``, or less for the long side's sake.

    Attributes:
        size: of the short side, in pixels.
        longest: of the long side, at most.

    Raises:
        DataError: at construction, for a value that describes no view.

    Example:
        >>> SceneEvaluation(size=320, longest=533).place(index=0, view=0, height=480, width=640).resized
        (320, 427)
    """

    size: int
    longest: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.longest < self.size:
            raise DataError(f"size={self.size} and longest={self.longest} must be 1 or more, and longest the greater.")

    @property
    def canvas(self) -> tuple[int, int]:
        """Nothing: a batch is as large as its images."""
        return (0, 0)

    @property
    def typical(self) -> tuple[int, int]:
        """Height and width that stand for a view's, where there is no image."""
        return (self.size, self.size)

    def place(self, index: int, view: int, height: int, width: int) -> Placement:
        """What evaluation shows of an image of this size, the same for every index and view."""
        tall, wide = resized = fitted(height, width, self.size, self.longest)
        return Placement(resized, False, (0, 0, tall, wide))


SceneView = SceneAugmentation | SceneEvaluation


def fitted(height: int, width: int, short: float, longest: float) -> tuple[int, int]:
    """The height and width, rounded, with the short side ``short`` unless the long one would be over ``longest``."""
    factor = min(short / min(height, width), longest / max(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def scene(pixels: np.ndarray, place: Placement, boxes: np.ndarray, mask: np.ndarray | None = None) -> Scene:
    """An image with its boxes and mask as a view shows it.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        place: what the view shows.
        boxes: ``(m, 4)`` float32, x1 y1 x2 y2 in the image's pixels.
        mask: ``(H, W)`` uint8.

    Images are resized bilinearly and antialiased, as bytes; of a mask, the pixel in the middle of each is taken. A
    place in the image at the part x / W of its width is at x / W of the resized width, and so is a box's edge.
    Where nothing is resized, the result shares memory with what was given.
    """
    image = Image(torch.from_numpy(pixels).permute(2, 0, 1))
    found = BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=pixels.shape[:2])
    labelled = None if mask is None else Mask(torch.from_numpy(mask)[None])

    size = list(place.resized)
    image = transforms.resize(image, size, antialias=True)
    found = transforms.resize(found, size)
    if labelled is not None:
        # As of an image: of a mask, torchvision takes the pixel at the upper left, half of one beside the image's.
        labelled = Mask(transforms.resize_image(labelled, size, interpolation=InterpolationMode.NEAREST_EXACT))
    if place.mirrored:
        image, found = transforms.horizontal_flip(image), transforms.horizontal_flip(found)
        labelled = None if labelled is None else transforms.horizontal_flip(labelled)
    image, found = transforms.crop(image, *place.window), transforms.crop(found, *place.window)
    labelled = None if labelled is None else transforms.crop(labelled, *place.window)

    # The crop has clipped them to itself.
    inside, valid = transforms.sanitize_bounding_boxes(found, min_size=_LEAST, min_area=_LEAST)
    return Scene(
        image.as_subclass(Tensor).permute(1, 2, 0).contiguous(),
        inside.as_subclass(Tensor),
        valid.as_subclass(Tensor).nonzero()[:, 0],
        None if labelled is None else labelled.as_subclass(Tensor)[0].contiguous(),
    )
