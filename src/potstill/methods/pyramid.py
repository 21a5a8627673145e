"""PEFD on maps: the direction of the teacher's map at each location, through projectors that are 1x1 convolutions."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.levels import foreground, inside, level_pairs
from potstill.methods.maps import to_the_smaller
from potstill.methods.numerics import cosine
from potstill.methods.pairs import Pairs, check_shapes
from potstill.methods.registry import register
from potstill.networks.features import Features
from potstill.projectors import Activation, Constraint, Init, ProjectorEnsemble

__all__ = ["At", "PEFDMaps", "pefd_maps"]

At = Literal["locations", "foreground", "pooled"]


def pefd_maps(
    projected: Sequence[Tensor], teacher_maps: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    r"""How far the projected student maps point from the teacher's, location by location.

    .. math:: L = \frac{1}{n} \sum_{l=1}^{n} \frac{1}{b} \sum_{i=1}^{b}
              \frac{\sum_{x} w_{lix} (1 - \cos(f_l(s_{li})_x, t_{lix}))}{\sum_{x} w_{lix}}

    of n levels, b images and the locations x of a level; a level of an image whose weights are all 0 adds 0. Every
    level counts alike and so does every image, whatever the number of its locations: the loss of a batch is the mean of
    its images' losses. No gradient reaches the teacher.

    Args:
        projected: f(s), one a level, each ``(B, C, H, W)`` with the teacher's C, H and W, any floating dtype; computed
            in float32, or float64 where it is that. A location whose vector is zero has the cosine 0 and no gradient.
        teacher_maps: t, as many, of the same shapes.
        weights: w, as many, each ``(B, H, W)`` of 0 or more, bool or float; None for 1 everywhere.

    Returns:
        A scalar in [0, 2].

    Raises:
        NetworkError: for other numbers of levels, none, or other shapes.

    Source: Chen et al. (arXiv 2210.15274), equation 4, which compares embeddings, taken to maps.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2)  # two locations: (1, 0) and (0, 3)
        >>> teacher = torch.tensor([[2.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)  # (2, 0) and (1, 0)
        >>> pefd_maps([student], [teacher]), pefd_maps([student], [teacher], [torch.tensor([[[1.0, 0.0]]])])
        (tensor(0.5000), tensor(0.))
    """
    counts = {len(projected), len(teacher_maps), len(projected if weights is None else weights)}
    if not projected or len(counts) > 1:
        raise NetworkError(
            f"pefd_maps compares level by level, but there are {len(projected)} projected maps, {len(teacher_maps)} of "
            f"the teacher's and {'no' if weights is None else len(weights)} weights; give as many of each."
        )
    losses = []
    for level, (s, t) in enumerate(zip(projected, teacher_maps, strict=True)):
        check_shapes(s, t, "pefd_maps", "maps")
        distance = 1 - cosine(s.movedim(1, -1), t.detach().movedim(1, -1))  # (B, H, W)
        if weights is None:
            losses.append(distance.mean())
            continue
        weight = weights[level].to(distance.dtype)
        if weight.shape != distance.shape:
            raise NetworkError(
                f"pefd_maps weighs each location of {tuple(distance.shape)}, but the weights of level {level} are "
                f"{tuple(weight.shape)}."
            )
        whole = weight.sum((1, 2))
        losses.append(((weight * distance).sum((1, 2)) / torch.where(whole > 0, whole, 1.0)).mean())
    return torch.stack(losses).mean()


@register("pefd_maps")
class PEFDMaps(Method):
    """PEFD at the levels of a pyramid, or of any network's maps: a projector ensemble of 1x1 convolutions each.

    It reads no logits and no labels; with ``at="foreground"`` it reads the boxes. Where the images of a batch are
    padded to one size (detection), what is padded does not count. The projectors train with the student and never ship.

    Args:
        setting: both networks, with feature maps.
        at: what is compared. "locations": the vectors at each location. "foreground": those at locations whose centre
            lies in a box. "pooled": the mean vector of each level.
        layers: pairs of the student's and the teacher's maps, counted from 0; None pairs those of one stride
            (:func:`~potstill.methods.levels.level_pairs`). Where two are of other sizes the larger is averaged down.
        projectors: q of each level; 0 for none where the channels are equal.
        depth: layers of each projector.
        width: hidden channels as a multiple of the teacher's.
        activation: after every layer. The pyramids of detectors have negative values, which "relu" cannot reach.
        bias: of each layer.
        init: see :class:`~potstill.projectors.ProjectorEnsemble`.
        constraint: likewise.

    Raises:
        NetworkError: for networks without maps of one stride where no pairs are named.
        RecipeError: for sizes that make no projector, pairs that there are not, values that have no effect, or no
            teacher.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(
        self,
        setting: Setting,
        *,
        at: At = "locations",
        layers: Pairs | None = None,
        projectors: int = 3,
        depth: int = 1,
        width: int = 1,
        activation: Activation = "relu",
        bias: bool = True,
        init: Init = "default",
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__()
        if at not in get_args(At):
            raise RecipeError(f"at is {at!r}; it is one of {', '.join(get_args(At))}.{nearest(str(at), get_args(At))}")
        self.at = at
        self.pairs = level_pairs(setting, layers, "pefd_maps")
        student, teacher = setting.student.maps, teacher_spec(setting, "pefd_maps").maps
        self.strides = [student[s].stride for s, _ in self.pairs]
        self.levels = nn.ModuleList(
            ProjectorEnsemble(
                student[s].channels, teacher[t].channels, projectors, depth, width, activation, bias, init, constraint
            )
            for s, t in self.pairs
        )

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps.

        Raises:
            RecipeError: for at="foreground" where the batch has no boxes.
        """
        maps = teacher_features(teacher, "pefd_maps").maps
        if self.at == "foreground" and batch.objects is None:
            raise RecipeError(
                "pefd_maps with at=foreground looks where the boxes are, and these images have none: take at=locations "
                "or at=pooled, or data with boxes (task=detection)."
            )
        projected, targets, weights = [], [], []
        for (ours, theirs), stride, level in zip(self.pairs, self.strides, self.levels, strict=True):
            s, t = to_the_smaller(student.maps[ours], maps[theirs].detach())
            weight = self._weight(batch, student.maps[ours], s, stride)
            if self.at == "pooled":
                s, t = _mean_vector(s, weight), _mean_vector(t, weight)
                weight = None if weight is None else weight.flatten(1).any(1)[:, None, None]
            projected.append(_convolved(level, s))
            targets.append(t)
            weights += [] if weight is None else [weight]
        return pefd_maps(projected, targets, weights or None)

    def _weight(self, batch: Batch, whole: Tensor, compared: Tensor, stride: int) -> Tensor | None:
        """``(B, H, W)`` bool, which locations count; None where all do."""
        objects = batch.objects
        if objects is None:
            return None
        height, width = compared.shape[-2:]
        # The student's own map keeps its stride whatever its size is rounded to; averaging down makes it coarser.
        strides = (stride * whole.shape[-2] / height, stride * whole.shape[-1] / width)
        within = inside(objects, (height, width), strides, compared.device)
        return within & foreground(objects, (height, width), strides) if self.at == "foreground" else within


def _convolved(projector: nn.Module, maps: Tensor) -> Tensor:
    """A 1x1 convolution is the projector on the vector of each location: ``(B, C, H, W)`` to ``(B, C', H, W)``."""
    rows = maps.movedim(1, -1).flatten(0, 2)
    projected: Tensor = projector(rows)
    return projected.unflatten(0, (maps.shape[0], *maps.shape[2:])).movedim(-1, 1)


def _mean_vector(maps: Tensor, weight: Tensor | None) -> Tensor:
    """``(B, C, 1, 1)``: the mean over the locations that count."""
    if weight is None:
        return maps.mean((2, 3), keepdim=True)
    weight = weight[:, None].to(maps.dtype)
    return (maps * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)
