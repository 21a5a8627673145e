"""Mimicking the teacher's feature map at one stage: what stage-by-stage distillation trains each stage on."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.maps import to_the_smaller
from potstill.methods.registry import register
from potstill.networks.features import Features, MapSpec

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
        stage: which map, counted from 0; negative numbers count from the last one; "all" takes the mean over all, as a
            detector's pyramid is taken.
        adapter: what brings the student's channels to the teacher's: a 1x1 convolution ("conv"), with a batch norm
            ("conv_bn"), nothing ("none"); "auto" takes "conv" where the channels differ and nothing where they are the
            same, as the paper's first version asks for features "without any processing". It never ships.
        of: "maps", or "blocks": of a detector the ends of its backbone's stages.

    Raises:
        NetworkError: networks without that stage, or of other channels without an adapter.
        RecipeError: for an unknown adapter, another field, or no teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(
        self, setting: Setting, *, stage: int | Literal["all"] = -1, adapter: Adapter = "auto",
        of: Literal["maps", "blocks"] = "maps",
    ) -> None:  # fmt: skip
        super().__init__()
        teacher = teacher_spec(setting, "mimic")
        kinds = ("auto", "none", "conv", "conv_bn")
        if adapter not in kinds:
            raise RecipeError(f"adapter is {adapter!r}; it is one of {', '.join(kinds)}.{nearest(str(adapter), kinds)}")
        if of not in ("maps", "blocks"):
            raise RecipeError(f"of is {of!r}; mimic reads maps or blocks.")
        if stage != "all" and not isinstance(stage, int):
            raise RecipeError(f"stage is {stage!r}; it is a number, or all.")
        self.of = of
        self.needs = Needs(student=frozenset({of}), teacher=frozenset({of}))  # type: ignore[misc]
        ours, theirs = getattr(setting.student, of), getattr(teacher, of)
        if stage == "all" and (len(ours) != len(theirs) or not ours):
            raise NetworkError(
                f"mimic compares all {of}, but the student shows {len(ours)} and the teacher {len(theirs)} of them; "
                "name one stage, or take networks with as many."
            )
        self.stages = list(range(len(ours))) if stage == "all" else [stage]
        self.adapters = nn.ModuleList(
            _adapter(_map(ours, k, "student"), _map(theirs, k, "teacher"), adapter) for k in self.stages
        )

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The distance of the batch's maps, the mean over the stages."""
        ours: tuple[Tensor, ...] = getattr(student, self.of)
        theirs: tuple[Tensor, ...] = getattr(teacher_features(teacher, "mimic"), self.of)
        pairs = zip(self.stages, self.adapters, strict=True)
        return torch.stack([mimic(adapt(ours[k]), theirs[k]) for k, adapt in pairs]).mean()


def _adapter(own: MapSpec, other: MapSpec, adapter: Adapter) -> nn.Module:
    if adapter == "none" and own.channels != other.channels:
        raise NetworkError(
            f"mimic with adapter=none compares the maps as they are, but {own.name} of the student has "
            f"{own.channels} channels and {other.name} of the teacher {other.channels}; take adapter=conv."
        )
    if adapter not in ("conv", "conv_bn") and own.channels == other.channels:
        return nn.Identity()
    convolution = nn.Conv2d(own.channels, other.channels, 1)
    return nn.Sequential(convolution, *([nn.BatchNorm2d(other.channels)] if adapter == "conv_bn" else []))


def _map(maps: Sequence[MapSpec], stage: int, who: str) -> MapSpec:
    count = len(maps)
    if not -count <= stage < count:
        raise NetworkError(
            f"mimic reads stage {stage}, and the {who} shows {count} maps; name its layers in {who}.taps.maps "
            "(`potstill taps` lists them), or take another stage."
        )
    return maps[stage]
