"""The contract of a distillation method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from potstill.batch import Batch
from potstill.networks.features import ON_DEMAND, Features, FeatureSpec

__all__ = ["Known", "Method", "Needs", "Setting"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method reads: names of fields of Features, and whether it needs labels.

    A network computes only what some method of the objective needs.

    Attributes:
        student: out of ``logits``, ``embedding``, ``maps``, ``preacts``, ``blocks``, ``peers``.
        teacher: likewise.
        labels: of each image.
        class_means: the teacher's mean embedding of each class, collected before training (:class:`Known`).
    """

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    labels: bool = False
    class_means: bool = False

    @property
    def taught(self) -> bool:
        """Whether it learns anything from a teacher."""
        return bool(self.teacher) or self.class_means

    def on_demand(self, network: Literal["student", "teacher"]) -> dict[str, bool]:
        """What to ask a network's forward pass for beside logits and embedding, as its keyword arguments.

        Example:
            >>> Needs(student=frozenset({"embedding", "maps"})).on_demand("student")
            {'maps': True}
        """
        return dict.fromkeys(sorted(getattr(self, network) & ON_DEMAND), True)

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.student | other.student,
            self.teacher | other.teacher,
            self.labels or other.labels,
            self.class_means or other.class_means,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method is sized by.

    Attributes:
        student: the student's feature spec.
        teacher: the teacher's; None in plain training.
        samples: N, the number of training images; 0 where it is not known.
        batch_size: of a process's part of a step; 0 where it is not known.
        peers: how many networks learn together with the student.
        classifier: the teacher's last layer, ``(weight (C, D), bias (C,))``, frozen; None where that is not linear.
        norms: of each of the teacher's ``preacts`` the affine ``(weight, bias)`` of the batch norm behind it, each
            ``(C_l,)``, frozen; None where there is none.
        identity_scale: by what the cosines in the student's logits are multiplied, where its last layer is an identity
            head; "norm": by the embedding's norm. None elsewhere.
    """

    student: FeatureSpec
    teacher: FeatureSpec | None = None
    samples: int = 0
    batch_size: int = 0
    peers: int = 0
    classifier: tuple[Tensor, Tensor | None] | None = None
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = ()
    identity_scale: float | Literal["norm"] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known once the data are there and before training starts.

    Attributes:
        labels: ``(N,)`` int64, of the training images by index; None where they have none.
        class_means: ``(C, D)``, the teacher's mean embedding of each class, where a method needs it.
    """

    labels: Tensor | None = None
    class_means: Tensor | None = None


class Method(nn.Module, ABC):
    """One term of an objective: a scalar loss of the two networks' features.

    Subclasses set ``needs`` (on the class, or in the constructor where it depends on the hyper-parameters) and take
    ``(setting, *, hyper-parameters...)``; parameters they own (projectors) train with the student and never ship with
    it; what must survive an interruption beside them is a buffer. ``forward`` gets float32 features with autocast off.

    Attributes:
        needs: what it reads.
        decays: whether the optimiser's weight decay applies to its own parameters.
    """

    needs: ClassVar[Needs]
    decays: ClassVar[bool] = True

    @abstractmethod
    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss, a scalar: the mean over the batch's samples, before the objective's weight."""

    def prepare(self, known: Known) -> None:
        """Take in what is known of the data; called once before training, on every device and in a resumed run too."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch of its phase, counted from 0; not where one is resumed midway."""
