"""What the methods share that pull a student's embedding towards the teacher's mean embedding of its class."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Known, Method, Setting
from potstill.methods.inputs import teacher_spec
from potstill.methods.numerics import full_precision, unit
from potstill.networks.features import Features

__all__ = ["EmbeddingHead", "Head", "HeadInit", "TowardsMeans", "check_lengths", "class_directions"]

Head = bool | Literal["auto"]
HeadInit = Literal["default", "normal"]


def class_directions(class_means: Tensor, targets: Tensor, eps: float = 1e-12) -> Tensor:
    r"""The direction that each image's embedding is to take.

    .. math:: e_i = c_{y_i} / \lVert c_{y_i} \rVert, \qquad e_i = \sum_k y_{ik} \, c_k / \lVert c_k \rVert

    for a class number and for class probabilities. A mixture of unit vectors is shorter than 1; with it a loss that is
    linear in the direction is the mixture of the classes' losses, which is what a soft target means elsewhere too.

    Args:
        class_means: c, ``(C, D)``; no gradient reaches them.
        targets: ``(B,)`` integers below C, or ``(B, C)`` floating probabilities.
        eps: a mean shorter than this has no direction: its row is zero.

    Returns:
        ``(B, D)``, float32, or float64 where the means are.

    Example:
        >>> class_directions(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([[0.5, 0.5]]))
        tensor([[0.5000, 0.5000]])
    """
    class_means = full_precision(class_means.detach())
    if targets.is_floating_point():
        return targets.to(class_means.dtype) @ unit(class_means, eps)
    return unit(class_means[targets], eps)


def check_lengths(method: str, student: Tensor, class_means: Tensor, targets: Tensor) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        NetworkError: where the embeddings and the means, or the probabilities and the means, differ in length.
    """
    if student.shape[-1] != class_means.shape[-1]:
        raise NetworkError(
            f"{method} compares embeddings with class means of one length, but the student's are "
            f"{tuple(student.shape)} and the means {tuple(class_means.shape)}; map the student's first."
        )
    if targets.is_floating_point() and targets.shape[-1] != len(class_means):
        raise NetworkError(
            f"{method} has means of {len(class_means)} classes, but the targets are probabilities of "
            f"{targets.shape[-1]}; collect the means on data of the same classes."
        )


class EmbeddingHead(nn.Sequential):
    """``BatchNorm1d(d) -> Dropout -> Linear(d, m)``: what brings a student's embedding to the teacher's length.

    Args:
        student_dim: d.
        teacher_dim: m.
        dropout: in [0, 1).
        init: "default" draws the linear layer's weight as PyTorch does and starts its bias at 0 (the authors' CIFAR
            code); "normal" draws both from N(0, 0.01²) (their ImageNet code).

    Example:
        >>> EmbeddingHead(64, 256)(torch.randn(8, 64)).shape
        torch.Size([8, 256])
    """

    def __init__(self, student_dim: int, teacher_dim: int, dropout: float = 0.5, init: HeadInit = "default") -> None:
        linear = nn.Linear(student_dim, teacher_dim)
        if init == "normal":
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.normal_(linear.bias, std=0.01)
        else:
            nn.init.zeros_(linear.bias)
        super().__init__(nn.BatchNorm1d(student_dim), nn.Dropout(dropout), linear)

    def forward(self, embedding: Tensor) -> Tensor:
        """``(B, d)`` to ``(B, m)``.

        One image has no statistics. An epoch's last step may have no more, so it is normalised by the running ones.
        """
        norm = self[0]
        assert isinstance(norm, nn.BatchNorm1d)
        if self.training and len(embedding) == 1:
            embedding = F.batch_norm(
                embedding, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
            )
        else:
            embedding = norm(embedding)
        return self[2](self[1](embedding))


class TowardsMeans(Method):
    """A term that needs the teacher's class means, and a head where the embeddings differ in length.

    Attributes:
        head: brings the student's embedding to the teacher's length; None where it is compared as it is.
        class_means: ``(C, D)``, a buffer, zero until :meth:`prepare` fills it.
    """

    class_means: Tensor

    def __init__(self, setting: Setting, name: str, head: Head, dropout: float, init: HeadInit) -> None:
        super().__init__()
        student, teacher = setting.student, teacher_spec(setting, name)
        if not student.classes:
            raise NetworkError(
                f"{name} has a direction for each class, but this student has no classifier; give it classes."
            )
        if head not in (True, False, "auto"):
            raise RecipeError(f"head is {head!r}; it is auto, true or false.")
        differ = student.embedding_dim != teacher.embedding_dim
        if head is False and differ:
            raise NetworkError(
                f"{name} compares embeddings of one length, but the student's has {student.embedding_dim} values and "
                f"the teacher's {teacher.embedding_dim}; leave head at auto."
            )
        wanted = differ if head == "auto" else bool(head)
        _check_head(name, wanted, dropout, init, setting.batch_size)
        self.name = name
        self.head = EmbeddingHead(student.embedding_dim, teacher.embedding_dim, dropout, init) if wanted else None
        self.register_buffer("class_means", torch.zeros(student.classes, teacher.embedding_dim))
        self._prepared = False

    def prepare(self, known: Known) -> None:
        """Take in the class means.

        Raises:
            RecipeError: where there are none.
            NetworkError: for means of another shape, or that are no numbers.
        """
        means = known.class_means
        if means is None:
            raise RecipeError(
                f"{self.name} needs the teacher's mean embedding of each class, and nobody has collected them: give "
                "Known(class_means=...), which potstill.analysis.class_means collects."
            )
        if means.shape != self.class_means.shape:
            raise NetworkError(
                f"{self.name} expects class means of shape {tuple(self.class_means.shape)} (classes, the teacher's "
                f"length), but got {tuple(means.shape)}."
            )
        if not means.isfinite().all():
            raise NetworkError(f"The class means of {self.name} are not all finite; look at the teacher's embeddings.")
        self.class_means.copy_(means)
        self._prepared = True

    def means(self) -> Tensor:
        """The class means, once they are there.

        Raises:
            RecipeError: before :meth:`prepare`.
        """
        if not self._prepared:
            raise RecipeError(f"{self.name} has no class means yet: call prepare(Known(class_means=...)) first.")
        return self.class_means

    def brought(self, student: Features) -> Tensor:
        """The student's embedding at the teacher's length, ``(B, m)``."""
        return student.embedding if self.head is None else self.head(student.embedding)

    def targets(self, batch: Batch) -> Tensor:
        """The batch's targets, hard or soft."""
        if batch.targets is None:
            raise RecipeError(
                f"{self.name} learns from labels, and these images have none; take it out of the objective."
            )
        return batch.targets


def _check_head(name: str, wanted: bool, dropout: float, init: HeadInit, batch_size: int) -> None:
    if not 0 <= dropout < 1:
        raise RecipeError(f"dropout is {dropout}; expected a number from 0 to below 1, such as 0.5.")
    if init not in get_args(HeadInit):
        raise RecipeError(f"init is {init!r}; it is default or normal.{nearest(str(init), get_args(HeadInit))}")
    if not wanted and (dropout != 0.5 or init != "default"):
        raise RecipeError(
            f"dropout={dropout}, init={init} have no effect on {name}, which has no head here: both embeddings have "
            "one length. Leave them out, or give head=true."
        )
    if wanted and batch_size == 1:
        raise RecipeError(
            f"The head of {name} normalises over the batch, and batch_size is 1; give at least 2 images a step."
        )
