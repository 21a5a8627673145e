"""The loader for sets of any size: images are decoded and cropped by worker processes as they are needed."""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.batch import Batch
from potstill.data.batched import Normalise
from potstill.data.decoder import Decoded, Decoder
from potstill.data.feeding import Key, Keys, start_worker, stop_workers
from potstill.data.mixing import Mixing
from potstill.data.order import Chunk, Plan
from potstill.data.requests import check_request, check_views
from potstill.data.source import Source
from potstill.data.views import Augmentation, View, image_size
from potstill.errors import DataError

__all__ = ["StreamingLoader"]


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
        views: how many views a sample has; epoch ``e`` shows view ``e % views``. None: each epoch another one.
        draft: whether a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the result has fewer pixels anyway; see
            :class:`~potstill.data.decoder.Decoder`. The pixels change slightly, and the larger the photographs, the
            less they cost.

    Attributes:
        skipped: of each damaged image that was met, its description and what is wrong with it.

    Raises:
        DataError: where the arguments do not fit together; while batches are made, for a damaged image (with 'stop'),
            for an image that the crop cannot be applied to, and where an epoch has not one image that can be read.

    Example:
        >>> import numpy as np
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
        views: int | None = None,
        draft: bool = True,
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
        self.number_of_views = check_views(views)
        self.size = image_size(augmentation.size)
        self.labels = None if source.labels is None else torch.tensor(source.labels, dtype=torch.int64)
        self.normalise = Normalise(mean, std, self.device)
        self._decoder = Decoder(source, augmentation, skip=on_error == "skip", draft=draft)
        self._workers, self._prefetch = workers, prefetch
        self._keys = Keys(plan)
        self._decoded = self._loader(self._keys, persistent=True)
        self._closing: weakref.finalize | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self.plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of each step from ``start`` on; every sample's view is that of the epoch."""
        view = epoch if self.number_of_views is None else epoch % self.number_of_views
        self._keys.epoch, self._keys.view, self._keys.start = epoch, view, start
        order = self.plan.order(epoch)
        decoded = iter(self._decoded)
        if self._closing is None:  # the workers are kept from epoch to epoch
            self._closing = weakref.finalize(self, stop_workers, decoded)
        seen = damaged = 0
        for k in range(start, self.steps):
            batches = []
            for chunk in self.plan.chunks(k):
                found = self._checked(next(decoded))
                seen, damaged = seen + len(found.kept), damaged + len(found.damaged)
                batch = self._of_chunk(order[chunk.start : chunk.stop], chunk, view, found)
                if batch is not None:
                    batches.append(self.mixing(batch, epoch, k, chunk.part) if self.mixing else batch)
            yield batches
        if damaged and seen == 0 and start == 0:
            raise DataError(
                f"None of the images of epoch {epoch} could be read. The first: {next(iter(self.skipped.values()))}"
            )

    def requested(self, requests: Iterable[tuple[Tensor, Sequence[int]]]) -> Iterator[list[Batch]]:
        """For each request, host int64 indices ``(n,)`` and view numbers, a batch of all its samples in each view.

        An image is opened once for all its views, and decoded once for each scale that they need (see ``draft``), by
        worker processes of its own, so that an epoch that is under way goes on. Nothing is mixed, weights are 1.
        With ``on_error='skip'`` damaged images are left out; ``Batch.index`` tells which are there.

        Raises:
            DataError: for indices that are not the source's, no samples or no views, and as an epoch does.
        """
        asked: deque[tuple[Tensor, list[int]]] = deque()

        def keys() -> Iterator[Key]:
            for index, views in requests:
                asked.append((check_request(index, views, self.plan.length), list(views)))
                yield index.tolist(), list(views)

        decoded = iter(self._loader(keys(), persistent=False))
        closing = weakref.finalize(self, stop_workers, decoded)
        try:
            for each in decoded:
                found = self._checked(each)
                index, views = asked.popleft()
                yield [
                    self._batch(pixels, index[found.kept], view, 1.0)
                    for pixels, view in zip(found.pixels, views, strict=True)
                ]
        finally:
            closing()

    def _loader(self, keys: Iterable[Key], persistent: bool) -> DataLoader[Decoded]:
        return DataLoader(
            self._decoder,
            sampler=keys,
            batch_size=None,  # a key is a whole micro-batch already
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            persistent_workers=persistent and self._workers > 0,
            worker_init_fn=start_worker,
            # Draws seeds that nothing here uses; from torch's global generator, that would shift a run's other numbers.
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )

    def _checked(self, found: Decoded) -> Decoded:
        """What a worker found, once it is noted what is damaged; raises what stops the run."""
        self.skipped.update(found.damaged)
        if found.error is not None:
            raise DataError(found.error)
        return found

    def _of_chunk(self, index: Tensor, chunk: Chunk, view: int, found: Decoded) -> Batch | None:
        """The batch of one micro-batch; None where nothing is left and nothing is needed."""
        if found.kept:
            return self._batch(found.pixels[0], index[found.kept], view, chunk.weight * len(found.kept) / len(chunk))
        if not self.plan.fillers:
            return None
        return self._batch(torch.zeros((1, *self.size, 3), dtype=torch.uint8), index[:1], view, 0.0)

    def _batch(self, pixels: Tensor, index: Tensor, view: int, weight: float) -> Batch:
        """Pixels of the host as a batch on the device."""
        index_ = index.to(self.device, non_blocking=True)
        return Batch(
            images=self.normalise(pixels.to(self.device, non_blocking=True)),
            targets=None if self.labels is None else self.labels[index].to(self.device, non_blocking=True),
            index=index_,
            view=torch.full_like(index_, view),
            weight=weight,
        )
