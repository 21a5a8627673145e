"""Attention based feature distillation (AFD): which student block learns from which teacher block is learned."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, unit
from potstill.methods.registry import register
from potstill.methods.stages import pooled, two_images
from potstill.networks.features import Features

__all__ = ["AFD", "afd"]


def afd(attention: Tensor, student_blocks: Sequence[Tensor], teacher_blocks: Sequence[Tensor]) -> Tensor:
    r"""Squared distances of the blocks' energy maps, each pair weighted by its attention.

    .. math:: L_{AFD} = \sum_{t=1}^{T} \frac{1}{b} \sum_{i=1}^{b} \sum_{s=1}^{S} a_{its} \,
              \operatorname{mean}\big(v^{s \to t}_i - v^t_i\big)^2, \qquad
              v = \frac{\operatorname{vec}(\operatorname{mean}_c F^2)}{\lVert \cdot \rVert}

    The student's energy map is averaged (or repeated) to the teacher's size before it is scaled to length 1; the mean
    of the squared difference is over pixels. No gradient reaches the teacher's blocks.

    Args:
        attention: a, ``(B, T, S)``, over student blocks a distribution.
        student_blocks: S maps ``(B, C_s, H_s, W_s)``, any floating dtype; computed in float32, or float64 where it is
            that.
        teacher_blocks: T maps ``(B, C_t, H_t, W_t)``.

    Returns:
        A scalar. The authors weight it with 200 on CIFAR-100.

    Raises:
        NetworkError: for an attention of other numbers of blocks.

    Source: Ji, Heo and Park, "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching",
    AAAI 2021 (arXiv 2102.02973); the authors' code (clovaai/attention-feature-distillation, distill/AFD.py), with its
    loss and gradients. Here all blocks of one size go through one matrix product instead of one comparison a pair. An
    energy map of zeros stays zero.

    Example:
        >>> maps = torch.tensor([[[[1.0, 0.0]]]])
        >>> afd(torch.ones(1, 1, 1), [maps], [maps.flip(-1)])
        tensor(1.)
    """
    numbers = (len(teacher_blocks), len(student_blocks))
    if tuple(attention.shape[1:]) != numbers:
        raise NetworkError(
            f"afd weighs {numbers[0]} teacher blocks times {numbers[1]} student blocks, but the attention is of shape "
            f"{tuple(attention.shape)}; expected (B, {numbers[0]}, {numbers[1]})."
        )
    attention = full_precision(attention)
    own = _energies(student_blocks)
    losses, start = [], 0
    for energy in _energies([block.detach() for block in teacher_blocks]):
        end = start + energy.shape[1]
        size = (energy.shape[-2], energy.shape[-1])
        theirs = unit(energy.flatten(2))  # (B, T_g, h w)
        ours = unit(torch.cat([pooled(e, size).flatten(2) for e in own], dim=1))  # (B, S, h w)
        squares = theirs.square().sum(-1).unsqueeze(2) + ours.square().sum(-1).unsqueeze(1)
        distances = (squares - 2 * torch.bmm(theirs, ours.mT)) / (size[0] * size[1])
        losses.append((attention[:, start:end] * distances).sum((1, 2)).mean())
        start = end
    return torch.stack(losses).sum()


def _energies(blocks: Sequence[Tensor]) -> list[Tensor]:
    """The blocks' energy maps, neighbours of one size together: ``(B, n, H, W)`` each, in order.

    The sum over channels stands for the mean, since only directions are compared.
    """
    same = groupby(blocks, key=lambda block: tuple(block.shape[-2:]))
    return [
        torch.stack([torch.linalg.vector_norm(full_precision(block), dim=1).square() for block in group], dim=1)
        for _, group in same
    ]


class _Linears(nn.Module):
    """A linear layer for each block, those of one width stacked: ``(B, C_k)`` each -> ``(B, blocks, width)``."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.counts = [(len(list(group)), c) for c, group in groupby(channels)]
        self.weights = nn.ParameterList(torch.empty(n, c, width) for n, c in self.counts)
        self.biases = nn.ParameterList(torch.empty(n, 1, width) for n, _ in self.counts)
        for (_, c), *parameters in zip(self.counts, self.weights, self.biases, strict=True):
            for parameter in parameters:  # what nn.Linear draws from
                nn.init.uniform_(parameter, -(c**-0.5), c**-0.5)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        found, start = [], 0
        for (count, _), weight, bias in zip(self.counts, self.weights, self.biases, strict=True):
            found.append(torch.baddbmm(bias, torch.stack(list(vectors[start : start + count])), weight))
            start += count
        return torch.cat(found).transpose(0, 1)


class _Attention(nn.Module):
    """Who learns from whom: for each image and teacher block a distribution over student blocks."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.key, self.key_norm = _Linears(student, width), nn.BatchNorm1d(len(student) * width)
        self.query, self.query_norm = _Linears(teacher, width), nn.BatchNorm1d(len(teacher) * width)
        self.bilinear = nn.Linear(width, len(teacher) * width)
        self.bilinear_norm = nn.BatchNorm1d(len(teacher) * width)
        self.student_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(student), width)))
        self.teacher_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teacher), width)))

    def forward(self, student_blocks: Sequence[Tensor], teacher_blocks: Sequence[Tensor]) -> Tensor:
        """``(B, T, S)``."""
        key = self.key([block.mean((2, 3)) for block in student_blocks])
        query = self.query([block.detach().mean((2, 3)) for block in teacher_blocks])
        # Batch norm treats each feature apart, so one over all blocks' features is each block's own.
        key = self.key_norm(key.flatten(1)).relu().view(-1, self.width)
        query = self.query_norm(query.flatten(1)).unflatten(1, (-1, self.width))
        key = self.bilinear_norm(self.bilinear(key)).view(len(query), -1, *query.shape[1:])  # (B, S, T, width)
        scores = (key * query.unsqueeze(1)).sum(-1).transpose(1, 2)
        scores = scores + self.teacher_position @ self.student_position.T
        return (scores * self.width**-0.5).softmax(-1)


@register("afd")
class AFD(Method):
    """Attention based feature distillation as an objective's term; ce + 0.9 kd + 200 afd on CIFAR-100.

    Reads the end of every block of both networks. The attention trains with the student and never ships.

    Args:
        setting: both networks.
        width: d, the length of keys and queries; the authors' 128.

    Raises:
        NetworkError: where a network shows no blocks.
        RecipeError: for a width that makes no module, a batch of one image, or no teacher.

    Source: as :func:`afd`.
    """

    needs = Needs(student=frozenset({"blocks"}), teacher=frozenset({"blocks"}))

    def __init__(self, setting: Setting, *, width: int = 128) -> None:
        super().__init__()
        specs = {"student": setting.student, "teacher": teacher_spec(setting, "afd")}
        if width < 1:
            raise RecipeError(f"width is {width}; expected the length of keys and queries, such as 128.")
        two_images(setting, "afd")
        for network, spec in specs.items():
            if not spec.blocks:
                raise NetworkError(
                    f"afd compares the ends of blocks, and the {network} shows none. Take a network built of residual "
                    "blocks, or a method that compares the ends of stages or embeddings, such as pefd."
                )
        student, teacher = ([block.channels for block in spec.blocks] for spec in specs.values())
        self.attention = _Attention(student, teacher, width)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's blocks."""
        blocks = teacher_features(teacher, "afd").blocks
        return afd(self.attention(student.blocks, blocks), student.blocks, blocks)
