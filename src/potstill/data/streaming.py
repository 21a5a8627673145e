"""The loader for sets of any size: images are decoded and cropped by worker processes as they are needed."""

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from potstill.batch import Batch
from potstill.data.batched import Normalise
from potstill.data.decode import stopped_by
from potstill.data.mixing import Mixing
from potstill.data.order import Chunk, Plan
from potstill.data.source import Source
from potstill.data.views import Augmentation, View, image_size
from potstill.errors import DataError

__all__ = ["StreamingLoader"]

# Decoded pixels that a worker holds before it crops them. Their crops are drawn in one go, which saves half a
# millisecond an image; a limit in pixels, because a batch of photographs from a camera would fill the memory.
_PIXELS = 1 << 24


class _Decoded(NamedTuple):
    """What a worker returns of one micro-batch."""

    pixels: Tensor  # (n, h, w, 3) uint8
    kept: Tensor  # (n,) int64: positions in the micro-batch
    damaged: list[tuple[str, str]]  # description and reason of each image that could not be read
    error: str | None  # what stops the run


class _Decoder(Dataset[_Decoded]):
    """The worker's part: from (indices, view number) to cropped bytes."""

    def __init__(self, source: Source, view: View, skip: bool) -> None:
        self.source = source
        self.view = view
        self.skip = skip

    def __getitem__(self, key: tuple[Tensor, int]) -> _Decoded:
        index, epoch = key
        parts = [np.empty((0, *image_size(self.view.size), 3), np.uint8)]
        kept: list[int] = []
        damaged: list[tuple[str, str]] = []
        images: list[np.ndarray] = []
        # An error goes back as text: raised here, it would reach the user wrapped in this process's traceback.
        try:
            for position, sample in enumerate(index.tolist()):
                try:
                    image = self.source.image(sample)
                except DataError as error:
                    damaged.append((self.source.describe(sample), str(error)))
                    if not self.skip:
                        return _Decoded(torch.empty(0), torch.empty(0), damaged, str(stopped_by(error)))
                    continue
                self.view.require(image.shape[0], image.shape[1], self.source.describe(sample))
                images.append(image)
                kept.append(position)
                if sum(image.size for image in images) > 3 * _PIXELS:
                    parts.append(self._crop(images, index[kept[-len(images) :]], epoch))
                    images = []
            if images:
                parts.append(self._crop(images, index[kept[-len(images) :]], epoch))
        except DataError as error:
            return _Decoded(torch.empty(0), torch.empty(0), damaged, str(error))
        pixels = torch.from_numpy(np.concatenate(parts))
        return _Decoded(pixels, torch.tensor(kept, dtype=torch.int64), damaged, None)

    def _crop(self, images: list[np.ndarray], index: Tensor, epoch: int) -> np.ndarray:
        return self.view.apply(images, index, torch.full_like(index, epoch))


