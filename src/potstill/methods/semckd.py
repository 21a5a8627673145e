"""Semantic calibration (SemCKD): every student stage learns from every teacher stage, by how alike they see a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, unit
from potstill.methods.registry import register
from potstill.methods.stages import deepest, pooled, stages
from potstill.networks.features import Features

__all__ = ["SemCKD", "semckd"]


def semckd(attention: Tensor, distances: Tensor) -> Tensor:
    r"""Distances of all pairs of student and teacher stages, weighted by attention.

    .. math:: L_{SemCKD} = \frac{1}{b S} \sum_{i=1}^{b} \sum_{s=1}^{S} \sum_{t=1}^{T} a_{ist} \, d_{ist}

    Args:
        attention: a, ``(B, S, T)``, over teacher stages a distribution.
        distances: d, ``(B, S, T)``: of each image the mean squared error between the student's stage s, through the
            pair's regressor, and the teacher's stage t.

    Returns:
        A scalar. The authors weight it with 400 on CIFAR-100 and 50 on ImageNet.

    Raises:
        NetworkError: for two different shapes.

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021 (arXiv 2012.03236); the
    authors' ``SemCKDLoss`` (DefangChen/SemCKD, distiller_zoo/SemCKD.py).

    Example:
        >>> semckd(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[4.0, 8.0]]]))
        tensor(5.)
    """
    if attention.shape != distances.shape:
        raise NetworkError(
            f"semckd weighs each pair's distance, but the attention is of shape {tuple(attention.shape)} and the "
            f"distances of {tuple(distances.shape)}."
        )
    return (attention * distances).sum((1, 2)).mean() / attention.shape[1]


class _Embeddings(nn.Module):
    """A perceptron for each stage, stacked: rows of Gram matrices ``(n, B, B)`` -> unit vectors ``(n, B, B // 4)``."""

    def __init__(self, stages: int, batch_size: int) -> None:
        super().__init__()
        width = batch_size // 4
        sizes = [batch_size, 2 * width, width]
        self.weights = nn.ParameterList(torch.empty(stages, sizes[k], sizes[k + 1]) for k in range(2))
        self.biases = nn.ParameterList(torch.empty(stages, 1, sizes[k + 1]) for k in range(2))
        for size, *parameters in zip(sizes[:2], self.weights, self.biases, strict=True):
            for parameter in parameters:  # what nn.Linear draws from
                nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.biases[0], rows, self.weights[0]).relu()
        return unit(torch.baddbmm(self.biases[1], hidden, self.weights[1]))


def _regressor(channels: int, target: int) -> nn.Sequential:
    inner = 2 * target
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, target, 1, bias=False),
    )


def _rows(maps: Tensor) -> Tensor:
    """``(B, C H W)`` in the order of the memory, so without a copy: sums over a row do not see the order."""
    return maps.flatten(1) if maps.is_contiguous() else maps.movedim(1, -1).flatten(1)


@register("semckd")
class SemCKD(Method):
    """Semantic calibration as an objective's term; ce + kd + 400 semckd on CIFAR-100, ce + kd + 50 semckd on ImageNet.

    How much of teacher stage t a student stage s learns is a softmax over teacher stages of the products of query and
    key: of each stage the Gram matrix of the batch, row by row through a small perceptron of its own. So the number of
    images is a layer's width, as in the authors' code. A batch of another size, which is the incomplete last one of an
    epoch, counts nothing: the loss is zero, with zero gradients for all that it would have reached, so that processes
    stay in step. (The authors' code leaves such a batch out altogether.) Regressors and perceptrons train with the
    student and never ship.

    Args:
        setting: both networks, and the number of images that a process sees at once.
        levels: how many of the deepest stages, of both networks; 0 for all behind the stem of each.

    Raises:
        NetworkError: where a network shows fewer maps than levels.
        RecipeError: for levels that are none, an unknown batch size or one below 4, or no teacher; and from the second
            epoch on if the first had no batch of that size.

    Source: as :func:`semckd`; ``SelfA`` of models/util.py. Of a pair the larger map is averaged to the smaller's size;
    a query or key of zeros, NaN there, stays zero here.
    """

    needs = Needs(student=frozenset({"maps"}), teacher=frozenset({"maps"}))

    def __init__(self, setting: Setting, *, levels: int = 0) -> None:
        super().__init__()
        own = stages(setting.student.maps, levels, "semckd", "student")
        theirs = stages(teacher_spec(setting, "semckd").maps, levels, "semckd", "teacher")
        self.batch_size = setting.batch_size
        if self.batch_size < 4:
            raise RecipeError(
                "semckd has layers as wide as a batch is large, and a process's batch_size is "
                f"{self.batch_size or 'not known'}; expected 4 or more."
            )
        self.counts = (len(own), len(theirs))
        self.embeddings = _Embeddings(sum(self.counts), self.batch_size)
        self.regressors = nn.ModuleList(_regressor(s.channels, t.channels) for s in own for t in theirs)
        self.full_batches: Tensor
        self.register_buffer("full_batches", torch.zeros((), dtype=torch.int64))

    def start_epoch(self, epoch: int) -> None:
        """Refuse to go on where no batch was of the size that the layers have: the term has taught nothing."""
        if epoch and not self.full_batches:
            raise RecipeError(
                f"semckd has seen no batch of {self.batch_size} images, the only size that it learns from. Take a "
                "batch_size that a process gets whole, and no more images than there are."
            )

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's maps; zero for a batch of another size than the setting's."""
        own = deepest(student.maps, self.counts[0], "semckd", "the student's maps")
        theirs = deepest(teacher_features(teacher, "semckd").maps, self.counts[1], "semckd", "the teacher's maps")
        if len(own[0]) != self.batch_size:
            return torch.stack([x.flatten()[:0].sum() for x in (*own, *self.parameters())]).sum()
        self.full_batches += 1
        return semckd(self.attention(own, theirs), self.distances(own, theirs))

    def attention(self, own: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """``(B, S, T)``: of each image and student stage a distribution over teacher stages."""
        rows = [_rows(full_precision(x)) for x in (*own, *(t.detach() for t in theirs))]
        query, key = self.embeddings(torch.stack([r @ r.T for r in rows])).transpose(0, 1).split(self.counts, dim=1)
        return (query @ key.mT).softmax(-1)

    def distances(self, own: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """``(B, S, T)``: the mean squared error of each image and pair of stages, at the smaller of the two sizes."""
        found = []
        smaller: dict[tuple[str, int, tuple[int, int]], Tensor] = {}  # each map is averaged to a size once

        def at(network: str, level: int, maps: Tensor, size: tuple[int, int]) -> Tensor:
            key = (network, level, size)
            if key not in smaller:
                smaller[key] = pooled(maps, size)
            return smaller[key]

        for number, regressor in enumerate(self.regressors):
            s, t = divmod(number, self.counts[1])
            x, y = own[s], full_precision(theirs[t].detach())
            size = min(((m.shape[-2], m.shape[-1]) for m in (x, y)), key=lambda hw: hw[0])
            difference = regressor(at("student", s, x, size)) - at("teacher", t, y, size)
            found.append(_rows(difference).square().mean(1))
        return torch.stack(found, dim=1).unflatten(1, self.counts)
