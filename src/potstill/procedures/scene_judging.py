"""What is measured on scenes: the average precision of a detector, the mean IoU of a network for segmentation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.data.scene_view import fitted
from potstill.methods.objective import Objective
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.features import Features
from potstill.networks.tapped import Tapped
from potstill.objects import Size
from potstill.procedures.data import Data
from potstill.procedures.scenes import each_alone
from potstill.tasks.detection import AveragePrecision
from potstill.tasks.segmentation import MeanIoU
from potstill.training.distributed import Processes

__all__ = ["DetectionJudge", "SegmentationJudge", "look_for", "name_pixels"]

Detect = Callable[[Tensor, tuple[Size, ...]], list[dict[str, Tensor]]]
Observe = Callable[[int, dict[str, Tensor]], None]
ObservePixels = Callable[[Batch, Tensor], None]


class DetectionJudge:
    """The average precision of a detector that trains.

    Args:
        network: the detector, or the moving average of its weights.
        data: with the validation images, whose source knows the boxes.
        processes: this process and the others.
        autocast: the dtype that backbone and pyramid compute in; None for float32. Boxes are float32 always.
    """

    def __init__(self, network: TappedDetector, data: Data, processes: Processes, autocast: torch.dtype | None) -> None:
        self.network, self.data, self.processes, self.autocast = network, data, processes, autocast

    def values(self, objective: Objective | None = None) -> dict[str, float]:
        """``ap``, ``ap50`` and so on, in percent; every process calls it."""
        found = self.look()
        return {} if found is None else found.values()

    def look(self, observe: Observe | None = None) -> AveragePrecision | None:
        """What the average precision is taken of; None where there are no validation images.

        Args:
            observe: is told each image's number and what was found in it, in pixels of its file.
        """
        self.processes.align(self.network)
        self.network.eval()
        return look_for(self._detect, self.data, self.processes, observe)

    def _detect(self, images: Tensor, sizes: tuple[Size, ...]) -> list[dict[str, Tensor]]:
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.network.detect(images, sizes)


class SegmentationJudge:
    """How well a network that trains names the pixels of the validation images, at the size that it sees them.

    Args:
        network: the network, or the moving average of its weights.
        data: with the validation images and their masks.
        processes: this process and the others.
        autocast: the dtype to compute in; None for float32.
    """

    def __init__(self, network: Tapped, data: Data, processes: Processes, autocast: torch.dtype | None) -> None:
        self.network, self.data, self.processes, self.autocast = network, data, processes, autocast

    def values(self, objective: Objective | None = None) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy``, in percent; every process calls it."""
        found = self.look()
        return {} if found is None else found.values(self.processes.sum)

    def look(self, observe: ObservePixels | None = None) -> MeanIoU | None:
        """What the mean IoU is taken of; None where there are no validation images.

        Args:
            observe: is told each batch and the class named for each of its pixels, ``(B, H, W)``.
        """
        self.processes.align(self.network)
        self.network.eval()
        return name_pixels(self._logits, self.data, self.processes, observe)

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features: Features = self.network(images)
        return features.logits.float()


@torch.no_grad()
def name_pixels(
    logits: Callable[[Tensor], Tensor], data: Data, processes: Processes, observe: ObservePixels | None = None
) -> MeanIoU | None:
    """Name the pixels of the validation images, each process those of its part.

    Args:
        logits: gives those of each pixel of a batch, ``(B, C, H, W)``.
        data: with these images.
        processes: this process and the others.
        observe: see :meth:`SegmentationJudge.look`.
    """
    source: Any = data.judged
    if data.val is None or source is None:
        return None
    found = MeanIoU(data.classes, processes.device)
    for step in data.val.epoch(0):
        for batch in step:
            if batch.weight == 0 or batch.targets is None:
                continue
            originals = [source.size(index) for index in batch.index.tolist()]
            sizes = [fitted(height, width, data.size, data.longest or 0) for height, width in originals]
            for part in each_alone(batch, sizes):
                named = logits(part.images).argmax(1)
                assert part.targets is not None
                found.add(named, part.targets)
                if observe is not None:
                    observe(part, named)
    return found


def look_for(
    detect: Detect, data: Data, processes: Processes, observe: Observe | None = None
) -> AveragePrecision | None:
    """Look for objects in the validation images, each process in its part of them.

    Args:
        detect: gives what is found in each image of a batch, in the batch's pixels; takes the images and their sizes.
        data: with these images.
        processes: this process and the others.
        observe: see :meth:`DetectionJudge.look`.
    """
    source: Any = data.judged
    if data.val is None or source is None:
        return None
    truth = source.ground_truth()
    precision = AveragePrecision(truth, source.category_ids, data.classes, processes)
    numbers = [image["id"] for image in truth["images"]]
    for step in data.val.epoch(0):
        for batch in step:
            for index, found in _in_files(detect, batch):
                precision.add(numbers[index], found["boxes"], found["scores"], found["labels"])
                if observe is not None:
                    observe(index, found)
    return precision


def _in_files(detect: Detect, batch: Batch) -> list[tuple[int, dict[str, Tensor]]]:
    """Each image's number and what was found in it, in pixels of its file."""
    placed: list[tuple[int, dict[str, Tensor]]] = []
    if batch.weight == 0 or batch.objects is None:
        return placed
    for part in each_alone(batch, batch.objects.sizes):
        objects = part.objects
        assert objects is not None
        found = detect(part.images, objects.sizes)
        for index, one, size, full in zip(part.index.tolist(), found, objects.sizes, objects.originals, strict=True):
            scale = one["boxes"].new_tensor([full[1] / size[1], full[0] / size[0]] * 2)
            placed.append((index, {**one, "boxes": one["boxes"] * scale}))
    return placed
