"""Correlation of predictions instead of their equality (DIST)."""

import math

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import check_shapes, common_classes
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["DIST", "dist"]


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    eps: float = 1e-8,
) -> Tensor:
    r"""How badly the student's class probabilities correlate with the teacher's, by image and by class.

    .. math:: L_{DIST} = \tau^2 \Big[ \beta \Big( 1 - \frac{1}{b} \sum_{i=1}^{b} \rho(p^s_{i:}, p^t_{i:}) \Big)
              + \gamma \Big( 1 - \frac{1}{C} \sum_{c=1}^{C} \rho(p^s_{:c}, p^t_{:c}) \Big) \Big],
              \qquad p = \operatorname{softmax}(z / \tau)

    with Pearson's correlation, the cosine of two vectors less their means,
    ``rho(x, y) = <x', y'> / (|x'| |y'| + eps)``. The first part compares the classes of each image (the paper's
    inter-class relation), the second each class over the images of the batch (intra-class). Neither asks that the
    student be as sure as the teacher. No gradient reaches the teacher.

    Args:
        student_logits: ``(B, C)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_logits: ``(B, C)``.
        beta: weight of the part by image; 1 in the authors' code.
        gamma: weight of the part by class; 1 in the authors' code.
        temperature: tau > 0; 4 on CIFAR-100, 1 on ImageNet.
        eps: added to the product of the norms, as in the authors' code.

    Returns:
        A scalar in ``[0, 2 tau^2 (beta + gamma)]``. ``gamma=0`` leaves the part by image.

    Raises:
        NetworkError: for logits of two shapes.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536);
    ``lib/models/losses/dist_kd.py`` of hunto/image_classification_sota, whose values these are. One gradient
    differs: a row that is constant, as the first logits of a classifier that starts at zero, has the correlation 0 in
    both; there its gradient is about 1 / eps, some millions, here it is 0.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> dist(logits, logits, temperature=1.0).item() < 1e-6
        True
        >>> dist(-logits, logits, temperature=1.0)
        tensor(3.8374)
    """
    check_shapes(student_logits, teacher_logits, "dist")
    p_s = (full_precision(student_logits) / temperature).softmax(-1)
    p_t = (full_precision(teacher_logits.detach()) / temperature).softmax(-1)
    by_image = 1 - _correlation(p_s, p_t, eps).mean()
    by_class = 1 - _correlation(p_s.transpose(-1, -2), p_t.transpose(-1, -2), eps).mean()
    return temperature**2 * (beta * by_image + gamma * by_class)


def _correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Pearson's correlation of the last axes, 0 with gradient 0 where either is constant up to rounding."""
    x, y = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    # Measured against the vector itself: an unlikely class's column is short, and not constant for that.
    rounding = 10 * torch.finfo(a.dtype).eps
    constant = norm_x <= rounding * torch.linalg.vector_norm(a.detach(), dim=-1)
    constant |= norm_y <= rounding * torch.linalg.vector_norm(b, dim=-1)
    return torch.where(constant, 0.0, (x * y).sum(-1) / (norm_x * norm_y + eps))


@register("dist")
class DIST(Method):
    """Correlation of predictions as an objective's term; the authors' objective is ce + 2 dist.

    Needs no labels. The part by class compares the images of a batch: the more there are, the more it says.

    Args:
        setting: both networks, with the same classes.
        beta: weight of the part by image.
        gamma: weight of the part by class.
        temperature: tau > 0; 4 on CIFAR-100, 1 on ImageNet.

    Raises:
        NetworkError: where the classes differ or a network has none.
        RecipeError: for a negative weight, two zeros, a temperature that is not positive, batches of one image with a
            part by class, or no teacher.
    """

    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits"}))

    def __init__(self, setting: Setting, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        common_classes(setting, "dist")
        for name, weight in (("beta", beta), ("gamma", gamma)):
            if not (math.isfinite(weight) and weight >= 0):
                raise RecipeError(f"{name} of dist is {weight}; expected a number from 0, such as 1.")
        if beta == gamma == 0:
            raise RecipeError("beta and gamma of dist are both 0, which does nothing; take dist out.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise RecipeError(f"temperature of dist is {temperature}; expected a positive number, such as 4.")
        if gamma and setting.batch_size == 1:
            raise RecipeError(
                "dist correlates each class over the batch, but a batch has 1 image; take a batch_size of 2 or more, "
                "or gamma: 0."
            )
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's logits."""
        others = teacher_features(teacher, "dist").logits
        return dist(student.logits, others, self.beta, self.gamma, self.temperature)
