"""Comparisons of templates, given block by block, so that millions of scores are never held."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.tasks.templates import Templates

__all__ = ["Comparisons", "Crossed", "Given", "Listed", "pair_scores", "scores_between"]

_ROWS, _COLUMNS = 512, 2048  # a block: 8 MiB of float64
_CHUNK = 4096  # pairs of vectors multiplied at a time: 32 MiB at 512 dimensions
_LONGEST = 1 << 18  # pairs in a block
_DENSE = 32  # a product of matrices costs less than a listed pair by about this factor


class Comparisons(Protocol):
    """Scores of comparisons, as often as they are asked for, the same each time."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of all scores, ``(n,)`` float32, each with those among them that are of one person, ``(m,)`` float32.

        A block's numbers are overwritten by the next. A comparison with a template that is not enrolled is -inf.
        """


def scores_between(left: Templates, right: Templates) -> Tensor:
    """The cosine of each template of ``left`` with each of ``right``, ``(L, R)`` float32; -inf where one is missing.

    The cosines are exact sums (see :class:`~potstill.tasks.templates.Templates`) that are rounded once: equal
    templates have equal scores wherever they stand.

    Example:
        >>> one = Templates.of(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        >>> scores_between(one, Templates.of(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
        tensor([[1., 0.],
                [-inf, -inf]])
    """
    scores = (left.vectors @ right.vectors.T).float().add_(0.0)  # adding makes 0 of -0
    scores[~left.enrolled] = -torch.inf
    scores[:, ~right.enrolled] = -torch.inf
    return scores


class Crossed:
    """Every template of one set with every one of another.

    Args:
        left: the one set.
        left_subjects: ``(L,)`` integers, the person of each.
        right: the other.
        right_subjects: ``(R,)`` integers.
    """

    def __init__(self, left: Templates, left_subjects: Tensor, right: Templates, right_subjects: Tensor) -> None:
        order = right_subjects.argsort(stable=True)
        self._left, self._right = left, right[order]
        subjects = right_subjects[order].contiguous()
        # those of one person as a row's are side by side
        self._first = torch.searchsorted(subjects, left_subjects.contiguous())
        self._last = torch.searchsorted(subjects, left_subjects.contiguous(), right=True)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of all scores, and those of one person."""
        products = torch.empty(_ROWS * _COLUMNS, dtype=torch.float64)
        scores = torch.empty(_ROWS * _COLUMNS)
        for rows in torch.arange(len(self._left)).split(_ROWS):
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            for columns in torch.arange(len(self._right)).split(_COLUMNS):
                start, end = int(columns[0]), int(columns[-1]) + 1
                shape = (bottom - top, end - start)
                size = shape[0] * shape[1]
                block = products[:size].view(shape)
                torch.mm(self._left.vectors[top:bottom], self._right.vectors[start:end].T, out=block)
                found = scores[:size].view(shape)
                found.copy_(block).add_(0.0)
                _mask(found, self._left.enrolled[top:bottom], self._right.enrolled[start:end])
                first = self._first[top:bottom].clamp(start, end) - start
                last = self._last[top:bottom].clamp(start, end) - start
                yield scores[:size], scores[:size][_ranges(first, last, shape[1])]


class Listed:
    """The pairs of a list. Beside the list, a copy of it in another order is held: 9 bytes a pair.

    Args:
        templates: all of them.
        first: ``(P,)`` int32 numbers of templates.
        second: ``(P,)`` int32.
        same: ``(P,)`` bool.
    """

    def __init__(self, templates: Templates, first: Tensor, second: Tensor, same: Tensor) -> None:
        self._templates = templates
        across = -(-len(templates) // _COLUMNS)
        tile = (first // _ROWS) * across + second // _COLUMNS
        order = tile.argsort(stable=True)
        self._first, self._second, self._same = first[order].int(), second[order].int(), same[order]
        counts = tile[order].unique_consecutive(return_counts=True)[1].tolist()
        self._sizes = [min(_LONGEST, count - start) for count in counts for start in range(0, count, _LONGEST)]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of all scores, and those of one person."""
        start = 0
        for size in self._sizes:
            part = slice(start, start + size)
            start += size
            scores = pair_scores(self._templates, self._first[part], self._second[part])
            yield scores, scores[self._same[part]]


def pair_scores(templates: Templates, first: Tensor, second: Tensor) -> Tensor:
    """The cosine of each listed pair, ``(P,)`` float32; -inf where a template is missing; memory for the pairs."""
    vectors = templates.vectors
    top, left = int(first.min()), int(second.min())
    height, width = int(first.max()) + 1 - top, int(second.max()) + 1 - left
    if height * width <= min(_DENSE * len(first), _ROWS * _COLUMNS):
        table = vectors[top : top + height] @ vectors[left : left + width].T
        scores = table[(first - top).long(), (second - left).long()].float()
    else:
        chunks = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
        scores = torch.cat([(vectors[a] * vectors[b]).sum(1).float() for a, b in chunks])
    scores.add_(0.0)
    scores[~(templates.enrolled[first] & templates.enrolled[second])] = -torch.inf
    return scores


class Given:
    """Scores that somebody has already.

    Args:
        scores: ``(P,)`` float; more than float32 is rounded to it.
        same: ``(P,)`` bool.

    Raises:
        DataError: a score that is no number; lengths that differ.
    """

    def __init__(self, scores: Tensor, same: Tensor) -> None:
        if scores.shape != same.shape or scores.ndim != 1:
            raise DataError(f"Scores of shape {tuple(scores.shape)} with labels of shape {tuple(same.shape)}.")
        if scores.isnan().any():
            raise DataError(
                f"{int(scores.isnan().sum())} scores are no numbers. A comparison without a result is -inf."
            )
        self._scores, self._same = scores.detach().cpu().float().add(0.0), same.cpu().bool()

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One block."""
        yield self._scores, self._scores[self._same]


def _mask(scores: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Put -inf where a row's or a column's template is not enrolled."""
    if not rows.all():
        scores[~rows] = -torch.inf
    if not columns.all():
        scores[:, ~columns] = -torch.inf


def _ranges(first: Tensor, last: Tensor, width: int) -> Tensor:
    """The flat places of columns ``first[r] .. last[r] - 1`` of each row ``r`` of a block that is ``width`` wide."""
    counts = last - first
    total = int(counts.sum())
    begins = counts.cumsum(0) - counts
    return torch.arange(total) + (torch.arange(len(first)) * width + first - begins).repeat_interleave(
        counts, output_size=total
    )
