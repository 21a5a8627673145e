"""An order for data that are slow in any order: group by group, in several streams, shuffled in windows."""

import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from potstill.data.random import Stream, bits
from potstill.data.source import Source
from potstill.errors import DataError, nearest

__all__ = ["ORDERS", "Groups", "choose_order", "grouped_order", "shuffled"]

log = logging.getLogger(__name__)

ORDERS = ("auto", "full", "groups")
STREAMS = 16  # divides the usual batch sizes, and is divided by the usual numbers of processes
WINDOW = 1 << 14  # where memory sets no limit: 16 streams of it are a fifth of ImageNet
_GROUPS = Stream.ORDER + 2  # and the next one: groups are numbered as samples are, and must not share their numbers


@dataclass(frozen=True, eq=False)
class Groups:
    """Runs of samples that lie together, and how an epoch goes through them; see :func:`grouped_order`.

    Attributes:
        bounds: ``(G + 1,)`` int64, where each group begins, and the end of the last; strictly ascending from 0.
        streams: how many places of the data a batch is taken from.
        window: samples of a stream that are shuffled among each other.

    Raises:
        DataError: bounds that do not ascend from 0, or numbers below 1.

    Example:
        >>> groups = Groups(np.array([0, 3, 5, 9]), streams=2, window=4)
        >>> groups.length, str(groups)
        (9, '3 groups in random order, read in 2 streams and shuffled in windows of 4 images')
    """

    bounds: np.ndarray
    streams: int = STREAMS
    window: int = WINDOW

    def __post_init__(self) -> None:
        bounds = np.asarray(self.bounds, dtype=np.int64)
        if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or (np.diff(bounds) <= 0).any():
            raise DataError("The bounds of groups must begin with 0, ascend, and end with the number of samples.")
        if self.streams < 1 or self.window < 1:
            raise DataError(f"streams={self.streams} and window={self.window} must be at least 1.")
        object.__setattr__(self, "bounds", bounds)

    @property
    def length(self) -> int:
        """The number of samples."""
        return int(self.bounds[-1])

    def __str__(self) -> str:
        return (
            f"{len(self.bounds) - 1:,} groups in random order, read in {self.streams} streams and shuffled in windows "
            f"of {self.window:,} images"
        )


def shuffled(seed: int, index: Tensor, epoch: int, stream: int) -> Tensor:
    """``(n,)`` int64: positions of ``index`` in a random order, the same on every machine and version of torch.

    ``stream`` and the one after it are drawn from.
    """
    epochs = torch.full_like(index, epoch)
    # 62 bits: two samples of one key would keep their order, which at 32 bits happens in any set of 100,000.
    key = (bits(seed, index, epochs, stream) << 30) ^ (bits(seed, index, epochs, stream + 1) >> 2)
    return torch.argsort(key, stable=True)


@lru_cache(maxsize=2)
def grouped_order(groups: Groups, batch_size: int, seed: int, epoch: int | None) -> Tensor:
    """``(N,)`` int64: an epoch's order that reads each group in one go, or nearly.

    1. The groups are put in random order and laid end to end.
    2. That line is cut into streams of one length, or of two that differ by one. Where a cut falls into a group, two
       streams share it.
    3. In each stream, samples are shuffled within windows of nearly equal size, at most ``groups.window``.
    4. A batch takes the next sample of each stream in turn, and holds its samples stream by stream. So where
       ``streams`` divides the batch, and the number of processes divides ``streams``, the contiguous part of each
       batch that a process gets is of its own streams, the same ones throughout the epoch.

    Args:
        groups: where the groups lie.
        batch_size: samples of one step over all processes; the last batch has what is left.
        seed: of the shuffle.
        epoch: each has its own order; None shuffles nothing, and only reads in streams.

    Example:
        >>> grouped_order(Groups(np.array([0, 3, 6]), streams=2), batch_size=4, seed=0, epoch=None)
        tensor([0, 1, 3, 4, 2, 5])
    """
    bounds, length, streams = torch.from_numpy(groups.bounds), groups.length, min(groups.streams, groups.length)
    starts, sizes = bounds[:-1], bounds.diff()
    if epoch is not None:
        order = shuffled(seed, torch.arange(len(sizes)), epoch, _GROUPS)
        starts, sizes = starts[order], sizes[order]
    line = torch.arange(length) + torch.repeat_interleave(starts - (sizes.cumsum(0) - sizes), sizes)
    # The first streams are the longer ones, so that taking turns ends with them.
    lengths = torch.full((streams,), length // streams)
    lengths[: length % streams] += 1
    stream = torch.repeat_interleave(torch.arange(streams), lengths)
    row = torch.arange(length) - (lengths.cumsum(0) - lengths)[stream]
    if epoch is not None:
        longest = int(lengths[0])
        windows = -(-longest // groups.window)
        window = stream * windows + row * windows // longest
        order = shuffled(seed, line, epoch, Stream.ORDER)
        line = line[order[torch.argsort(window[order], stable=True)]]
    batch = (row * streams + stream) // batch_size
    return line[torch.argsort(batch * streams + stream, stable=True)]


def choose_order(source: Source, wanted: str = "auto") -> Groups | None:
    """The groups to order a source's images by, or None for any order.

    Where reading an image means reading its group, streams and windows are as large as what a process keeps allows.

    Args:
        source: the images.
        wanted: ``"full"`` for any order; ``"groups"`` for the source's groups; ``"auto"`` for groups where any order
            would be slow: of a remote source, or of Parquet larger than the cache of its row groups.

    Raises:
        DataError: an unknown order, or groups of a source that has none.

    Example:
        >>> from potstill.data.source import ArraySource
        >>> choose_order(ArraySource(np.zeros((2, 4, 4, 3), np.uint8), None, name="two")) is None
        True
    """
    if wanted not in ORDERS:
        raise DataError(f"data.order must be one of {', '.join(ORDERS)}, got {wanted!r}.{nearest(wanted, ORDERS)}")
    if wanted == "auto":
        wanted = "groups" if source.scattered and source.groups is not None else "full"
    if wanted == "full":
        if source.scattered:
            log.warning(
                "%s is read in any order, where most images cost a request or the reading of a whole row group. "
                "data.order=groups reads what lies together.", source.name,
            )  # fmt: skip
        return None
    if source.groups is None:
        raise DataError(
            f"{source.name} has no groups to order images by: row groups of Parquet and tar shards are such, in the "
            "order of their files. Set data.order=full."
        )
    if source.held is None:
        return Groups(source.groups)
    largest = int(np.diff(source.groups).max())
    # A window of w samples touches groups of at most w + 2 * largest; streams give way before windows of two groups.
    streams = STREAMS
    while streams > 1 and streams * 4 * largest > source.held:
        streams //= 2
    window = source.held // streams - 2 * largest
    if window < largest:
        log.warning(
            "%s has groups of up to %s images, of which a process keeps %s: images that lie together are seen "
            "together. Write it with row groups of some hundred images.", source.name, f"{largest:,}",
            f"{source.held:,}",
        )  # fmt: skip
    return Groups(source.groups, streams, max(window, largest))
