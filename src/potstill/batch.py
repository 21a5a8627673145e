"""The unit that flows through a training step."""

from dataclasses import dataclass

from torch import Tensor

from potstill.objects import Objects

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with everything that is known of them; the student and the teacher both read this one object.

    Attributes:
        images: ``(B, 3, H, W)`` float, augmented, normalised with the data's mean and standard deviation.
        targets: ``(B,)`` int64 class numbers, or ``(B, C)`` float class probabilities (each row sums to 1) after
            mixup or CutMix; None where the data has no labels. Segmentation: ``(B, H, W)`` int64, with 255 for pixels
            that do not count.
        index: ``(B,)`` int64, each sample's position in its source.
        view: ``(B,)`` int64, the number of each sample's augmentation. The augmentation is a pure function of
            (seed, index, view).
        weight: this batch's part in its optimiser step, as the factor its mean loss is multiplied with. One process
            without accumulation: 1. In general ``n * processes / N`` for ``n`` of the step's ``N`` samples, so that
            gradients summed over micro-batches and averaged over processes are those of the mean over all N.
            0 marks a filler (fewer samples than processes): it takes part in the step and counts for nothing.
        objects: detection: the boxes in each image; None elsewhere.
    """

    images: Tensor
    targets: Tensor | None
    index: Tensor
    view: Tensor
    weight: float = 1.0
    objects: Objects | None = None

    def __len__(self) -> int:
        return self.index.shape[0]
