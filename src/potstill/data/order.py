"""Which samples each step of each process sees: a pure function of (seed, epoch, step)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from potstill.data.groups import Groups, grouped_order, shuffled
from potstill.data.random import Stream
from potstill.errors import DataError

__all__ = ["Chunk", "Plan"]


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    """``(length,)`` int64: an order of all samples."""
    return shuffled(seed, torch.arange(length), epoch, Stream.ORDER)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One process's micro-batch: positions ``start`` to ``stop`` of the epoch's order, and its ``Batch.weight``.

    ``part`` counts the step's chunks over all processes and micro-batches.
    """

    start: int
    stop: int
    weight: float
    part: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The order of one process's share of the data.

    The order of an epoch, and the samples of each step, do not depend on ``world`` and ``accumulate``: these only cut
    a step's samples into ``world * accumulate`` chunks of nearly equal size. ``step`` may be asked for in any order,
    so that a run resumes in the middle of an epoch by asking for the next step.

    Attributes:
        length: number of samples.
        batch_size: samples of one optimiser step, over all processes and micro-batches.
        seed: of the shuffle.
        shuffle: whether an epoch's order is random; else it is 0, 1, 2, ...
        rank: this process.
        world: number of processes.
        accumulate: micro-batches of a process in one step.
        fillers: whether a process without samples in a micro-batch gets one with weight 0, which it needs in training
            to take part in the step; in evaluation it does without.
        groups: what lies together and is read together, see :func:`~potstill.data.groups.grouped_order`; None for a
            permutation of all samples. Without ``shuffle``, the groups are read in their own order, in streams.

    Raises:
        DataError: at construction, for numbers with which no step is possible, and groups of another length.

    Example:
        >>> plan = Plan(length=10, batch_size=4, seed=0, shuffle=False)
        >>> plan.steps
        3
        >>> plan.step(epoch=0, k=2)
        [(tensor([8, 9]), 1.0)]
    """

    length: int
    batch_size: int
    seed: int
    shuffle: bool
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    fillers: bool = True
    groups: Groups | None = None

    def __post_init__(self) -> None:
        for name in ("length", "batch_size", "world", "accumulate"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} gives no batches; it must be at least 1.")
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank={self.rank} is not one of the {self.world} processes, which count from 0.")
        if self.groups is not None and self.groups.length != self.length:
            raise DataError(f"Groups of {self.groups.length} samples do not fit a plan of {self.length}.")

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch; the last one has what is left."""
        return -(-self.length // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """``(length,)`` int64 on the host: the indices of all samples in the epoch's order. Not to be written to."""
        if self.groups is not None:
            return grouped_order(self.groups, self.batch_size, self.seed, epoch if self.shuffle else None)
        return _permutation(self.length, self.seed, epoch) if self.shuffle else torch.arange(self.length)

    def chunks(self, k: int) -> list[Chunk]:
        """This process's micro-batches of step ``k``, as positions in the epoch's order."""
        if not 0 <= k < self.steps:
            raise DataError(f"step {k} is not in an epoch of {self.steps} steps, which count from 0.")
        first = k * self.batch_size
        count = min(self.batch_size, self.length - first)
        parts = self.world * self.accumulate
        chunks = []
        for micro in range(self.accumulate):
            part = micro * self.world + self.rank  # one micro-step of all processes is one contiguous run
            start, stop = (first + count * p // parts for p in (part, part + 1))
            if stop > start:
                chunks.append(Chunk(start, stop, (stop - start) * self.world / count, part))
            elif self.fillers:
                chunks.append(Chunk(first, first + 1, 0.0, part))
        return chunks

    def step(self, epoch: int, k: int) -> list[tuple[Tensor, float]]:
        """This process's micro-batches of step ``k``: ``(n,)`` int64 indices and the weight of each."""
        order = self.order(epoch)
        return [(order[chunk.start : chunk.stop], chunk.weight) for chunk in self.chunks(k)]
