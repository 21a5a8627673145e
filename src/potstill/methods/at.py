"""Attention transfer: the student's maps shall be active where the teacher's are (AT)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.maps import to_the_smaller
from potstill.methods.numerics import full_precision, unit
from potstill.methods.pairs import Pairs, map_pairs
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["AT", "at", "attention"]


def attention(maps: Tensor, p: float = 2.0) -> Tensor:
    r"""Where a map is active, as a unit vector over its positions; zero for a map that is zero.

    .. math:: Q(F) = v / \lVert v \rVert_2, \qquad v_{hw} = \frac{1}{C} \sum_{c=1}^{C} |F_{chw}|^p

    Args:
        maps: ``(B, C, H, W)``, any floating dtype; computed in float32, or float64 where it is that.
        p: 1 or more; the larger, the more the strongest channels count.

    Returns:
        ``(B, H * W)``

    Example:
        >>> attention(torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]]))
        tensor([[0.4472, 0.8944]])
    """
    maps = full_precision(maps)
    strength = maps.square() if p == 2 else maps.abs().pow(p)
    return unit(strength.mean(1).flatten(1))


def at(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    p: float = 2.0,
    variant: Literal["code", "paper"] = "code",
) -> Tensor:
    r"""How much the student's attention differs from the teacher's, summed over the layers.

    .. math:: L_{code} = \sum_l \frac{1}{b H_l W_l} \sum_{i=1}^{b} \lVert Q(s_{il}) - Q(t_{il}) \rVert_2^2,
              \qquad L_{paper} = \sum_l \frac{1}{b} \sum_{i=1}^{b} \lVert Q(s_{il}) - Q(t_{il}) \rVert_2

    with Q of :func:`attention`. The larger map of a pair is averaged to the smaller one's height and width before its
    values are raised to p. The channels of the two need not agree. No gradient reaches the teacher.

    Args:
        student_maps: one a layer, each ``(B, C, H, W)``, any floating dtype; computed in float32, or float64 where it
            is that.
        teacher_maps: as many, each ``(B, C', H', W')``.
        p: 1 or more; 2 in the published code.
        variant: "code" takes the mean over positions of the squares, so that its scale falls with the size of the
            maps; "paper" the norm of the difference, without its factor 1/2, which is the weight's.

    Returns:
        A scalar.

    Raises:
        NetworkError: for other numbers of layers, or none.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), activation-
    based attention; ``distiller_zoo/AT.py`` of RepDistiller, which mdistiller agrees with. The weights in use, 1000
    and the like, belong to "code", which is the default for that. That code compares heights only, as of square maps.

    Example:
        >>> row, column = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
        >>> at([row], [column]), at([row], [column], variant="paper")
        (tensor(0.2500), tensor(1.0000))
    """
    if not student_maps or len(student_maps) != len(teacher_maps):
        raise NetworkError(
            f"at compares layer by layer, but the student has {len(student_maps)} maps and the teacher "
            f"{len(teacher_maps)}; give both the same number, 1 or more."
        )
    losses = []
    for pair in zip(student_maps, teacher_maps, strict=True):
        s, t = to_the_smaller(*pair)
        difference = attention(s, p) - attention(t.detach(), p)
        squares = variant == "code"
        losses.append(difference.square().mean() if squares else torch.linalg.vector_norm(difference, dim=1).mean())
    return torch.stack(losses).sum()


@register("at")
class AT(Method):
    """Attention of all stages; RepDistiller's and mdistiller's objective is ce + 1000 at.

    It trains nothing of its own, and the networks need not agree in channels or sizes.

    Args:
        setting: both networks, with feature maps.
        p: what the values are raised to, 1 or more; 2 in the published code.
        layers: pairs of the student's and the teacher's maps, counted from 0, the stem; None pairs the ends of all
            stages in their order.
        variant: "code", the mean of squares, or "paper", the norm (:func:`at`).

    Raises:
        NetworkError: where the networks have different numbers of maps and no pairs are named.
        RecipeError: for pairs that there are not, a p below 1, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(
        self,
        setting: Setting,
        *,
        p: float = 2.0,
        layers: Pairs | None = None,
        variant: Literal["code", "paper"] = "code",
    ) -> None:
        super().__init__()
        self.pairs = map_pairs(setting, layers, "at")
        if not (math.isfinite(p) and p >= 1):
            raise RecipeError(f"p of at is {p}; expected a number of 1 or more, such as 2.")
        self.p = p
        self.variant: Literal["code", "paper"] = variant

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        maps = teacher_features(teacher, "at").maps
        ours, theirs = [student.maps[s] for s, _ in self.pairs], [maps[t] for _, t in self.pairs]
        return at(ours, theirs, self.p, self.variant)
