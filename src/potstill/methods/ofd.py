"""Overhaul of feature distillation (OFD): maps before the ReLU, with a margin for what the teacher keeps silent."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.methods.stages import deepest, paired_stages, pooled
from potstill.networks.features import Features

__all__ = ["OFD", "ofd", "ofd_margin"]


def ofd(projected: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    r"""Partial squared error of maps before their ReLU, summed over pixels and channels.

    .. math:: L_{OFD} = \frac{1}{b} \sum_{l=1}^{L} 2^{l-L} \sum (x_l - t'_l)^2 \, [x_l > t'_l \text{ or } t'_l > 0],
              \qquad t' = \max(t, m)

    Where the teacher's unit is off (t <= 0), how far below zero it is does not matter: the student need only stay
    below the margin. A teacher's map of another size is averaged (or repeated) to the student's. No gradient reaches
    the teacher.

    Args:
        projected: of each level, the shallowest first, the connector's output x, ``(B, C_l, H_l, W_l)`` with the
            teacher's C_l, any floating dtype; computed in float32, or float64 where it is that.
        teacher: of each level t, ``(B, C_l, h_l, w_l)``, before the ReLU.
        margins: of each level m, ``(C_l,)``; see :func:`ofd_margin`.

    Returns:
        A scalar: a sum over all elements, the mean over the batch. It is large (10^3 and more), and so the authors'
        weight is 1e-3 on CIFAR-100 and 1e-4 on ImageNet.

    Raises:
        NetworkError: for different numbers of levels, or of channels.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019 (arXiv 1904.01866), section 3;
    the authors' ``distillation_loss`` (clovaai/overhaul-distillation, CIFAR-100/distiller.py), with its loss and
    gradients. That code wants equal sizes; the pooling of the teacher's map is mdistiller's.

    Example:
        >>> x, t = torch.tensor([[[[3.0]], [[-5.0]], [[0.5]]]]), torch.tensor([[[[1.0]], [[-2.0]], [[-2.0]]]])
        >>> ofd([x], [t], [torch.full((3,), -0.5)])  # (3 - 1)^2, below the margin, (0.5 + 0.5)^2
        tensor(5.)
    """
    got, expected = [tuple(x.shape[:2]) for x in projected], [tuple(t.shape[:2]) for t in teacher]
    if got != expected or [c for _, c in expected] != [len(m) for m in margins]:
        raise NetworkError(
            f"ofd compares maps of the same levels and channels, but the student's (B, C) are {got}, the teacher's "
            f"{expected}, and the margins are of {[len(m) for m in margins]} channels."
        )
    losses = [
        _level(full_precision(x), full_precision(t.detach()), m) * 2.0 ** (level + 1 - len(got))
        for level, (x, t, m) in enumerate(zip(projected, teacher, margins, strict=True))
    ]
    return torch.stack(losses).sum() / len(projected[0])


def _level(x: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    target = torch.maximum(pooled(teacher, x.shape[-2:]), margin.detach().to(x.dtype)[:, None, None])
    difference = x - target
    return difference.masked_fill((difference < 0) & (target <= 0), 0.0).square().sum()


def ofd_margin(weight: Tensor, bias: Tensor) -> Tensor:
    r"""What a unit that a ReLU switches off is on average, before it: E[x | x < 0] for x ~ N(bias, weight²).

    .. math:: m = \beta - |\gamma| \, \frac{\varphi(\beta / \gamma)}{\Phi(-\beta / |\gamma|)}

    and -3|gamma| where the unit is off with a probability of at most 0.001.

    Args:
        weight: gamma of the teacher's batch norm, ``(C,)``.
        bias: its beta, ``(C,)``.

    Returns:
        ``(C,)`` float32, none above 0; computed in float64.

    Source: as :func:`ofd`; the authors' ``get_margin_from_BN``. There a gamma of zero
    divides by zero; here it is the limit: beta where that is negative, else 0.

    Example:
        >>> ofd_margin(torch.tensor([1.0, -2.0, 1.0]), torch.tensor([0.0, 0.0, 4.0]))
        tensor([-0.7979, -1.5958, -3.0000])
    """
    spread, centre = weight.detach().double().abs(), bias.detach().double()
    z = centre / spread.clamp_min(torch.finfo(torch.float64).tiny)
    off = torch.special.ndtr(-z)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    rare = off <= 0.001
    return torch.where(rare, -3 * spread, centre - spread * density / off.masked_fill(rare, 1.0)).float()


@register("ofd")
class OFD(Method):
    """The overhaul as an objective's term; ce + 0.001 ofd on CIFAR-100, ce + 0.0001 ofd on ImageNet.

    Reads both networks' maps before their last activation, the student's through a 1x1 convolution and batch norm
    (the connector) that train with the student and never ship.

    Args:
        setting: both networks; ``norms`` has the affine of the batch norm behind each of the teacher's maps.
        levels: how many of the deepest stages; 0 for all behind the stem (of the network with fewer, as mdistiller).

    Raises:
        NetworkError: where a network shows fewer maps than levels, or no batch norm stands behind a teacher's map.
        RecipeError: for levels that are none, or no teacher.

    Source: as :func:`ofd`. The authors (and mdistiller) run the teacher with the batch's statistics, which drift; here
    it is in evaluation mode, as in every method.
    """

    needs = Needs(student=frozenset({"preacts"}), teacher=frozenset({"preacts"}))

    def __init__(self, setting: Setting, *, levels: int = 0) -> None:
        super().__init__()
        of_student, of_teacher = paired_stages(setting, levels, "ofd")
        norms = ((None,) * len(of_teacher) + setting.norms)[-len(of_teacher) :]
        self.connectors = nn.ModuleList()
        for level, (own, target, norm) in enumerate(zip(of_student, of_teacher, norms, strict=True)):
            if norm is None:
                raise NetworkError(
                    "ofd reads its margins off the batch norm before a teacher's activation, and there is none at "
                    f"{target.name}. Take a teacher with a batch norm there, such as a ResNet, or another method."
                )
            convolution = nn.Conv2d(own.channels, target.channels, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(target.channels)))
            self.register_buffer(f"margin_{level}", ofd_margin(*norm), persistent=False)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        count = len(self.connectors)
        maps = deepest(student.preacts, count, "ofd", "the student's preacts")
        targets = deepest(teacher_features(teacher, "ofd").preacts, count, "ofd", "the teacher's preacts")
        projected = [connector(x) for connector, x in zip(self.connectors, maps, strict=True)]
        return ofd(projected, targets, [self.get_buffer(f"margin_{level}") for level in range(count)])
