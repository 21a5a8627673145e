"""What is computed for one batch of a network for segmentation: the pixels that count, seen by both networks."""

from dataclasses import replace

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.data.masks import UNCOUNTED
from potstill.errors import DataError
from potstill.networks.features import Features
from potstill.training.step import TrainingStep

__all__ = ["SegmentationStep"]


class SegmentationStep(TrainingStep):
    """Student and objective of a network for segmentation.

    The terms of the objective see the pixels that count as so many samples: the logits of each, and its class as the
    target. Terms of maps and of embeddings see whole images.
    """

    def forward(
        self, batch: Batch, teacher: Features | None, eager: bool = False
    ) -> tuple[dict[str, Tensor], Features]:
        """The objective's terms with their weighted "total", and the student's features.

        Args:
            batch: with targets ``(B, H, W)``, 255 where a pixel does not count.
            teacher: the teacher's features of that batch.
            eager: go round the compiled graph.
        """
        network = self.student if eager else self.__dict__["_forward"]
        images = batch.images.contiguous(memory_format=self._memory)
        with torch.autocast(images.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            student: Features = network(images, **{**self._read, "maps": True})
        masks = batch.targets
        if masks is None:
            return self.objective(student, teacher, batch), student
        counted = masks != UNCOUNTED  # (B, H, W)
        if not counted.any():  # a mean over no pixel is no number
            raise DataError(
                "No pixel of a batch counts: its masks are 255 all over. Take a larger batch_size, or leave such "
                "images out."
            )
        seen = replace(batch, targets=masks[counted])
        ours = replace(student, logits=_pixels(student.logits, counted))
        if teacher is not None:
            teacher = replace(teacher, logits=_pixels(teacher.logits, counted))
        return self.objective(ours, teacher, seen), student


def _pixels(logits: Tensor, counted: Tensor) -> Tensor:
    """Logits ``(P, C)`` of the pixels that count, of ``(B, C, H, W)``."""
    return logits.permute(0, 2, 3, 1)[counted]
