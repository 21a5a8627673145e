"""Knowledge distillation by softened logits (Hinton et al.)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import check_shapes, common_classes
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["KD", "kd"]


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Divergence of the student's softened class probabilities from the teacher's.

    .. math:: L_{KD} = \frac{T^2}{b} \sum_{i=1}^{b} \sum_{c=1}^{C} p^t_{ic} (\log p^t_{ic} - \log p^s_{ic}),
              \qquad p = \operatorname{softmax}(z / T)

    The factor T² keeps the gradient's scale whatever the temperature is. Summed over classes, averaged over the
    batch. No gradient reaches the teacher.

    Args:
        student_logits: ``(B, C)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_logits: ``(B, C)``.
        temperature: T > 0; 4 on CIFAR-100.

    Returns:
        A scalar.

    Raises:
        NetworkError: for logits of two shapes.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531),
    section 2. The same value as in RepDistiller's and PEFD's code.

    Example:
        >>> import torch
        >>> kd(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), temperature=4.0)
        tensor(1.7751)
    """
    check_shapes(student_logits, teacher_logits, "kd")
    log_p_s = F.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    log_p_t = F.log_softmax(full_precision(teacher_logits.detach()) / temperature, dim=-1)
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1).mean() * temperature**2


@register("kd")
class KD(Method):
    """Softened logits as an objective's term; the common CIFAR recipe is 0.1 ce + 0.9 kd.

    Args:
        setting: both networks, with the same classes.
        temperature: T > 0; 4 on CIFAR-100, 1 to 4 on ImageNet.
        projector: put a trainable ``Linear(C -> C)`` on the student's logits before they are compared ("kd1proj" in
            PEFD's code, made for arXiv 2310.17183); cross entropy and predictions keep the logits as they are.

    Raises:
        NetworkError: where the classes differ or a network has none.
        RecipeError: for a temperature that is not positive, or no teacher.
    """

    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits"}))

    def __init__(self, setting: Setting, *, temperature: float = 4.0, projector: bool = False) -> None:
        super().__init__()
        classes = common_classes(setting, "kd")
        if not (math.isfinite(temperature) and temperature > 0):
            raise RecipeError(f"temperature is {temperature}; expected a positive number, such as 4.")
        self.temperature = temperature
        self.projector = nn.Linear(classes, classes) if projector else None

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The divergence of the batch's logits."""
        logits = student.logits if self.projector is None else self.projector(student.logits)
        return kd(logits, teacher_features(teacher, "kd").logits, self.temperature)
