"""Decoupled knowledge distillation: the target's probability and the other classes apart (DKD)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import check_shapes, common_classes
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["DKD", "dkd"]


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""KD in two parts with weights of their own: how sure the label is, and how the other classes share the rest.

    .. math:: L_{DKD} = \frac{T^2}{b} \sum_{i=1}^{b} \alpha \, KL(b^t_i \Vert b^s_i) + \beta \, KL(q^t_i \Vert q^s_i)

    with y the label, ``b = (p_y, 1 - p_y)`` out of ``p = softmax(z / T)``, and q the softmax of ``z / T`` over the
    classes other than y. The first part is the paper's TCKD, the second its NCKD; KD itself is
    ``TCKD + (1 - p^t_y) NCKD``, so that it hardly passes on what a confident teacher knows of the other classes. No
    gradient reaches the teacher.

    Args:
        student_logits: ``(B, C)``, C at least 2, any floating dtype; computed in float32, or float64 where it is that.
        teacher_logits: ``(B, C)``.
        labels: y, ``(B,)`` int64. The parts are defined by one label, so mixtures are refused.
        alpha: weight of the label's part; 1 in the paper.
        beta: weight of the other classes' part; on CIFAR-100 8, 6 or 2 by pair, on ImageNet 0.5 or 2.
        temperature: T > 0; 4 on CIFAR-100, 1 on ImageNet.

    Returns:
        A scalar. ``beta=0`` leaves TCKD, ``alpha=0`` NCKD.

    Raises:
        NetworkError: for logits of two shapes, or a single class.
        RecipeError: for labels that are no class numbers.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679); the authors' code is
    ``mdistiller/distillers/DKD.py``. That code takes the logarithm of the student's ``p_y`` and ``1 - p_y``
    after the softmax, which is infinite in float32 where logits differ by some hundreds, and leaves the label out of q
    by subtracting 1000 from its logit, which float16 cannot do. Here both are logarithms throughout; where that code
    gives numbers they are the same.

    Example:
        >>> dkd(torch.zeros(1, 3), torch.tensor([[8.0, 4.0, 0.0]]), torch.tensor([0]), beta=2.0)
        tensor(7.2154)
    """
    check_shapes(student_logits, teacher_logits, "dkd")
    if student_logits.shape[-1] < 2:
        raise NetworkError("dkd compares the classes beside the label's, but there is 1 class; take a teacher of more.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise RecipeError(
            f"dkd needs one class number an image, but the targets are {tuple(labels.shape)} of {labels.dtype}: mixup "
            "and CutMix give mixtures of two labels. Take out data.mixup and data.cutmix, or take kd."
        )
    odds_s, others_s, _ = _decoupled(student_logits, labels, temperature)
    odds_t, others_t, label = _decoupled(teacher_logits.detach(), labels, temperature)
    surprise = F.logsigmoid(odds_t) - F.logsigmoid(odds_s)
    relief = F.logsigmoid(-odds_t) - F.logsigmoid(-odds_s)
    target = odds_t.sigmoid() * surprise + (-odds_t).sigmoid() * relief
    q_t = others_t.masked_fill(label, -math.inf).exp()
    rest = (q_t * (others_t - others_s)).sum(-1)
    return temperature**2 * (alpha * target + beta * rest).mean()


def _decoupled(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The label's log odds ``(B,)``, log q ``(B, C)``, which means nothing at the label, and the label's mask."""
    z = full_precision(logits) / temperature
    label = labels.unsqueeze(-1) == torch.arange(z.shape[-1], device=z.device)
    others = z.masked_fill(label, -math.inf).logsumexp(-1)
    odds = z.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - others
    return odds, z - others.unsqueeze(-1), label


@register("dkd")
class DKD(Method):
    """The two parts of KD as an objective's term; the authors' objective is ce + dkd with a warm-up of 20 epochs.

    Args:
        setting: both networks, with the same classes, two or more.
        alpha: weight of the label's part.
        beta: weight of the other classes' part; 8 for ResNet32x4 -> ResNet8x4, smaller for weaker teachers.
        temperature: T > 0; 4 on CIFAR-100, 1 on ImageNet.

    Raises:
        NetworkError: where the classes differ or there are fewer than two.
        RecipeError: for a negative weight, two zeros, a temperature that is not positive, or no teacher.
    """

    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits"}), labels=True)

    def __init__(self, setting: Setting, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        if common_classes(setting, "dkd") < 2:
            raise NetworkError("dkd compares the classes beside the label's, but both networks have 1 class; take ce.")
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(weight) and weight >= 0):
                raise RecipeError(f"{name} of dkd is {weight}; expected a number from 0, such as 1.")
        if alpha == beta == 0:
            raise RecipeError("alpha and beta of dkd are both 0, which does nothing; take dkd out.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise RecipeError(f"temperature of dkd is {temperature}; expected a positive number, such as 4.")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's logits and labels."""
        if batch.targets is None:
            raise RecipeError("dkd needs labels, and these images have none; take kd, which needs none.")
        others = teacher_features(teacher, "dkd").logits
        return dkd(student.logits, others, batch.targets, self.alpha, self.beta, self.temperature)
