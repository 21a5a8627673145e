"""Distillation by knowledge review (ReviewKD): each teacher level teaches the student's level and all deeper ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.methods.stages import deepest, paired_stages, two_images
from potstill.networks.features import Features

__all__ = ["ReviewKD", "hcl"]


def hcl(projected: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    r"""Hierarchical context loss: squared errors of maps and of their averages over ever larger parts.

    .. math:: L_{HCL} = \sum_l \frac{\sum_k 2^{-k} \operatorname{mean}\, P_k(o_l - t_l)^2}{\sum_k 2^{-k}}

    with P_0 the map as it is and P_1, P_2, ... its averages over a grid of 4x4, 2x2 and 1x1 parts. A grid that is not
    finer than the map (its shorter side, where it is not square) is left out, and the next one takes its weight. No
    gradient reaches the teacher.

    Args:
        projected: of each level the student's fused map o, ``(B, C_l, H_l, W_l)``, any floating dtype; computed in
            float32, or float64 where it is that.
        teacher: of each level the teacher's t, of the same shape.

    Returns:
        A scalar, summed over levels.

    Raises:
        NetworkError: for different numbers of levels, or shapes.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044), section 3; the
    authors' ``hcl`` (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py), with its loss and gradients. That code
    pools both maps; pooling is linear, so here their difference is pooled, once.

    Example:
        >>> hcl([torch.ones(2, 3, 1, 1), torch.ones(2, 3, 8, 8)], [torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 8, 8)])
        tensor(2.)
    """
    got, expected = [tuple(o.shape) for o in projected], [tuple(t.shape) for t in teacher]
    if got != expected:
        raise NetworkError(f"hcl compares maps of one shape, but the student's are {got} and the teacher's {expected}.")
    losses = [_level(full_precision(o) - full_precision(t.detach())) for o, t in zip(projected, teacher, strict=True)]
    return torch.stack(losses).sum()


def _level(difference: Tensor) -> Tensor:
    sides = difference.shape[-2:]
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    source = difference
    for grid in (4, 2, 1):
        if grid >= min(sides):
            continue
        coarse = F.adaptive_avg_pool2d(source, grid)
        weight /= 2
        total += weight
        loss = loss + weight * coarse.square().mean()
        # Averages of equal parts can be averaged on; of overlapping ones (a side that is no multiple) they cannot.
        source = coarse if all(side % grid == 0 for side in sides) else difference
    return loss / total


class _Fusion(nn.Module):
    """One level's attention based fusion (ABF): of the student's map with what comes from the deeper levels."""

    def __init__(self, channels: int, width: int, target: int, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.expand = nn.Conv2d(width, target, 3, padding=1, bias=False)
        self.expand_norm = nn.BatchNorm2d(target)
        for convolution in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what the next shallower level gets; both of the teacher's size."""
        x = self.reduce_norm(self.reduce(maps))
        if self.attention is not None and deeper is not None:
            here, there = self.attention.weight.chunk(2, dim=1)
            # The maps side by side are never made: each half of the weight meets its own, the deeper one while small.
            scores = F.conv2d(x, here, self.attention.bias) + _enlarged(F.conv2d(deeper, there), x.shape[-2:])
            own, passed = scores.sigmoid().chunk(2, dim=1)
            x = torch.addcmul(x * own, _enlarged(deeper, x.shape[-2:]), passed)
        x = _enlarged(x, size)
        if size == (1, 1):  # of the 3x3 kernel only the middle ever meets anything but padding
            out = F.linear(x.flatten(1), self.expand.weight[:, :, 1, 1])[:, :, None, None]
        else:
            out = self.expand(x)
        return self.expand_norm(out), x


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """By repetition (nearest); of one pixel without a copy."""
    if maps.shape[-2:] == size:
        return maps
    return maps.expand(-1, -1, *size) if maps.shape[-2:] == (1, 1) else F.interpolate(maps, size)


@register("reviewkd")
class ReviewKD(Method):
    """Knowledge review as an objective's term; ce + 5 reviewkd on CIFAR-100, with a warm-up of 20 epochs.

    Of every stage's end and of the embedding, as a map of one pixel, the student's goes through an attention based
    fusion with all deeper ones (ABF) and is compared with the teacher's by :func:`hcl`. Where the sizes differ, the
    fused map is repeated to the teacher's. The fusion trains with the student and never ships.

    Args:
        setting: both networks.
        levels: how many of the deepest stages; 0 for all behind the stem (of the network with fewer).
        width: the most channels inside the fusion, which has as many as the student's embedding is long, but not more;
            the authors' 512, and 256 for MobileNet on ImageNet.
        student_preacts: read the student's maps before their last activation, as the authors do on ImageNet.
        embedding: compare the embeddings too, as maps of one pixel; False for detectors, whose embeddings are of
            regions. The fusion then has as many channels as the widest of the student's maps, but not more than width.

    Raises:
        NetworkError: where a network shows fewer maps than levels.
        RecipeError: for a width or levels that make no module, a batch of one image, or no teacher.

    Source: as :func:`hcl`. The authors' code tells the sizes by tables of square maps and looks
    at the width alone; here the maps tell, and may be of any shape. Its fusion lays both maps side by side at full
    size; here each meets its half of the weight, which is the same sum.
    """

    needs = Needs(student=frozenset({"maps", "embedding"}), teacher=frozenset({"preacts", "embedding"}))

    def __init__(
        self, setting: Setting, *, levels: int = 0, width: int = 512, student_preacts: bool = False,
        embedding: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        teacher = teacher_spec(setting, "reviewkd")
        if width < 1:
            raise RecipeError(f"width is {width}; expected the most channels inside the fusion, such as 512.")
        two_images(setting, "reviewkd")
        of_student, of_teacher = paired_stages(setting, levels, "reviewkd")
        channels, targets = [m.channels for m in of_student], [m.channels for m in of_teacher]
        inner = min(width, setting.student.embedding_dim if embedding else max(channels))
        if embedding:
            channels, targets = [*channels, setting.student.embedding_dim], [*targets, teacher.embedding_dim]
        self.fusions = nn.ModuleList(
            _Fusion(own, inner, target, fuses=level + 1 < len(channels))
            for level, (own, target) in enumerate(zip(channels, targets, strict=True))
        )
        self.student_preacts, self.embedding = student_preacts, embedding
        also = {"embedding"} if embedding else set()
        own = frozenset({"preacts" if student_preacts else "maps", *also})
        self.needs = Needs(student=own, teacher=frozenset({"preacts", *also}))  # type: ignore[misc]

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps and embeddings."""
        teacher = teacher_features(teacher, "reviewkd")
        count = len(self.fusions) - self.embedding
        own, what = (student.preacts, "preacts") if self.student_preacts else (student.maps, "maps")
        maps = [*deepest(own, count, "reviewkd", f"the student's {what}")]
        targets = [*deepest(teacher.preacts, count, "reviewkd", "the teacher's preacts")]
        if self.embedding:
            maps.append(student.embedding[:, :, None, None])
            targets.append(teacher.embedding[:, :, None, None])
        return hcl(self.fused(maps, [(t.shape[-2], t.shape[-1]) for t in targets]), targets)

    def fused(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """What is compared with the teacher, level by level, the shallowest first.

        Args:
            maps: the student's, the shallowest first, each ``(B, C_l, H_l, W_l)``.
            sizes: height and width of the teacher's.
        """
        found: list[Tensor] = []
        passed: Tensor | None = None
        for fusion, x, size in reversed(list(zip(self.fusions, maps, sizes, strict=True))):
            out, passed = fusion(x, passed, size)
            found.append(out)
        return found[::-1]
