"""The loader for sets that fit on the device: all images as bytes there, augmented in batches."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.data.batched import Normalise, PackedViews, ResampledViews
from potstill.data.mixing import Mixing
from potstill.data.order import Plan
from potstill.data.requests import check_request, check_views
from potstill.data.views import Evaluation, View
from potstill.errors import DataError

__all__ = ["ResidentLoader"]

# Pixels augmented at once. A step of 64 small images is too little work for a call's overhead, so several steps are
# made together and then cut apart; much more would leave the caches.
_PIXELS = 1 << 19


class ResidentLoader:
    """Batches from a set of images of one size that is held on the device as uint8.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N,)`` integers, or None.
        plan: the order; its length is N.
        augmentation: how training or evaluation sees an image; None for the images as they are.
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        device: where the images are held and the batches made.
        mixing: Mixup and CutMix, for training.
        views: how many views a sample has; epoch ``e`` shows view ``e % views``. None: each epoch another one.

    Raises:
        DataError: where the images, the labels and the plan do not fit together.

    Example:
        >>> images, labels = np.zeros((10, 8, 8, 3), np.uint8), np.arange(10)
        >>> plan = Plan(length=10, batch_size=4, seed=0, shuffle=True)
        >>> loader = ResidentLoader(images, labels, plan, None, mean=[0.5] * 3, std=[0.25] * 3)
        >>> [len(batch) for step in loader.epoch(0) for batch in step]
        [4, 4, 2]
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | None,
        plan: Plan,
        augmentation: View | None,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        mixing: Mixing | None = None,
        views: int | None = None,
    ) -> None:
        # Some arrays (of Parquet, of a memory map) may not be written to, and torch warns of those.
        images = torch.as_tensor(np.require(images, requirements="W") if isinstance(images, np.ndarray) else images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"Images of shape {tuple(images.shape)} and {images.dtype} were given; (N, H, W, 3), uint8 is needed."
            )
        if len(images) != plan.length or (labels is not None and len(labels) != plan.length):
            given = "no labels" if labels is None else f"{len(labels)} labels"
            raise DataError(f"{len(images)} images and {given} do not fit a plan of {plan.length} samples.")
        self.plan = plan
        self.device = torch.device(device)
        self.mixing = mixing
        self.number_of_views = check_views(views)
        self.labels = None if labels is None else torch.as_tensor(labels).long().to(self.device)
        normalise = Normalise(mean, std, self.device)
        images = images.contiguous().to(self.device)
        self.views: PackedViews | ResampledViews
        if isinstance(augmentation, Evaluation) or (augmentation and augmentation.crop == "resized"):
            self.views = ResampledViews(images, augmentation, normalise)
        else:
            self.views = PackedViews(images, augmentation, normalise)
        height, width = (max(a, b) for a, b in zip(images.shape[1:3], self.views.size, strict=True))
        self._together = max(1, _PIXELS // (height * width * -(-plan.batch_size // plan.world)))

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self.plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step from ``start`` on; every sample's view is that of the epoch."""
        number = epoch if self.number_of_views is None else epoch % self.number_of_views
        order = self.plan.order(epoch).to(self.device)
        for first in range(start, self.steps, self._together):
            steps = [self.plan.chunks(k) for k in range(first, min(first + self._together, self.steps))]
            chunks = [chunk for step in steps for chunk in step]
            if not chunks:
                yield from ([] for _ in steps)
                continue
            index = torch.cat([order[chunk.start : chunk.stop] for chunk in chunks])
            view = torch.full_like(index, number)
            images = self.views(index, view)
            targets = None if self.labels is None else self.labels[index]
            begin = 0
            for k, step in enumerate(steps, start=first):
                batches = []
                for chunk in step:
                    part = slice(begin, begin + len(chunk))
                    begin = part.stop
                    batch = Batch(
                        images[part], None if targets is None else targets[part], index[part], view[part], chunk.weight
                    )
                    batches.append(self.mixing(batch, epoch, k, chunk.part) if self.mixing else batch)
                yield batches

    def places(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Index and view ``(B,)`` of each step's samples, for who has them :meth:`made`; one batch a step."""
        number = epoch if self.number_of_views is None else epoch % self.number_of_views
        order = self.plan.order(epoch).to(self.device)
        view = torch.full_like(order[: self.plan.batch_size], number)
        for k in range(start, self.steps):
            (chunk,) = self.plan.chunks(k)
            yield order[chunk.start : chunk.stop], view[: len(chunk)]

    def made(self, index: Tensor, view: Tensor) -> Batch:
        """The batch of these samples in these views, ``(B,)`` int64 on the device; nothing mixed, nothing checked."""
        return Batch(self.views(index, view), None if self.labels is None else self.labels[index], index, view)

    def requested(self, requests: Iterable[tuple[Tensor, Sequence[int]]]) -> Iterator[list[Batch]]:
        """For each request, host int64 indices ``(n,)`` and view numbers, a batch of all its samples in each view.

        Nothing is mixed, weights are 1.

        Raises:
            DataError: for indices that are not the source's, no samples or no views.
        """
        for asked, numbers in requests:
            index = check_request(asked, numbers, self.plan.length).to(self.device)
            yield [self.made(index, torch.full_like(index, number)) for number in numbers]