class _Keys(Sampler[tuple[Tensor, int]]):
    """What the workers are asked for, in order: the micro-batches of an epoch from step ``start`` on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        order, epoch = self.plan.order(self.epoch), self.epoch
        for k in range(self.start, self.plan.steps):
            for chunk in self.plan.chunks(k):
                # A copy: a slice would take the whole order along to the worker.
                yield order[chunk.start : chunk.stop].clone(), epoch


def _start_worker(number: int) -> None:
    """Leave being told to stop to the main process, which saves first and then stops its workers itself.

    Ctrl-C, ``timeout`` and cluster schedulers signal the whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class StreamingLoader:
    """Batches decoded as they are needed; the same batches as the resident loader's, whatever the number of workers.

    With ``on_error='skip'``, a damaged image is left out of its batch and ``skipped`` tells of it. The others keep
    the weight that they would have had, so the batch's is less by the part that is missing; a batch of which nothing is
    left becomes one black filler of weight 0, or is left out where the plan has no fillers.

    Args:
        source: where images and labels come from.
        plan: the order; its length is the source's.
        augmentation: how training or evaluation sees an image; None for a source whose images share one size.
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        device: where the batches are made.
        workers: decoding processes, kept from epoch to epoch; 0 decodes in this one.
        mixing: Mixup and CutMix, for training.
        on_error: 'stop' or 'skip', at a damaged image.
        prefetch: micro-batches that each worker is ahead.

    Attributes:
        skipped: of each damaged image that was met, its description and what is wrong with it.

    Raises:
        DataError: where the arguments do not fit together; while batches are made, for a damaged image (with 'stop'),
            for an image that the crop cannot be applied to, and where an epoch has not one image that can be read.

    Example:
        >>> from potstill.data.source import ArraySource
        >>> source = ArraySource(np.zeros((10, 8, 8, 3), np.uint8), None, name="ten")
        >>> plan = Plan(length=10, batch_size=4, seed=0, shuffle=True)
        >>> loader = StreamingLoader(source, plan, None, mean=[0.5] * 3, std=[0.25] * 3)
        >>> [len(batch) for step in loader.epoch(0, start=1) for batch in step]
        [4, 2]
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        augmentation: View | None,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        workers: int = 0,
        mixing: Mixing | None = None,
        on_error: str = "stop",
        prefetch: int = 2,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r} is unknown; choose 'stop' or 'skip'.")
        if workers < 0 or prefetch < 1:
            raise DataError(f"workers={workers} and prefetch={prefetch} must be at least 0 and 1.")
        if len(source) != plan.length:
            raise DataError(f"{source.name} has {len(source)} images, which do not fit a plan of {plan.length}.")
        if augmentation is None:
            if source.fixed_size is None:
                raise DataError(f"{source.name} has images of several sizes; an augmentation must bring them to one.")
            augmentation = Augmentation(source.fixed_size)
        self.plan = plan
        self.device = torch.device(device)
        self.mixing = mixing
        self.skipped: dict[str, str] = {}
        self.size = image_size(augmentation.size)
        self.labels = None if source.labels is None else torch.tensor(source.labels, dtype=torch.int64)
        self.normalise = Normalise(mean, std, self.device)
        self._keys = _Keys(plan)
        self._decoded = DataLoader(
            _Decoder(source, augmentation, skip=on_error == "skip"),
            sampler=self._keys,
            batch_size=None,  # a key is a whole micro-batch already
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            # Draws seeds that nothing here uses; from torch's global generator, that would shift a run's other numbers.
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self.plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step from ``start`` on; the view of every sample is the epoch's number."""
        self._keys.epoch, self._keys.start = epoch, start
        order = self.plan.order(epoch)
        decoded = iter(self._decoded)
        seen = damaged = 0
        for k in range(start, self.steps):
            batches = []
            for chunk in self.plan.chunks(k):
                found: _Decoded = next(decoded)
                self.skipped.update(found.damaged)
                if found.error is not None:
                    raise DataError(found.error)
                seen, damaged = seen + len(found.kept), damaged + len(found.damaged)
                batch = self._batch(order[chunk.start : chunk.stop], chunk, epoch, found)
                if batch is not None:
                    batches.append(self.mixing(batch, epoch, k, chunk.part) if self.mixing else batch)
            yield batches
        if damaged and seen == 0 and start == 0:
            raise DataError(
                f"None of the images of epoch {epoch} could be read. The first: {next(iter(self.skipped.values()))}"
            )

    def _batch(self, index: Tensor, chunk: Chunk, epoch: int, found: _Decoded) -> Batch | None:
        """The batch of one micro-batch's pixels on the device; None where nothing is left and nothing is needed."""
        weight = chunk.weight * len(found.kept) / len(chunk)
        pixels, index = found.pixels, index[found.kept] if len(found.kept) else index[:1]
        if not len(found.kept):
            if not self.plan.fillers:
                return None
            pixels = torch.zeros((1, *self.size, 3), dtype=torch.uint8)
        index_ = index.to(self.device, non_blocking=True)
        return Batch(
            images=self.normalise(pixels.to(self.device, non_blocking=True)),
            targets=None if self.labels is None else self.labels[index].to(self.device, non_blocking=True),
            index=index_,
            view=torch.full_like(index_, epoch),
            weight=weight,
        )
