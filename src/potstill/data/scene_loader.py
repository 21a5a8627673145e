"""The loader for detection and segmentation: images of different sizes, padded to one, with their boxes or masks."""

import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.batch import Batch
from potstill.data.batched import Normalise
from potstill.data.boxes import BoxSource
from potstill.data.feeding import Keys, start_worker, stop_workers
from potstill.data.masks import MaskSource
from potstill.data.order import Chunk, Plan
from potstill.data.requests import check_views
from potstill.data.scene_decoder import DecodedScenes, SceneDecoder, padded
from potstill.data.scene_view import SceneView
from potstill.errors import DataError
from potstill.objects import Objects

__all__ = ["SceneLoader"]


class SceneLoader:
    """Batches of scenes, decoded by worker processes; the same batches whatever the number of workers.

    The images of a micro-batch are normalised, then padded with zeros at the right and at the bottom, to the largest of
    them (with a window, to the window), rounded up to multiples of 32. Detection has ``Batch.objects``, segmentation
    ``Batch.targets``, ``(B, H, W)`` int64 with 255 where a pixel does not count, and in the padding.

    With ``on_error='skip'``, an image that cannot be used (damaged, or of another size than its annotations or mask) is
    left out of its batch, and ``skipped`` tells of it. The others keep the weight that they would have had. A batch of
    which nothing is left becomes a black filler of weight 0, without boxes, with class 0 everywhere; or is left out
    where the plan has no fillers.

    Args:
        source: where images come from.
        plan: the order; its length is the source's.
        view: how training or evaluation sees an image.
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        device: where the batches are made.
        workers: decoding processes, kept from epoch to epoch; 0 decodes in this one.
        on_error: 'stop' or 'skip', at an image that cannot be used.
        views: how many views a sample has; epoch ``e`` shows view ``e % views``. None: each epoch another one.
        masks: whether the source has masks (segmentation) and not boxes (detection).
        prefetch: micro-batches that each worker is ahead.

    Attributes:
        skipped: of each image that could not be used, its description and what is wrong with it.
        labels: None: a scene has no one class.

    Raises:
        DataError: where the arguments do not fit together; while batches are made, for an image that cannot be used
            (with 'stop'), and where an epoch has not one that can.

    Example:
        >>> from pathlib import Path
        >>> from potstill.data.masks import MaskSource
        >>> from potstill.data.scene_view import SceneEvaluation
        >>> none = MaskSource(Path("images"), Path("masks"), [], ["cell", "none"], root=Path("."))
        >>> SceneLoader(none, Plan(1, 1, 0, False), SceneEvaluation(64, 64), [0.5] * 3, [0.25] * 3, masks=True)
        Traceback (most recent call last):
        potstill.errors.DataError: images has 0 images, which do not fit a plan of 1.
    """

    labels: Tensor | None = None
    mixing = None

    def __init__(
        self,
        source: BoxSource | MaskSource,
        plan: Plan,
        view: SceneView,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        workers: int = 0,
        on_error: str = "stop",
        views: int | None = None,
        masks: bool = False,
        prefetch: int = 2,
    ) -> None:
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r} is unknown; choose 'stop' or 'skip'.")
        if workers < 0 or prefetch < 1:
            raise DataError(f"workers={workers} and prefetch={prefetch} must be at least 0 and 1.")
        if len(source) != plan.length:
            raise DataError(f"{source.name} has {len(source)} images, which do not fit a plan of {plan.length}.")
        if masks != isinstance(source, MaskSource):
            wanted, got = ("masks", "boxes") if masks else ("boxes", "masks")
            raise DataError(f"{source.name} has {got}, but {wanted} were asked for.")
        self.plan = plan
        self.device = torch.device(device)
        self.masks = masks
        self.skipped: dict[str, str] = {}
        self.number_of_views = check_views(views)
        self.normalise = Normalise(mean, std, self.device)
        self.typical = padded([view.typical])
        self._keys = Keys(plan)
        self._decoded: DataLoader[DecodedScenes] = DataLoader(
            SceneDecoder(source, view, skip=on_error == "skip"),
            sampler=self._keys,
            batch_size=None,  # a key is a whole micro-batch already
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            # Draws seeds that nothing here uses; from torch's global generator, that would shift a run's other numbers.
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )
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
                found = next(decoded)
                self.skipped.update(found.damaged)
                if found.error is not None:
                    raise DataError(found.error)
                seen, damaged = seen + len(found.kept), damaged + len(found.damaged)
                batch = self._of_chunk(order[chunk.start : chunk.stop], chunk, view, found)
                if batch is not None:
                    batches.append(batch)
            yield batches
        if damaged and seen == 0 and start == 0:
            raise DataError(
                f"None of the images of epoch {epoch} could be used. The first: {next(iter(self.skipped.values()))}"
            )

    def _of_chunk(self, index: Tensor, chunk: Chunk, view: int, found: DecodedScenes) -> Batch | None:
        """The batch of one micro-batch; None where nothing is left and nothing is needed."""
        if found.kept:
            return self._batch(index[found.kept], view, chunk.weight * len(found.kept) / len(chunk), found)
        return self._batch(index[:1], view, 0.0, self._filler()) if self.plan.fillers else None

    def _filler(self) -> DecodedScenes:
        """One black image. Its pixels count, as class 0: the mean over no pixels would be no number, even times 0."""
        pixels = torch.zeros((1, *self.typical, 3), dtype=torch.uint8)
        return DecodedScenes(
            pixels=pixels,
            sizes=(self.typical,),
            originals=(self.typical,),
            boxes=None if self.masks else torch.zeros((0, 4)),
            labels=None if self.masks else torch.zeros(0, dtype=torch.int64),
            counts=[0],
            masks=pixels[..., 0] if self.masks else None,
            kept=[0],
            damaged=[],
        )

    def _batch(self, index: Tensor, view: int, weight: float, found: DecodedScenes) -> Batch:
        """What a worker found as a batch on the device."""
        pixels, boxes, labels, masks = (
            None if one is None else one.to(self.device, non_blocking=True)
            for one in (found.pixels, found.boxes, found.labels, found.masks)
        )
        assert pixels is not None  # kept is not empty
        images = self.normalise(pixels)
        for image, (height, width) in zip(images, found.sizes, strict=True):
            image[:, height:] = 0
            image[:, :height, width:] = 0
        objects = None
        if boxes is not None and labels is not None:
            # Pinning memory makes lists of tuples.
            sizes, originals = (tuple((tall, wide) for tall, wide in each) for each in (found.sizes, found.originals))
            objects = Objects(boxes.split(found.counts), labels.split(found.counts), sizes, originals)
        index_ = index.to(self.device, non_blocking=True)
        return Batch(
            images=images,
            targets=None if masks is None else masks.long(),
            index=index_,
            view=torch.full_like(index_, view),
            weight=weight,
            objects=objects,
        )
