"""Two feature maps brought to one height and width."""

from torch import Tensor

from potstill.methods.numerics import full_precision
from potstill.methods.stages import pooled

__all__ = ["to_the_smaller"]


def to_the_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their heights and the smaller of their widths, the larger one averaged down.

    Args:
        a: ``(B, C, H, W)``, any floating dtype; float32 afterwards, or float64 where it is that.
        b: ``(B, C', H', W')``.

    Example:
        >>> import torch
        >>> a, b = to_the_smaller(torch.zeros(2, 3, 8, 4), torch.zeros(2, 5, 4, 8))
        >>> a.shape, b.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 5, 4, 4]))
    """
    size = [min(x, y) for x, y in zip(a.shape[-2:], b.shape[-2:], strict=True)]
    return pooled(full_precision(a), size), pooled(full_precision(b), size)
