"""Segmentation: how well each pixel is named, as mean intersection over union."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from potstill.data.masks import UNCOUNTED
from potstill.errors import DataError, NetworkError

__all__ = ["MeanIoU"]


def _here(counts: Tensor) -> Tensor:
    return counts


class MeanIoU:
    r"""Mean intersection over union of a set of images, added up batch by batch; no batch waits for the device.

    .. math:: IoU_c = \frac{n_{cc}}{\sum_k n_{ck} + \sum_k n_{kc} - n_{cc}}

    with :math:`n_{ck}` the pixels of class c that were named k, over all images together. A class that occurs neither
    among the targets nor among the predictions has no IoU and is left out of the mean; one that was named and does not
    occur has 0.

    Args:
        classes: their names, C of them.
        device: where the counts are.

    Raises:
        DataError: for no classes, more than 255, or two of one name.

    Example:
        >>> found = MeanIoU(["ground", "cell", "dust"], torch.device("cpu"))
        >>> found.add(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
        >>> {name: round(value, 2) for name, value in found.values().items()}
        {'miou': 50.0, 'pixel_accuracy': 66.67}
        >>> found.per_class()
        {'ground': 50.0, 'cell': 50.0}
    """

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        if not 1 <= len({*classes}) == len(classes) <= UNCOUNTED:
            raise DataError(
                f"Mean IoU is over 1 to {UNCOUNTED} classes of different names, but got {len(classes)} classes of "
                f"{len({*classes})} names."
            )
        self.classes = list(classes)
        # Rows are targets, columns what was named. Beside the classes: what does not count, and what is no class.
        self._counts = torch.zeros(len(classes) + 2, len(classes) + 2, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: logits ``(B, C, H, W)``, any floating dtype, or class numbers ``(B, H, W)``; of equal logits the
                first class is taken.
            targets: ``(B, H, W)`` class numbers, 255 for pixels that do not count.

        Raises:
            NetworkError: for tensors that do not belong together.
        """
        count = len(self.classes)
        if predicted.ndim == 4:
            if predicted.shape[1] != count:
                raise NetworkError(f"The network names {predicted.shape[1]} classes, but the data has {count}.")
            predicted = predicted.argmax(1)
        if predicted.shape != targets.shape or predicted.is_floating_point() or targets.is_floating_point():
            raise NetworkError(
                f"Class numbers are compared pixel by pixel, but the network's are {tuple(predicted.shape)} "
                f"{predicted.dtype} and the targets {tuple(targets.shape)} {targets.dtype}."
            )
        # No pixel is picked out by its value, which would wait for the device: each has its cell in the table.
        rows = _class_or(targets.long(), count, count + 1)
        rows = torch.where(targets == UNCOUNTED, count, rows)
        cells = (rows * (count + 2) + _class_or(predicted.long(), count, count + 1)).flatten()
        self._counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))

    def values(self, total: Callable[[Tensor], Tensor] = _here) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy`` in percent; waits for the device.

        Args:
            total: gives a tensor's sum over all processes, such as ``Processes.sum``; this process alone by default.

        Raises:
            DataError: where no pixel counts, or one's target is no class.
            NetworkError: where a pixel was named something that is no class.
        """
        counts = self._checked(total)
        overlaps = _overlaps(counts)
        accuracy = counts.diagonal().sum() / counts.sum()
        return {"miou": 100 * float(overlaps.nanmean()), "pixel_accuracy": 100 * float(accuracy)}

    def per_class(self, total: Callable[[Tensor], Tensor] = _here) -> dict[str, float]:
        """The IoU in percent of each class that occurs among targets or predictions; as :meth:`values` otherwise."""
        overlaps = _overlaps(self._checked(total)).tolist()
        return {name: 100 * value for name, value in zip(self.classes, overlaps, strict=True) if value == value}

    def _checked(self, total: Callable[[Tensor], Tensor]) -> Tensor:
        """``(C, C)`` float64 on the host."""
        counts, count = total(self._counts).cpu(), len(self.classes)
        if wrong := int(counts[count + 1].sum()):
            raise DataError(
                f"{wrong} pixels of the targets are no class: expected 0 to {count - 1}, or {UNCOUNTED} for what does "
                "not count."
            )
        if wrong := int(counts[:count, count + 1].sum()):
            raise NetworkError(f"{wrong} pixels were named a number that is no class from 0 to {count - 1}.")
        if not counts[:count].any():
            raise DataError(f"No pixel of the targets counts: all are {UNCOUNTED}, or there are none.")
        return counts[:count, :count].double()


def _class_or(numbers: Tensor, count: int, other: int) -> Tensor:
    return torch.where((numbers >= 0) & (numbers < count), numbers, other)


def _overlaps(counts: Tensor) -> Tensor:
    """``(C,)``; NaN for a class that is nowhere."""
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)
