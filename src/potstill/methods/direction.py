"""Direction alone: the student's embeddings towards the teacher's class means, by cosine or by InfoNCE."""

import math

import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Needs, Setting
from potstill.methods.numerics import unit
from potstill.methods.registry import register
from potstill.methods.towards_means import Head, HeadInit, TowardsMeans, check_lengths, class_directions
from potstill.networks.features import Features

__all__ = ["CosineMean", "InfoNCEMean", "cosine_mean", "infonce_mean"]


def cosine_mean(student_embedding: Tensor, class_means: Tensor, targets: Tensor, eps: float = 1e-12) -> Tensor:
    r"""One minus the mean cosine between the student's embeddings and their classes' means.

    .. math:: L = \frac{1}{b} \sum_{i=1}^{b} (1 - \cos(s_i, c_{y_i}))

    :func:`~potstill.methods.nd.nd` without the norm: the two agree where the student's embedding is the longer one.

    Args:
        student_embedding: s, ``(B, D)``, any floating dtype; computed in float32, or float64 where it is that.
        class_means: c, the teacher's, ``(C, D)``, not normalised; no gradient reaches them.
        targets: ``(B,)`` integers below C, or ``(B, C)`` probabilities: the same mixture of the classes' losses.
        eps: a vector shorter than this counts as zero: its cosine is 0 and so is its gradient.

    Returns:
        A scalar in [0, 2].

    Raises:
        NetworkError: for shapes that do not belong together.

    Source: Wang et al. (arXiv 2305.17007), explored there as the direction's part alone. The published code does not
    have it, and the paper's own equation was not at hand: this is the formula as its abstract words it.

    Example:
        >>> import torch
        >>> cosine_mean(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0]))
        tensor(1.)
    """
    check_lengths("cosine_mean", student_embedding, class_means, targets)
    return 1 - (unit(student_embedding, eps) * class_directions(class_means, targets, eps)).sum(-1).mean()


def infonce_mean(
    student_embedding: Tensor, class_means: Tensor, targets: Tensor, temperature: float = 0.1, eps: float = 1e-12
) -> Tensor:
    r"""Each embedding shall be nearer to its own class's mean than to the others'.

    .. math:: L = -\frac{1}{b} \sum_{i=1}^{b} \log
              \frac{\exp(\cos(s_i, c_{y_i}) / \tau)}{\sum_{k=1}^{C} \exp(\cos(s_i, c_k) / \tau)}

    Args:
        student_embedding: s, ``(B, D)``, any floating dtype; computed in float32, or float64 where it is that.
        class_means: c, the teacher's, ``(C, D)``; no gradient reaches them.
        targets: ``(B,)`` integers below C, or ``(B, C)`` probabilities, as in a cross entropy.
        temperature: tau > 0. No source for the paper's value was at hand; 0.1 is this project's.
        eps: a vector shorter than this counts as zero: its cosines are 0 and so is its gradient.

    Returns:
        A scalar.

    Raises:
        NetworkError: for shapes that do not belong together.

    Source: Wang et al. (arXiv 2305.17007), explored there against the cosine; not in the published code.

    Example:
        >>> import torch
        >>> infonce_mean(torch.tensor([[1.0, 1.0]]), torch.eye(2), torch.tensor([0]))
        tensor(0.6931)
    """
    check_lengths("infonce_mean", student_embedding, class_means, targets)
    s = unit(student_embedding, eps)
    cosines = s @ unit(class_means.detach(), eps).T.to(s.dtype)  # (B, C)
    if targets.is_floating_point():
        targets = targets.to(cosines.dtype)
    return F.cross_entropy(cosines / temperature, targets)


@register("cosine_mean")
class CosineMean(TowardsMeans):
    """The cosine to the class mean as an objective's term; no published weight.

    Reads the teacher only through its class means, so its forward pass is not needed while training.

    Args:
        setting: both networks; the student with a classifier.
        head: as in :class:`~potstill.methods.nd.ND`.
        dropout: of the head.
        init: of the head.

    Raises:
        NetworkError: for embeddings of two lengths without a head, or a student without classes.
        RecipeError: for a value out of range or without effect, a batch of one image with a head, or no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), labels=True, class_means=True)

    def __init__(
        self, setting: Setting, *, head: Head = "auto", dropout: float = 0.5, init: HeadInit = "default"
    ) -> None:
        super().__init__(setting, "cosine_mean", head, dropout, init)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings; the teacher's are not read."""
        return cosine_mean(self.brought(student), self.means(), self.targets(batch))


@register("infonce_mean")
class InfoNCEMean(TowardsMeans):
    """InfoNCE over the class means as an objective's term; no published weight.

    Reads the teacher only through its class means, so its forward pass is not needed while training.

    Args:
        setting: both networks; the student with a classifier.
        temperature: tau > 0.
        head: as in :class:`~potstill.methods.nd.ND`.
        dropout: of the head.
        init: of the head.

    Raises:
        NetworkError: for embeddings of two lengths without a head, or a student without classes.
        RecipeError: for a value out of range or without effect, a batch of one image with a head, or no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), labels=True, class_means=True)

    def __init__(
        self,
        setting: Setting,
        *,
        temperature: float = 0.1,
        head: Head = "auto",
        dropout: float = 0.5,
        init: HeadInit = "default",
    ) -> None:
        super().__init__(setting, "infonce_mean", head, dropout, init)
        if not (math.isfinite(temperature) and temperature > 0):
            raise RecipeError(f"temperature is {temperature}; expected a positive number, such as 0.1.")
        self.temperature = temperature

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings; the teacher's are not read."""
        return infonce_mean(self.brought(student), self.means(), self.targets(batch), self.temperature)
