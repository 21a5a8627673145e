"""Mimicking the teacher's feature map at one stage: what stage-by-stage distillation trains each stage on."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.maps import to_the_smaller
from potstill.methods.registry import register
from potstill.networks.features import Features, FeatureSpec, MapSpec

__all__ = ["Adapter", "Mimic", "mimic"]

Adapter = Literal["auto", "none", "conv", "conv_bn"]


def mimic(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    r"""The mean squared difference of two feature maps.

    .. math:: L = \frac{1}{b C H W} \sum_{i, c, h, w} (a(F^s)_{ichw} - F^t_{ichw})^2

    with a the student's adapter. The larger map is pooled adaptively to the smaller one's size. No gradient reaches
    the teacher.

    Args:
        student_map: ``(B, C, H, W)``, adapted to the teacher's channels, any floating dtype; computed in float32, or
            float64 where it is that.
        teacher_map: ``(B, C, H', W')``.

    Returns:
        A scalar, 0 or more.

    Raises:
        NetworkError: for another number of images or channels.

    Source: "An Embarrassingly Simple Approach for Knowledge Distillation" (arXiv 1812.01819, v2), which names the L2
    distance between the maps; the mean over all elements and the pooling are ours, as there is no published code.

    Example:
        >>> import torch
        >>> mimic(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
        tensor(1.)
    """
    if student_map.shape[:2] != teacher_map.shape[:2]:
        raise NetworkError(
            f"mimic compares maps of as many images and channels, but the student's is {tuple(student_map.shape)} and "
            f"the teacher's {tuple(teacher_map.shape)}; adapt the student's channels first."
        )
    return F.mse_loss(*to_the_smaller(student_map, teacher_map.detach()))


@register("mimic")
class Mimic(Method):
    """One stage's map against the teacher's at the same depth; ``procedure.name=stagewise`` trains one after another.

    Args:
        setting: both networks, with maps.
        stage: which map, counted from 0; negative numbers count from the last one.
        adapter: what brings the student's channels to the teacher's: a 1x1 convolution ("conv"), with a batch norm
            ("conv_bn"), nothing ("none"); "auto" takes "conv" where the channels differ and nothing where they are the
            same, as the paper's first version asks for features "without any processing". It never ships.

    Raises:
        NetworkError: networks without that stage, or of other channels without an adapter.
        RecipeError: for an unknown adapter, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(self, setting: Setting, *, stage: int = -1, adapter: Adapter = "auto") -> None:
        super().__init__()
        teacher = teacher_spec(setting, "mimic")
        kinds = ("auto", "none", "conv", "conv_bn")
        if adapter not in kinds:
            raise RecipeError(f"adapter is {adapter!r}; it is one of {', '.join(kinds)}.{nearest(str(adapter), kinds)}")
        own, other = _map(setting.student, stage, "student"), _map(teacher, stage, "teacher")
        if adapter == "none" and own.channels != other.channels:
            raise NetworkError(
                f"mimic with adapter=none compares the maps as they are, but {own.name} of the student has "
                f"{own.channels} channels and {other.name} of the teacher {other.channels}; take adapter=conv."
            )
        self.stage = stage
        self.adapter: nn.Module = nn.Identity()
        if adapter in ("conv", "conv_bn") or own.channels != other.channels:
            convolution = nn.Conv2d(own.channels, other.channels, 1)
            norm = [nn.BatchNorm2d(other.channels)] if adapter == "conv_bn" else []
            self.adapter = nn.Sequential(convolution, *norm)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The distance of the batch's maps."""
        adapted = self.adapter(student.maps[self.stage])
        return mimic(adapted, teacher_features(teacher, "mimic").maps[self.stage])


def _map(spec: FeatureSpec, stage: int, who: str) -> MapSpec:
    count = len(spec.maps)
    if not -count <= stage < count:
        raise NetworkError(
            f"mimic reads stage {stage}, and the {who} shows {count} maps; name its layers in {who}.taps.maps "
            "(`potstill taps` lists them), or take another stage."
        )
    return spec.maps[stage]
