"""What is computed for one batch of a detector: the regions that the student draws, seen by both networks."""

from dataclasses import replace

import torch

from potstill.batch import Batch
from potstill.methods.objective import Objective
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.features import Features
from potstill.networks.teacher import Teacher
from potstill.training.step import TrainingStep

__all__ = ["DetectionStep"]

_OF_REGIONS = frozenset({"logits", "embedding"})


class DetectionStep(TrainingStep):
    """Student and objective of a detector.

    The student draws regions of its own proposals; the teacher's head looks at the same ones on the teacher's pyramid.
    The terms of the objective see them as so many samples: logits and embedding of each, and its class as the target.
    Where no term reads regions or the detector's own losses (as stage by stage), only the pyramid is computed.

    Args:
        student: a detector.
        objective: as in :class:`~potstill.training.step.TrainingStep`, and so are the others.
        teacher: whose head is asked for the student's regions; None where there is none.
    """

    def __init__(
        self, student: TappedDetector, objective: Objective, *, teacher: Teacher | None,
        autocast: torch.dtype | None = None, channels_last: bool = True, trains: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(student, objective, autocast=autocast, channels_last=channels_last, trains=trains)
        needs = objective.needs
        self._looks = bool(needs.student & (_OF_REGIONS | {"losses"}))
        self._teaches_regions = bool(needs.teacher & _OF_REGIONS)
        if self._teaches_regions:
            self.teacher_reads = {**self.teacher_reads, "maps": True}  # where its head looks
        self.__dict__["_teacher"] = teacher  # outside the module tree: it is nobody's to train

    def forward(
        self, batch: Batch, teacher: Features | None, eager: bool = False
    ) -> tuple[dict[str, torch.Tensor], Features]:
        """The objective's terms with their weighted "total", and the student's features.

        Args:
            batch: with its objects.
            teacher: the teacher's features of that batch: its pyramid and stages.
            eager: says nothing here: detectors are not compiled.
        """
        images = batch.images.contiguous(memory_format=self._memory)
        with torch.autocast(images.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            student: Features = self.student(images, **self._read, objects=batch.objects if self._looks else None)
        if student.regions is not None:
            batch = replace(batch, targets=student.regions.labels)
            if teacher is not None and self._teaches_regions:
                logits, embedding = self.__dict__["_teacher"].of_regions(teacher.maps, student.regions)
                teacher = replace(teacher, logits=logits, embedding=embedding)
        return self.objective(student, teacher, batch), student
