"""What a decoding process does for scenes: from the numbers of samples to padded bytes, boxes and masks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from potstill.data.boxes import BoxSource
from potstill.data.decode import stopped_by
from potstill.data.masks import UNCOUNTED, MaskSource
from potstill.data.scene_view import SceneView, scene
from potstill.errors import DataError, RunError

__all__ = ["STRIDE", "DecodedScenes", "SceneDecoder", "padded"]

STRIDE = 32  # a batch's height and width are multiples of it: the coarsest maps of the usual backbones


class DecodedScenes(NamedTuple):
    """Some samples in one view.

    Attributes:
        pixels: ``(n, H, W, 3)`` uint8, each image at the upper left.
        sizes: height and width of each image in that.
        originals: height and width of each image's file.
        boxes: ``(m, 4)`` float32 of all images, x1 y1 x2 y2; without crowd regions. None of a source with masks.
        labels: ``(m,)`` int64.
        counts: how many boxes each image has.
        masks: ``(n, H, W)`` uint8, 255 outside the images; None of a source with boxes.
        kept: the n positions in what was asked for that could be read.
        damaged: description and reason of each image that could not.
        error: what stops the run; then nothing else counts.
    """

    pixels: Tensor | None
    sizes: tuple[tuple[int, int], ...]
    originals: tuple[tuple[int, int], ...]
    boxes: Tensor | None
    labels: Tensor | None
    counts: list[int]
    masks: Tensor | None
    kept: list[int]
    damaged: list[tuple[str, str]]
    error: str | None = None


class _One(NamedTuple):
    """One sample in its view."""

    pixels: Tensor
    original: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    mask: Tensor | None


class SceneDecoder(Dataset[DecodedScenes]):
    """A source's images with boxes or masks in a view, by (indices, view numbers); one view number.

    Args:
        source: where images come from.
        view: how they are seen.
        skip: whether images that cannot be used are left out; else the first one is an error. An image whose mask
            cannot be read, or that has another size than its mask or annotations, cannot be used either.
    """

    def __init__(self, source: BoxSource | MaskSource, view: SceneView, skip: bool) -> None:
        self.source = source
        self.view = view
        self.skip = skip

    def __getitem__(self, key: tuple[list[int], list[int]]) -> DecodedScenes:
        indices, (view,) = key
        found: list[_One] = []
        kept: list[int] = []
        damaged: list[tuple[str, str]] = []
        try:
            for position, index in enumerate(indices):
                try:
                    found.append(self._one(index, view))
                    kept.append(position)
                except DataError as damage:
                    damaged.append((self.source.describe(index), str(damage)))
                    if not self.skip:
                        raise stopped_by(damage) from damage
        except (DataError, RunError) as error:
            return DecodedScenes(None, (), (), None, None, [], None, [], damaged, str(error))
        return self._batch(found, kept, damaged)

    def _one(self, index: int, view: int) -> _One:
        pixels = self.source.image(index)
        height, width = pixels.shape[:2]
        place = self.view.place(index, view, height, width)
        if isinstance(self.source, MaskSource):
            seen = scene(pixels, place, np.zeros((0, 4), np.float32), self.source.mask(index))
            return _One(seen.pixels, (height, width), seen.boxes, seen.kept, seen.mask)
        objects = self.source.objects(index)
        learnt = ~objects.crowd
        seen = scene(pixels, place, objects.boxes[learnt])
        labels = torch.from_numpy(objects.labels[learnt])[seen.kept]
        return _One(seen.pixels, (height, width), seen.boxes, labels, None)

    def _batch(self, found: list[_One], kept: list[int], damaged: list[tuple[str, str]]) -> DecodedScenes:
        """The samples in one batch's memory, which is shared with the main process."""
        sizes = tuple((one.pixels.shape[0], one.pixels.shape[1]) for one in found)
        if not found:
            return DecodedScenes(None, (), (), None, None, [], None, kept, damaged)
        tall, wide = padded([*sizes, self.view.canvas])
        pixels = torch.zeros((len(found), tall, wide, 3), dtype=torch.uint8)
        masked = isinstance(self.source, MaskSource)
        masks = torch.full((len(found), tall, wide), UNCOUNTED, dtype=torch.uint8) if masked else None
        for number, (one, (height, width)) in enumerate(zip(found, sizes, strict=True)):
            pixels[number, :height, :width] = one.pixels
            if masks is not None and one.mask is not None:
                masks[number, :height, :width] = one.mask
        return DecodedScenes(
            pixels=pixels,
            sizes=sizes,
            originals=tuple(one.original for one in found),
            boxes=None if masked else torch.cat([one.boxes for one in found]),
            labels=None if masked else torch.cat([one.labels for one in found]),
            counts=[len(one.boxes) for one in found],
            masks=masks,
            kept=kept,
            damaged=damaged,
        )


def padded(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The height and width that images of these sizes are padded to: the largest, up to the next multiple of 32.

    Example:
        >>> padded([(240, 320), (200, 321)])
        (256, 352)
    """
    tall, wide = (max(side) for side in zip(*sizes, strict=True))
    return -(-tall // STRIDE) * STRIDE, -(-wide // STRIDE) * STRIDE
