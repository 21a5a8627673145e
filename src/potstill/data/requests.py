"""What may be asked of a loader beside the order of its epochs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.errors import DataError

__all__ = ["check_request", "check_views"]


def check_views(views: int | None) -> int | None:
    """A loader's number of views, None for as many as there are epochs; a ``DataError`` for less than one."""
    if views is not None and views < 1:
        raise DataError(f"views={views} leaves nothing to be seen of a sample; give 1 or more, or None for no limit.")
    return views


def check_request(index: Tensor, views: Sequence[int], length: int) -> Tensor:
    """The indices of a request, or a ``DataError``: ``(n,)`` int64, n at least 1, of a source of ``length`` samples.

    Example:
        >>> check_request(torch.tensor([3, 0]), views=[0, 1], length=4)
        tensor([3, 0])
    """
    if index.ndim != 1 or index.dtype != torch.int64 or not len(index) or not len(views):
        raise DataError(
            f"Indices {tuple(index.shape)} of {index.dtype} in {len(views)} views were requested; at least one int64 "
            "index (n,) and one view number are needed."
        )
    if index.min() < 0 or index.max() >= length:
        raise DataError(
            f"Samples {int(index.min())} to {int(index.max())} were requested of a source whose samples are 0 to "
            f"{length - 1}."
        )
    return index
