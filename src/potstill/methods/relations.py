"""What methods that compare the samples of a batch with each other ask of it."""

from torch import Tensor

from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting

__all__ = ["check_pairs", "check_rows"]


def check_pairs(setting: Setting, method: str) -> None:
    """Refuse batches in which there are no two samples to compare.

    Raises:
        RecipeError: for a batch of one sample.
    """
    if setting.batch_size == 1:
        raise RecipeError(
            f"{method} compares the images of a batch with each other, and a process's part of a batch is 1 image: "
            "give it 2 or more, by a larger batch_size or fewer processes."
        )


def check_rows(student: Tensor, teacher: Tensor, method: str) -> None:
    """Refuse features of two different batches.

    Raises:
        NetworkError: where the lengths of the first axes differ.
    """
    if student.shape[0] != teacher.shape[0]:
        raise NetworkError(
            f"{method} compares two networks' features of the same images, but there are {student.shape[0]} of the "
            f"student and {teacher.shape[0]} of the teacher."
        )
