"""Logits as their k largest and one number for all the others."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TopK", "compress", "expand"]


class TopK(NamedTuple):
    """What is kept of a batch of logits.

    Attributes:
        values: ``(B, k)`` float32, the largest logits, the greatest first.
        indices: ``(B, k)`` int64, their classes.
        rest: ``(B,)`` float32, the log-sum-exp of the C - k others.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


def compress(logits: Tensor, k: int) -> TopK:
    r"""The k largest logits, and the log-sum-exp of the rest.

    .. math:: r = \log \sum_{j \notin K} e^{z_j}

    Args:
        logits: z, ``(B, C)``, any floating dtype.
        k: how many to keep, 1 to C - 1.

    Example:
        >>> compress(torch.tensor([[1.0, 3.0, 0.0, 0.0]]), 2)
        TopK(values=tensor([[3., 1.]]), indices=tensor([[1, 0]]), rest=tensor([0.6931]))
    """
    logits = logits.to(torch.float32)
    values, indices = logits.topk(k, dim=1)
    rest = logits.scatter(1, indices, -math.inf).logsumexp(1)
    return TopK(values, indices, rest)


def expand(kept: TopK, classes: int) -> Tensor:
    r"""Logits ``(B, C)`` float32 with the kept ones in their places and the rest spread evenly over the other classes.

    .. math:: \tilde z_j = z_j \text{ for } j \in K, \qquad \tilde z_j = r - \log(C - k) \text{ otherwise}

    The softmax at temperature 1 of the kept classes, and of all the others together, is that of the full logits. At
    another temperature the others' mass is that of even logits: too much above T = 1, too little below.

    Args:
        kept: what :func:`compress` made.
        classes: C.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0, 0.5, -0.5]])
        >>> again = expand(compress(logits, 2), classes=4)
        >>> torch.testing.assert_close(again.softmax(1)[:, :2], logits.softmax(1)[:, :2])
        >>> bool(again[0, 2] == again[0, 3])
        True
    """
    others = kept.rest - math.log(classes - kept.indices.shape[1])
    return others[:, None].repeat(1, classes).scatter_(1, kept.indices, kept.values)
