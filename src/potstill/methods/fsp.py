"""Flow of the solution procedure: how the student's layers lead to each other shall be as in the teacher (FSP)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.maps import to_the_smaller
from potstill.methods.pairs import Pairs, check_shapes, map_pairs
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["FSP", "flow", "fsp"]


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    r"""The flow between two layers of one network: the product of each pair of channels, averaged over positions.

    .. math:: G_{ac} = \frac{1}{HW} \sum_{h,w} \text{top}_{ahw} \, \text{bottom}_{chw}

    The larger map is averaged to the smaller one's height and width first.

    Args:
        bottom: ``(B, C, H, W)``, any floating dtype; computed in float32, or float64 where it is that.
        top: ``(B, C', H', W')``, of a deeper layer.

    Returns:
        ``(B, C', C)``

    Example:
        >>> flow(torch.ones(1, 2, 4, 4), torch.full((1, 1, 2, 2), 3.0))
        tensor([[[3., 3.]]])
    """
    bottom, top = (x.flatten(2) for x in to_the_smaller(bottom, top))
    return top @ bottom.mT / bottom.shape[-1]


def fsp(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    variant: Literal["code", "paper"] = "code",
) -> Tensor:
    r"""How much the flow from layer to layer differs in two networks, summed over consecutive layers.

    .. math:: L_{code} = \sum_l \frac{1}{b C_l C_{l+1}} \sum_{i=1}^{b} \lVert G^s_{il} - G^t_{il} \rVert_F^2,
              \qquad L_{paper} = \sum_l \frac{1}{b} \sum_{i=1}^{b} \lVert G^s_{il} - G^t_{il} \rVert_F^2

    with ``G_l`` the :func:`flow` from layer l to the next. The two networks' maps need not agree in height and width,
    but must in channels. No gradient reaches the teacher.

    Args:
        student_maps: 2 or more, shallowest first, each ``(B, C_l, H_l, W_l)``, any floating dtype; computed in
            float32, or float64 where it is that.
        teacher_maps: as many, of the same channels.
        variant: "code" takes the mean over a matrix's entries, "paper" their sum, in which wide layers count more.

    Returns:
        A scalar.

    Raises:
        NetworkError: for other numbers of layers, fewer than 2, or other channels.

    Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017; ``distiller_zoo/FSP.py`` of RepDistiller, whose mean is the default.

    Example:
        >>> one, two = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
        >>> fsp([one, two], [one, 3 * two]), fsp([one, two], [one, 3 * two], variant="paper")
        (tensor(4.), tensor(24.))
    """
    if len(student_maps) < 2 or len(student_maps) != len(teacher_maps):
        raise NetworkError(
            f"fsp compares the flow from layer to layer, but the student has {len(student_maps)} maps and the teacher "
            f"{len(teacher_maps)}; give both the same number, 2 or more."
        )
    losses = []
    for k in range(len(student_maps) - 1):
        ours, theirs = flow(*student_maps[k : k + 2]), flow(*(t.detach() for t in teacher_maps[k : k + 2]))
        check_shapes(ours, theirs, "fsp", "flow matrices")
        squares = (ours - theirs).square()
        losses.append(squares.mean() if variant == "code" else squares.sum((1, 2)).mean())
    return torch.stack(losses).sum()


@register("fsp")
class FSP(Method):
    """The flow through the whole network, from the stem on; as published the only term of a first stage of training.

    It trains nothing of its own and reads no labels.

    Args:
        setting: both networks, with feature maps of equal channels.
        layers: pairs of the student's and the teacher's maps, counted from 0, the stem, shallowest first; None takes
            all maps, the stem among them.
        variant: "code", the mean over a matrix's entries, or "paper", their sum (:func:`fsp`).

    Raises:
        NetworkError: where channels differ, or the networks have different numbers of maps and no pairs are named.
        RecipeError: for pairs that there are not, fewer than 2 of them, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(
        self, setting: Setting, *, layers: Pairs | None = None, variant: Literal["code", "paper"] = "code"
    ) -> None:
        super().__init__()
        ours, theirs = setting.student.maps, teacher_spec(setting, "fsp").maps
        if layers is None:
            if len(ours) != len(theirs) or len(ours) < 2:
                raise NetworkError(
                    f"fsp compares the flow from each map to the next, but the student has {len(ours)} maps and the "
                    f"teacher {len(theirs)}. Take networks of the same number, 2 or more, or name the pairs in fsp's "
                    "layers, for instance [[0, 0], [1, 2]]."
                )
            layers = tuple((k, k) for k in range(len(ours)))
        self.pairs = map_pairs(setting, layers, "fsp")
        if len(self.pairs) < 2:
            raise RecipeError(
                "layers of fsp names one pair; the flow leads from one map to another, so name 2 or more."
            )
        for s, t in self.pairs:
            if ours[s].channels != theirs[t].channels:
                raise NetworkError(
                    f"fsp compares products of channels, but the student's {ours[s].name} has {ours[s].channels} and "
                    f"the teacher's {theirs[t].name} {theirs[t].channels}. Take networks of equal widths, such as a "
                    "deeper and a shallower one of a family, or a method that does not mind, such as at."
                )
        self.variant: Literal["code", "paper"] = variant

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        maps = teacher_features(teacher, "fsp").maps
        return fsp([student.maps[s] for s, _ in self.pairs], [maps[t] for _, t in self.pairs], self.variant)
