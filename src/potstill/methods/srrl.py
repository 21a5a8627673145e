"""Softmax regression representation learning (SRRL)."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["SRRL", "srrl"]


def srrl(pooled: Tensor, teacher_embedding: Tensor, classifier: Tensor, regression: float = 1.0) -> Tensor:
    r"""How far the connected student is from the teacher's embedding, and from its logits by its own classifier.

    .. math:: L_{FM} = \frac{1}{b D} \sum_{i=1}^{b} \lVert \phi_i - t_i \rVert^2, \qquad
              L_{SR} = \frac{1}{b C} \sum_{i=1}^{b} \lVert W \phi_i - W t_i \rVert^2, \qquad
              L = L_{FM} + w L_{SR}

    The classifier's bias is in both logits and cancels out. Means over the batch and over D or C: with more classes
    L_SR does not grow. No gradient reaches the teacher or its classifier; through the classifier it flows.

    Args:
        pooled: phi, ``(B, D)`` with the teacher's D, the mean over places of the connector's map; any floating dtype,
            computed in float32, or float64 where it is that.
        teacher_embedding: t, ``(B, D)``.
        classifier: W, ``(C, D)``, the weight of the teacher's last layer.
        regression: w; 1 in the authors' code.

    Returns:
        A scalar, not below 0.

    Raises:
        NetworkError: for shapes that do not fit.

    Source: Yang, Martinez, Bulat and Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation
    Learning", ICLR 2021; ``jingyang2017/KD_SRRL``, whose values these are.

    Example:
        >>> import torch
        >>> srrl(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor(2.5000)
    """
    if pooled.shape != teacher_embedding.shape or classifier.ndim != 2 or classifier.shape[1] != pooled.shape[1]:
        raise NetworkError(
            f"srrl compares vectors of one shape by a classifier (C, D), but the student's are {tuple(pooled.shape)}, "
            f"the teacher's {tuple(teacher_embedding.shape)} and the classifier is {tuple(classifier.shape)}."
        )
    apart = full_precision(pooled) - full_precision(teacher_embedding.detach())
    regressed = F.linear(apart, classifier.detach().to(apart.dtype))
    return apart.square().mean() + regression * regressed.square().mean()


@register("srrl")
class SRRL(Method):
    """Feature matching and softmax regression through a connector; the paper's objective is ce + srrl.

    The connector is a 1x1 convolution without bias, a batch norm and a ReLU on the student's last map. It trains with
    the student and does not ship. The teacher's classifier is a constant. The teacher's classes need not be the data's.

    Args:
        setting: the student needs a map; the teacher's last layer must be linear and read its embedding.
        regression: weight of the softmax regression beside the feature matching; 1 in the authors' code.

    Raises:
        NetworkError: for a student without maps, or a teacher without such a last layer.
        RecipeError: for a regression that is no number from 0, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"embedding"}))
    classifier: Tensor

    def __init__(self, setting: Setting, *, regression: float = 1.0) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "srrl")
        if not (math.isfinite(regression) and regression >= 0):
            raise RecipeError(f"regression is {regression}; expected a number from 0, such as 1.")
        if not setting.student.maps:
            raise NetworkError("srrl reads the student's last feature map, and this student shows none; name its maps.")
        if setting.classifier is None:
            raise NetworkError(
                "srrl judges the student by the teacher's last layer, and this teacher has no linear one. Take a "
                "teacher with a linear classifier, or a method that compares embeddings, such as pefd."
            )
        weight, width = setting.classifier[0], teacher.embedding_dim
        if weight.shape[1] != width:
            raise NetworkError(
                f"srrl judges embeddings by the teacher's last layer, but that reads {weight.shape[1]} values and the "
                f"teacher's embedding has {width}. Take a teacher whose classifier reads its embedding."
            )
        self.regression = regression
        self.register_buffer("classifier", weight.detach().clone(), persistent=False)  # the teacher's, so not saved
        self.connector = nn.Sequential(
            nn.Conv2d(setting.student.maps[-1].channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        nn.init.normal_(_conv(self.connector).weight, std=math.sqrt(2 / width))

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the student's last map."""
        pooled = self.connector(student.maps[-1]).mean((2, 3))
        return srrl(pooled, teacher_features(teacher, "srrl").embedding, self.classifier, self.regression)


def _conv(connector: nn.Sequential) -> Any:
    return connector[0]
