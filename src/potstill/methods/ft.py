"""Factor transfer: the student's translated map shall be the teacher's paraphrased one (FT)."""

import math
from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.at import attention
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.maps import to_the_smaller
from potstill.methods.numerics import full_precision, unit
from potstill.methods.pairs import check_shapes
from potstill.methods.registry import register
from potstill.networks.features import Features, MapSpec

__all__ = ["FT", "Paraphraser", "Translator", "ft", "reconstruction"]


def ft(student_factor: Tensor, teacher_factor: Tensor, variant: Literal["code", "paper"] = "code") -> Tensor:
    r"""The mean absolute difference of two normalised factors.

    .. math:: L_{FT} = \frac{1}{b n} \sum_{i=1}^{b} \lVert Q(f^s_i) - Q(f^t_i) \rVert_1

    "code": Q is :func:`~potstill.methods.at.attention`, the mean square over channels as a unit vector of n = H W
    positions. "paper": Q is the whole factor as one unit vector of n = K H W values. The larger factor is averaged to
    the smaller one's height and width first; a factor that is zero stays zero. No gradient reaches the teacher.

    Args:
        student_factor: ``(B, K, H, W)``, of the translator; any floating dtype, computed in float32, or float64 where
            it is that.
        teacher_factor: ``(B, K, H', W')``, of the paraphraser's encoder.
        variant: which Q.

    Returns:
        A scalar.

    Raises:
        NetworkError: for factors of different channels.

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018
    (arXiv 1802.04977), whose norm sums over the n values: n times "paper". RepDistiller's code, whose table is the one
    quoted most, is "code" and the default.

    Example:
        >>> one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, -2.0]]]])
        >>> ft(one, other), ft(one, -one), ft(one, -one, variant="paper")
        (tensor(1.), tensor(0.), tensor(1.))
    """
    s, t = to_the_smaller(student_factor, teacher_factor.detach())
    check_shapes(s, t, "ft", "factors")
    if variant == "code":
        return (attention(s) - attention(t)).abs().mean()
    return (unit(s.flatten(1)) - unit(t.flatten(1))).abs().mean()


def reconstruction(rebuilt: Tensor, teacher_map: Tensor) -> Tensor:
    r"""What the paraphraser is trained on before the student is: the mean squared difference of two maps.

    .. math:: L_{rec} = \frac{1}{b C H W} \sum_{i,c,h,w} (\text{rebuilt}_{ichw} - t_{ichw})^2

    Args:
        rebuilt: ``(B, C, H, W)``, of the :class:`Paraphraser`; any floating dtype, computed in float32, or float64
            where it is that.
        teacher_map: t, of the same shape; takes no gradient.

    Raises:
        NetworkError: for maps of two shapes.

    Example:
        >>> reconstruction(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
        tensor(5.)
    """
    check_shapes(rebuilt, teacher_map, "ft", "maps")
    return (full_precision(rebuilt) - full_precision(teacher_map.detach())).square().mean()


def _layers(channels: list[int], kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], norm: bool) -> nn.Sequential:
    """3 x 3 convolutions that keep the size, each with a batch norm or none and a leaky ReLU, the last one too."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [kind(before, after, 3, padding=1), nn.BatchNorm2d(after) if norm else nn.Identity()]
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """The teacher's autoencoder: its encoder's output is the teacher's factor.

    Three 3 x 3 convolutions and three transposed ones, mirrored, each with a leaky ReLU of slope 0.1; no batch norm.
    ``forward`` rebuilds the map, ``(B, C, H, W)``; ``encoder`` gives the factor, ``(B, K, H, W)``.

    Args:
        channels: C of the teacher's map.
        factors: K.

    Example:
        >>> paraphraser = Paraphraser(channels=8, factors=4)
        >>> paraphraser.encoder(torch.randn(2, 8, 4, 4)).shape, paraphraser(torch.randn(2, 8, 4, 4)).shape
        (torch.Size([2, 4, 4, 4]), torch.Size([2, 8, 4, 4]))
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _layers([channels, channels, factors, factors], nn.Conv2d, norm=False)
        self.decoder = _layers([factors, factors, channels, channels], nn.ConvTranspose2d, norm=False)

    def forward(self, teacher_map: Tensor) -> Tensor:
        """The map rebuilt from its factor."""
        rebuilt: Tensor = self.decoder(self.encoder(teacher_map))
        return rebuilt


class Translator(nn.Module):
    """From the student's map to a factor: three 3 x 3 convolutions, each with a batch norm and a leaky ReLU of 0.1.

    Args:
        channels: of the student's map.
        factors: K.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _layers([channels, channels, factors, factors], nn.Conv2d, norm=True)

    def forward(self, student_map: Tensor) -> Tensor:
        """The student's factor, ``(B, K, H, W)``."""
        factor: Tensor = self.encoder(student_map)
        return factor


@register("ft")
class FT(Method):
    """Factor transfer of the last maps; RepDistiller's objective is ce + 200 ft.

    The paraphraser must be trained before, by :meth:`pretraining_loss`, which reads the teacher alone: open what
    ``pretrains`` names with ``requires_grad_(True)``, train it, close it again. Closed it takes no gradient, is in no
    optimiser and stays in evaluation mode whatever ``train`` says. It is saved with the rest of the method, and a
    resumed run has it. The translator trains with the student; neither ships.

    Args:
        setting: both networks, with feature maps.
        rate: K / C, the factor's channels as a part of the teacher's, rounded down; 0.5 in the published code.
        variant: "code", RepDistiller's attention of the factors, or "paper", the whole factors (:func:`ft`).

    Attributes:
        pretrains: the modules that :meth:`pretraining_loss` trains, by name.

    Raises:
        NetworkError: for a network without maps.
        RecipeError: for a rate that leaves no channel, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))
    pretrains: ClassVar[tuple[str, ...]] = ("paraphraser",)

    def __init__(self, setting: Setting, *, rate: float = 0.5, variant: Literal["code", "paper"] = "code") -> None:
        super().__init__()
        theirs = _last(teacher_spec(setting, "ft").maps, "teacher")
        ours = _last(setting.student.maps, "student")
        factors = int(rate * theirs.channels) if math.isfinite(rate) else 0
        if factors < 1:
            raise RecipeError(
                f"rate of ft is {rate}, which makes no factor of the teacher's {theirs.channels} channels; expected a "
                "number above 0, such as 0.5."
            )
        self.variant: Literal["code", "paper"] = variant
        self.paraphraser = Paraphraser(theirs.channels, factors).requires_grad_(False).eval()
        self.translator = Translator(ours.channels, factors)

    def train(self, mode: bool = True) -> Self:
        """As of any module; a paraphraser that is closed stays in evaluation mode."""
        super().train(mode)
        self.paraphraser.train(mode and any(p.requires_grad for p in self.paraphraser.parameters()))
        return self

    def pretraining_loss(self, teacher: Features) -> Tensor:
        """How well the paraphraser rebuilds the teacher's last map (:func:`reconstruction`)."""
        target = teacher.maps[-1].detach()
        return reconstruction(self.paraphraser(target), target)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's factors."""
        with torch.no_grad():
            factor = self.paraphraser.encoder(teacher_features(teacher, "ft").maps[-1])
        return ft(self.translator(student.maps[-1]), factor, self.variant)


def _last(maps: tuple[MapSpec, ...], network: str) -> MapSpec:
    if not maps:
        raise NetworkError(
            f"ft reads the last feature map, but the {network} shows none; name it in {network}.taps.maps."
        )
    return maps[-1]
