"""The contract of a distillation method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from potstill.batch import Batch
from potstill.networks.features import Features, FeatureSpec

__all__ = ["Method", "Needs", "Setting"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method reads: names of fields of Features, and whether it needs labels.

    A network computes only what some method of the objective needs.
    """

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    labels: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(self.student | other.student, self.teacher | other.teacher, self.labels or other.labels)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method is sized by: both networks' feature specs (no teacher in plain training)."""

    student: FeatureSpec
    teacher: FeatureSpec | None = None


class Method(nn.Module, ABC):
    """One term of an objective: a scalar loss of the two networks' features.

    Subclasses set ``needs`` and take ``(setting, *, hyper-parameters...)``; parameters they own (projectors) train
    with the student and never ship with it. ``forward`` gets float32 features with autocast off.
    """

    needs: ClassVar[Needs]

    @abstractmethod
    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss, a scalar: the mean over the batch's samples, before the objective's weight."""
