"""Cross entropy: what a network learns from labels."""

import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["CE", "ce"]


def ce(student_logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Cross entropy of the student's logits with hard or soft targets.

    .. math:: L_{CE} = -\frac{1}{b} \sum_{i=1}^{b} \sum_{c=1}^{C} y_{ic} \log \operatorname{softmax}(z_i)_c

    where y is one-hot, or a distribution, and label smoothing a replaces it by ``(1 - a) y + a / C``.

    Args:
        student_logits: ``(B, C)``, any floating dtype; computed in float32, or float64 where it is that.
        targets: ``(B,)`` int64 class numbers, or ``(B, C)`` class probabilities, as mixup and CutMix make them.
        label_smoothing: a, in [0, 1); 0 in the paper.

    Returns:
        A scalar, the mean over the batch.

    Example:
        >>> import torch
        >>> ce(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    logits = full_precision(student_logits)
    if targets.is_floating_point():
        targets = targets.to(logits.dtype)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


@register("ce")
class CE(Method):
    """Cross entropy with the labels, as an objective's term; reads no teacher.

    Args:
        setting: the student needs a classifier.
        label_smoothing: in [0, 1).

    Raises:
        NetworkError: for a student without a classifier.
        RecipeError: for a smoothing out of range.
    """

    needs = Needs(student=frozenset({"logits"}), labels=True)

    def __init__(self, setting: Setting, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not setting.student.classes:
            raise NetworkError("ce reads the student's logits, but this student has no classifier; give it classes.")
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing is {label_smoothing}; expected a number from 0 to below 1.")
        self.label_smoothing = label_smoothing

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The cross entropy of the batch; its targets may be hard or soft."""
        if batch.targets is None:
            raise RecipeError("ce learns from labels, and these images have none; take it out of the objective.")
        return ce(student.logits, batch.targets, self.label_smoothing)
