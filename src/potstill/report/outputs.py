"""What student and teacher said of each validation image, as arrays to count with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.analysis.predictions import Predictions

__all__ = ["Outputs", "read_outputs"]

Ints = NDArray[np.int64]
Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Predictions of N validation images, in the order of their numbers.

    Attributes:
        data: identity of the data.
        classes: how many there are.
        index: ``(N,)``, each image's number in its source.
        label: ``(N,)``, its class.
        student: ``(N,)``, the class that the student takes it for.
        teacher: ``(N,)``, the same of the teacher; None where there is none, or its classes are others.
        map_rows: ``(M,)``, rows of the arrays above whose embeddings are kept.
        map_student: ``(M, D)``, their embeddings' leading directions.
        map_teacher: ``(M, E)``, likewise; None without a teacher.
    """

    data: str
    classes: int
    index: Ints
    label: Ints
    student: Ints
    teacher: Ints | None
    map_rows: Ints
    map_student: Vectors
    map_teacher: Vectors | None

    @property
    def student_right(self) -> NDArray[np.bool_]:
        """``(N,)``, where the student is right."""
        return self.student == self.label

    @property
    def teacher_right(self) -> NDArray[np.bool_] | None:
        """``(N,)``, where the teacher is right."""
        return None if self.teacher is None else self.teacher == self.label

    def same_images(self, other: "Outputs") -> bool:
        """Whether the other's are of the same images with the same labels."""
        same = (self.data, self.classes) == (other.data, other.classes)
        return same and np.array_equal(self.index, other.index) and np.array_equal(self.label, other.label)


def read_outputs(path: Path) -> Outputs | None:
    """A run's outputs, checked; None where it has kept none, or is of data without a validation image.

    Args:
        path: of ``predictions.safetensors``.

    Raises:
        RunError: where it is damaged.
    """
    if not path.is_file():
        return None
    found = Predictions.read(path)
    if not len(found.index):
        return None
    return Outputs(
        found.data, found.classes, found.index.numpy(), found.label.long().numpy(), found.student.long().numpy(),
        None if found.teacher is None else found.teacher.long().numpy(),
        found.map_rows.numpy(), found.map_student.double().numpy(),
        None if found.map_teacher is None else found.map_teacher.double().numpy(),
    )  # fmt: skip
