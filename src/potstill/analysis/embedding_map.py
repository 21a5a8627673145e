"""A small picture of many embeddings: which images are on it, and where they lie."""

import torch
from torch import Tensor

__all__ = ["balanced_rows", "principal"]

_LARGEST = 6e4  # that float16 holds


def balanced_rows(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Some rows, of each class as many as there are of any other, as far as there are so many; the same each time.

    Args:
        labels: ``(N,)`` integers on the host.
        count: how many at most.
        seed: of the draw.

    Returns:
        ``(min(N, count),)`` int64, ascending.

    Example:
        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> labels[balanced_rows(labels, 12)].bincount().tolist()
        [6, 6]
    """
    if len(labels) <= count:
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = labels[order]
    by_class = drawn.argsort(stable=True)
    counts = drawn.unique(return_counts=True)[1]
    begins = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(labels)) - begins  # how many of its class are drawn before it
    return order[turn.argsort(stable=True)[:count]].sort().values


def principal(embedding: Tensor, columns: int) -> Tensor:
    """The embeddings centred, along the directions in which they vary most, the widest first.

    A direction's sign is such that its largest entry is positive, so the picture is the same each time. Where float16
    could not hold the coordinates, all are divided by one number.

    Args:
        embedding: ``(M, D)`` of finite numbers; computed in float64.
        columns: at most so many directions.

    Returns:
        ``(M, min(columns, D, M))`` float16.

    Example:
        >>> principal(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 1).tolist()
        [[-1.0], [1.0]]
    """
    columns = min(columns, *embedding.shape)
    if columns == 0:
        return embedding.new_zeros((len(embedding), 0), dtype=torch.float16)
    centred = embedding.double() - embedding.double().mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:columns]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    places = centred @ (directions * largest.sign()).T
    return (places / max(1.0, places.abs().max().item() / _LARGEST)).half()
