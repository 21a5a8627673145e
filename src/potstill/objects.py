"""Boxes: what lies in the images of a batch, and the regions that a detector looks at."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Objects", "Regions"]

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a batch's images, in pixels of the batch.

    The batch holds the images at its upper left, each padded at the right and at the bottom to the size of all.

    Attributes:
        boxes: of each image ``(n_i, 4)`` float32: x1, y1, x2, y2.
        labels: of each image ``(n_i,)`` int64 class numbers, from 0.
        sizes: (height, width) of each image inside the padded batch.
        originals: (height, width) of each image in its file.

    Example:
        >>> one = Objects((torch.zeros(0, 4),), (torch.zeros(0, dtype=torch.int64),), ((60, 80),), ((480, 640),))
        >>> len(one), one.to("cpu").sizes
        (1, ((60, 80),))
    """

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    sizes: tuple[Size, ...]
    originals: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def __add__(self, other: "Objects") -> "Objects":
        """The objects of two batches one after the other."""
        return Objects(
            self.boxes + other.boxes, self.labels + other.labels, self.sizes + other.sizes,
            self.originals + other.originals,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> "Objects":
        """The same on a device."""
        boxes = tuple(each.to(device, non_blocking=True) for each in self.boxes)
        labels = tuple(each.to(device, non_blocking=True) for each in self.labels)
        return replace(self, boxes=boxes, labels=labels)


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions of a batch's images: what the rows of a detector's logits and embedding are.

    Attributes:
        boxes: of each image ``(r_i, 4)`` float: x1, y1, x2, y2 in pixels of the batch.
        labels: ``(R,)`` int64 of all of them, image by image; background is C, one more than the last class.
        sizes: (height, width) of each image inside the padded batch.
    """

    boxes: tuple[Tensor, ...]
    labels: Tensor
    sizes: tuple[Size, ...]
