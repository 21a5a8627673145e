"""Neuron selectivity transfer: the student's channels shall be distributed as the teacher's are (NST)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.maps import to_the_smaller
from potstill.methods.numerics import unit
from potstill.methods.pairs import Pairs, map_pairs
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["NST", "nst"]


def nst(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    r"""The squared maximum mean discrepancy of the channels' patterns, summed over the layers.

    Each channel of a map, flattened and scaled to length 1, is one sample of a distribution over patterns:

    .. math:: L_{NST} = \sum_l \frac{1}{b} \sum_{i=1}^{b} \Big[ \overline{k(t_c, t_{c'})} + \overline{k(s_c, s_{c'})}
              - 2 \, \overline{k(s_c, t_{c'})} \Big], \qquad k(x, y) = \langle x, y \rangle^2

    where the bars are means over all pairs of channels. The larger map of a pair is averaged to the smaller one's
    height and width first. The channels of the two need not agree; one that is zero stays zero. No gradient reaches
    the teacher.

    Args:
        student_maps: one a layer, each ``(B, C, H, W)``, any floating dtype; computed in float32, or float64 where it
            is that.
        teacher_maps: as many, each ``(B, C', H', W')``.

    Returns:
        A scalar, 0 or more.

    Raises:
        NetworkError: for other numbers of layers, or none.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017 (arXiv
    1707.01219), with the polynomial kernel of d = 2, c = 0; ``distiller_zoo/NST.py`` of RepDistiller, which mdistiller
    agrees with. The same value, in a form that needs less memory: no products of channels position by position, and
    where a map has few positions none of channels either.

    Example:
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> nst([left], [right]), nst([left], [2 * left])
        (tensor(2.), tensor(0.))
    """
    if not student_maps or len(student_maps) != len(teacher_maps):
        raise NetworkError(
            f"nst compares layer by layer, but the student has {len(student_maps)} maps and the teacher "
            f"{len(teacher_maps)}; give both the same number, 1 or more."
        )
    losses = []
    for pair in zip(student_maps, teacher_maps, strict=True):
        s, t = to_the_smaller(*pair)
        losses.append(_discrepancy(unit(s.flatten(2)), unit(t.detach().flatten(2))))
    return torch.stack(losses).sum()


def _discrepancy(s: Tensor, t: Tensor) -> Tensor:
    """Of channels ``(B, C, P)`` and ``(B, C', P)``, each of length 1."""
    (ours, positions), theirs = s.shape[1:], t.shape[1]
    if 2 * positions**2 <= ours**2 + theirs**2 + ours * theirs:
        # <x, y>^2 is the product of the matrices x x' and y y', so the three means are one squared distance of two
        # mean matrices: the smaller form where positions are few, and no small difference of large numbers.
        return (s.mT @ s / ours - t.mT @ t / theirs).square().sum((1, 2)).mean()
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The mean of the squared products of all pairs of channels, over the batch."""
    return (x @ y.mT).square().mean()


@register("nst")
class NST(Method):
    """Neuron selectivity of all stages; RepDistiller's objective is ce + 50 nst.

    It trains nothing of its own, and the networks need not agree in channels or sizes.

    Args:
        setting: both networks, with feature maps.
        layers: pairs of the student's and the teacher's maps, counted from 0, the stem; None pairs the ends of all
            stages in their order.

    Raises:
        NetworkError: where the networks have different numbers of maps and no pairs are named.
        RecipeError: for pairs that there are not, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(self, setting: Setting, *, layers: Pairs | None = None) -> None:
        super().__init__()
        self.pairs = map_pairs(setting, layers, "nst")

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        maps = teacher_features(teacher, "nst").maps
        return nst([student.maps[s] for s, _ in self.pairs], [maps[t] for _, t in self.pairs])
