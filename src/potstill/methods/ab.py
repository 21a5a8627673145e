"""Activation boundaries: the student's neurons shall be on where the teacher's are (AB)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import Pairs, check_shapes, map_pairs
from potstill.methods.registry import register
from potstill.networks.features import Features, MapSpec

__all__ = ["AB", "ab"]


def ab(student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], margin: float = 1.0) -> Tensor:
    r"""How much the student's neurons lack to be on, by a margin, where the teacher's are, and off where they are off.

    .. math:: L_{AB} = \frac{3}{1000 \, b} \sum_{l=1}^{L} 2^{l - L} \sum_{i,c,h,w} \begin{cases}
              \max(0, m - s)^2 & t > 0 \\ \max(0, m + s)^2 & t \le 0 \end{cases}

    with s and t the values of layer l before the activation: of the teacher only the sign counts. No gradient reaches
    the teacher.

    Args:
        student_preacts: one a layer, shallowest first, each ``(B, C_l, H_l, W_l)``, connected to the teacher's
            shape; any floating dtype, computed in float32, or float64 where it is that.
        teacher_preacts: as many, of the same shapes.
        margin: m > 0; 1 in the authors' code.

    Returns:
        A scalar: over a layer's neurons a sum, over the batch a mean.

    Raises:
        NetworkError: for other numbers of layers, none, or maps of two shapes.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
    2019 (arXiv 1811.03233); ``distiller_zoo/AB.py`` and ``helper/pretrain.py`` of RepDistiller, whose factor 3 / 1000
    and weights ``2^(l - L)`` these are.

    Example:
        >>> ab([torch.full((1, 1, 10, 10), -1.0)], [torch.ones(1, 1, 10, 10)])
        tensor(1.2000)
    """
    if not student_preacts or len(student_preacts) != len(teacher_preacts):
        raise NetworkError(
            f"ab compares layer by layer, but the student has {len(student_preacts)} and the teacher "
            f"{len(teacher_preacts)}; give both the same number, 1 or more."
        )
    losses = []
    for depth, (s, t) in enumerate(zip(student_preacts, teacher_preacts, strict=True), start=1):
        check_shapes(s, t, "ab", "maps")
        s = full_precision(s)
        missing = F.relu(torch.where(t.detach() > 0, margin - s, margin + s))
        losses.append(2.0 ** (depth - len(student_preacts)) * missing.square().sum() / len(s))
    return torch.stack(losses).sum() * 3 / 1000


@register("ab")
class AB(Method):
    """Activation boundaries of all stages; as published the only term of a first stage of training, without labels.

    Where a pair of maps differs in channels or size, a convolution and a batch norm lead from the student's to the
    teacher's; they train with the student and never ship.

    Args:
        setting: both networks, with feature maps before their activations; the sizes of a pair are equal, or one is
            twice the other.
        layers: pairs of the student's and the teacher's maps, counted from 0, the stem; None pairs the ends of all
            stages in their order.
        margin: m > 0; 1 in the authors' code.

    Raises:
        NetworkError: where the networks have different numbers of maps and no pairs are named, or sizes do not fit.
        RecipeError: for pairs that there are not, a margin that is not positive, or no teacher.
    """

    needs = Needs(student=frozenset({"preacts"}), teacher=frozenset({"preacts"}))

    def __init__(self, setting: Setting, *, layers: Pairs | None = None, margin: float = 1.0) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "ab")
        if not (math.isfinite(margin) and margin > 0):
            raise RecipeError(f"margin of ab is {margin}; expected a positive number, such as 1.")
        self.margin = margin
        self.pairs = map_pairs(setting, layers, "ab")
        self.connectors = nn.ModuleList(_connector(setting.student.maps[s], teacher.maps[t]) for s, t in self.pairs)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps before their activations."""
        preacts = teacher_features(teacher, "ab").preacts
        connected = [connect(student.preacts[s]) for connect, (s, _) in zip(self.connectors, self.pairs, strict=True)]
        return ab(connected, [preacts[t] for _, t in self.pairs], self.margin)


def _connector(student: MapSpec, teacher: MapSpec) -> nn.Module:
    """From the student's channels and size to the teacher's; nothing where they are the same."""
    if (student.channels, student.stride) == (teacher.channels, teacher.stride):
        return nn.Identity()
    convolution: nn.Module
    if student.stride == teacher.stride:
        convolution = nn.Conv2d(student.channels, teacher.channels, 1)
    elif 2 * student.stride == teacher.stride:
        convolution = nn.Conv2d(student.channels, teacher.channels, 3, stride=2, padding=1)
    elif student.stride == 2 * teacher.stride:
        convolution = nn.ConvTranspose2d(student.channels, teacher.channels, 4, stride=2, padding=1)
    else:
        raise NetworkError(
            f"ab connects maps of one size, or of twice or half of it, but one pixel of the student's {student.name} "
            f"covers {student.stride} of the image's and one of the teacher's {teacher.name} {teacher.stride}; pair "
            "others in ab's layers."
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher.channels))
