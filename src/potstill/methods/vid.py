"""Variational information distillation: the teacher's maps as Gaussians around what the student predicts (VID)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.maps import to_the_smaller
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import Pairs, check_shapes, map_pairs
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["VID", "VariationalLayer", "vid"]


def vid(predicted: Tensor, teacher_map: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Negative log-likelihood of a teacher's map under Gaussians that the student predicts, one variance a channel.

    .. math:: L_{VID} = \frac{1}{b C H W} \sum_{i,c,h,w} \frac{1}{2} \Big[
              \frac{(\mu_{ichw} - t_{ichw})^2}{v_c} + \log v_c \Big], \qquad v_c = \log(1 + e^{a_c}) + \epsilon

    The smaller it is, the more of the teacher's map the student's tells: up to constants its negative is a lower
    bound of their mutual information. The constant ``log(2 pi) / 2`` is left out, and the loss may be negative. No
    gradient reaches the teacher.

    Args:
        predicted: mu, ``(B, C, H, W)``, computed from the student's map; any floating dtype, computed in float32, or
            float64 where it is that.
        teacher_map: t, ``(B, C, H, W)``.
        log_scale: a, ``(C,)``, trainable.
        eps: the least variance; 1e-5 in the authors' code.

    Returns:
        A scalar.

    Raises:
        NetworkError: for maps of two shapes.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019 (arXiv 1904.05835);
    ``distiller_zoo/VID.py`` of RepDistiller, from the authors' code. That code writes the softplus as
    ``log(1 + exp(a))``, which is infinite for large a; the values are the same.

    Example:
        >>> vid(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.zeros(1))
        tensor(0.5381)
    """
    check_shapes(predicted, teacher_map, "vid", "maps")
    variance = (F.softplus(full_precision(log_scale)) + eps).view(-1, 1, 1)
    error = full_precision(predicted) - full_precision(teacher_map.detach())
    return 0.5 * (error.square() / variance + variance.log()).mean()


class VariationalLayer(nn.Module):
    """Predicts one of the teacher's maps from one of the student's: three 1 x 1 convolutions with ReLUs between.

    Args:
        student_channels: of the student's map.
        teacher_channels: of the teacher's, and of the two hidden maps.
        variance: of every channel before training.
        eps: the least variance.
    """

    def __init__(self, student_channels: int, teacher_channels: int, variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        # The softplus turned round; log(expm1(v)) would be infinite for a large variance.
        start = variance - eps + math.log(-math.expm1(eps - variance))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """:func:`vid` of the prediction; the larger map is average-pooled to the smaller one's height and width."""
        student_map, teacher_map = to_the_smaller(student_map, teacher_map)
        return vid(self.regressor(student_map), teacher_map, self.log_scale, self.eps)


@register("vid")
class VID(Method):
    """The likelihoods of the teacher's maps, summed over the stages; RepDistiller's objective is ce + vid.

    The predicting layers train with the student and never ship.

    Args:
        setting: both networks, with feature maps.
        layers: pairs of the student's and the teacher's maps, counted from 0, the stem; None pairs the ends of all
            stages in their order.
        variance: of every channel before training, above 1e-5; the authors' code has 5.

    Raises:
        NetworkError: where the networks have different numbers of maps and no pairs are named.
        RecipeError: for pairs that there are not, a variance that is not positive, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(self, setting: Setting, *, layers: Pairs | None = None, variance: float = 5.0) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "vid")
        if not (math.isfinite(variance) and variance > 1e-5):
            raise RecipeError(f"variance of vid is {variance}; expected a number above 0.00001, such as 5.")
        self.pairs = map_pairs(setting, layers, "vid")
        self.layers = nn.ModuleList(
            VariationalLayer(setting.student.maps[s].channels, teacher.maps[t].channels, variance)
            for s, t in self.pairs
        )

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The sum of the layers' losses."""
        maps = teacher_features(teacher, "vid").maps
        losses = [layer(student.maps[s], maps[t]) for layer, (s, t) in zip(self.layers, self.pairs, strict=True)]
        return torch.stack(losses).sum()
