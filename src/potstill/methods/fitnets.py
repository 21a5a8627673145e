"""Hints: a regressor on a map in the middle of the student shall give the teacher's (FitNets)."""

from typing import Literal

from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import check_shapes
from potstill.methods.registry import register
from potstill.networks.features import Features, MapSpec

__all__ = ["ConvRegressor", "FitNets", "hint"]


def hint(regressed: Tensor, teacher_map: Tensor) -> Tensor:
    r"""The mean squared difference of two maps.

    .. math:: L_{hint} = \frac{1}{b C H W} \sum_{i,c,h,w} (r(s)_{ichw} - t_{ichw})^2

    No gradient reaches the teacher.

    Args:
        regressed: r(s), ``(B, C, H, W)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_map: t, of the same shape.

    Returns:
        A scalar.

    Raises:
        NetworkError: for maps of two shapes.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), which takes half the sum
    of an image's squares: ``C H W / 2`` times this value. ``distiller_zoo/FitNet.py`` of RepDistiller.

    Example:
        >>> import torch
        >>> hint(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 2.0]]]]))
        tensor(1.5000)
    """
    check_shapes(regressed, teacher_map, "fitnets", "maps")
    return (full_precision(regressed) - full_precision(teacher_map.detach())).square().mean()


class ConvRegressor(nn.Module):
    """From one of the student's maps to the channels and the size of one of the teacher's.

    A convolution with bias, then a batch norm and a ReLU where they are asked for. Its kind follows from the strides:
    1 x 1 for maps of one size; 3 x 3 of stride 2 where the student's is twice as large; a transposed one, 4 x 4 of
    stride 2, where it is half as large; and with ``kernel`` given an unpadded one.

    Args:
        student: the student's map.
        teacher: the teacher's.
        kernel: k of an unpadded k x k convolution: ``1 + H_s - H_t`` for a student's map that is larger by no factor
            of 2, as in RepDistiller's code, and the only kind in the paper. None for what the strides ask for.
        activation: "relu" as in RepDistiller; "none" for a teacher's map that may be negative.
        norm: "batch" as in RepDistiller; "none".

    Raises:
        NetworkError: for sizes of another ratio than 1, 2 or 1/2 where no kernel is given.
        RecipeError: for a kernel below 1.

    Source: ``models/util.py`` of RepDistiller (ConvReg), which reads the sizes off a batch.

    Example:
        >>> import torch
        >>> regressor = ConvRegressor(MapSpec("layer2", 64, stride=1), MapSpec("layer2", 256, stride=2))
        >>> regressor(torch.randn(2, 64, 32, 32)).shape
        torch.Size([2, 256, 16, 16])
    """

    def __init__(
        self,
        student: MapSpec,
        teacher: MapSpec,
        kernel: int | None = None,
        activation: Literal["relu", "none"] = "relu",
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        self.conv = _convolution(student, teacher, kernel)
        self.bn = nn.BatchNorm2d(teacher.channels) if norm == "batch" else nn.Identity()
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()

    def forward(self, student_map: Tensor) -> Tensor:
        """The regressed map, ``(B, C_t, H_t, W_t)``."""
        regressed: Tensor = self.activation(self.bn(self.conv(student_map)))
        return regressed


def _convolution(student: MapSpec, teacher: MapSpec, kernel: int | None) -> nn.Module:
    channels = (student.channels, teacher.channels)
    if kernel is not None:
        if kernel < 1:
            raise RecipeError(
                f"kernel of fitnets is {kernel}; expected 1 or more: 1 + the student's size - the teacher's."
            )
        return nn.Conv2d(*channels, kernel)
    if student.stride == teacher.stride:
        return nn.Conv2d(*channels, 1)
    if 2 * student.stride == teacher.stride:
        return nn.Conv2d(*channels, 3, stride=2, padding=1)
    if student.stride == 2 * teacher.stride:
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    raise NetworkError(
        f"fitnets leads to a map of the same size, half of it or twice it, but one pixel of the student's "
        f"{student.name} covers {student.stride} of the image's and one of the teacher's {teacher.name} "
        f"{teacher.stride}. Name other maps in layer and teacher_layer; or, where the student's is the larger, give "
        "kernel = 1 + its size - the teacher's."
    )


@register("fitnets")
class FitNets(Method):
    """A hint in the middle of the network; RepDistiller's objective is ce + 100 fitnets, trained jointly.

    It reads no labels and no logits: alone it is the paper's first stage, which trains the student up to the hint and
    the regressor. The regressor trains with the student and never ships.

    Args:
        setting: both networks, with feature maps.
        layer: of the student's maps, counted from 0, the stem; 2 is the end of the second stage, RepDistiller's.
        teacher_layer: of the teacher's maps; None for the same number.
        kernel: of an unpadded convolution, for maps whose sizes are no factor of 2 apart (:class:`ConvRegressor`).
        activation: after the regressor; "none" for a teacher's map that may be negative, like a linear bottleneck's
            or the raw ends of a Wide ResNet's blocks.
        norm: "batch" or "none" between the convolution and the activation; the paper has none.

    Raises:
        NetworkError: for a network that has no such map, and sizes that the regressor cannot lead to.
        RecipeError: for a kernel below 1, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(
        self,
        setting: Setting,
        *,
        layer: int = 2,
        teacher_layer: int | None = None,
        kernel: int | None = None,
        activation: Literal["relu", "none"] = "relu",
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "fitnets")
        self.layer = layer
        self.teacher_layer = layer if teacher_layer is None else teacher_layer
        ours = _at(setting.student.maps, self.layer, "layer", "student")
        theirs = _at(teacher.maps, self.teacher_layer, "teacher_layer", "teacher")
        self.regressor = ConvRegressor(ours, theirs, kernel, activation, norm)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps."""
        target = teacher_features(teacher, "fitnets").maps[self.teacher_layer]
        return hint(self.regressor(student.maps[self.layer]), target)


def _at(maps: tuple[MapSpec, ...], index: int, argument: str, network: str) -> MapSpec:
    if not 0 <= index < len(maps):
        names = f" ({', '.join(m.name for m in maps)})" if maps else ""
        raise NetworkError(
            f"fitnets reads the {network}'s map {index}, counted from 0, but it shows {len(maps)}{names}. Set "
            f"{argument} to one of them, or name the layer in {network}.taps.maps."
        )
    return maps[index]
