"""Arithmetic that every loss shares: full precision, and a cosine that is a number for zero vectors too."""

import torch
from torch import Tensor

__all__ = ["cosine", "full_precision", "gram", "unit"]


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def cosine(a: Tensor, b: Tensor, eps: float = 1e-12) -> Tensor:
    r"""The cosine of the angle between the last axes of two tensors, and 0 where either vector is zero.

    .. math:: \cos(a, b) = \langle a, b \rangle / (\lVert a \rVert \lVert b \rVert)

    The norms are not shifted by ``eps``: a vector shorter than ``eps`` counts as zero, with gradient zero, and every
    other one is treated exactly.

    Args:
        a: ``(..., D)``, any floating dtype; computed in float32, or float64 where it is that.
        b: ``(..., D)``.
        eps: the length below which a vector is zero.

    Returns:
        ``(...,)``

    Example:
        >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[6.0, 8.0], [1.0, 0.0]]))
        tensor([1., 0.])
    """
    a, b = full_precision(a), full_precision(b)
    return (a * b).sum(-1) * _inverse_norm(a, eps) * _inverse_norm(b, eps)


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """The last axis scaled to length 1; vectors shorter than ``eps`` become zero, with gradient zero."""
    x = full_precision(x)
    return x * _inverse_norm(x, eps).unsqueeze(-1)


def _inverse_norm(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1)
    zero = norm < eps
    # The inner mask keeps 1/0 out of the graph: a masked infinity would still make NaN on the way back.
    return torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, norm))


def gram(x: Tensor) -> Tensor:
    """The products of every sample with every other: ``(B, ...)``, flattened behind the first axis, gives ``(B, B)``.

    Example:
        >>> gram(torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]]))
        tensor([[5., 3.],
                [3., 9.]])
    """
    rows = full_precision(x).flatten(1)
    return rows @ rows.T
