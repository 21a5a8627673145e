"""How worker processes are fed: what they are asked for, how they start, and how they end."""

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from potstill.data.order import Plan

__all__ = ["Key", "Keys", "start_worker", "stop_workers"]

Key = tuple[list[int], list[int]]
"""The numbers of samples and of views; a tensor would cost a shared file each time."""


class Keys(Sampler[Key]):
    """What the workers are asked for, in order: the micro-batches of an epoch from step ``start`` on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = self.view = self.start = 0

    def __iter__(self) -> Iterator[Key]:
        order, view = self.plan.order(self.epoch), self.view
        for k in range(self.start, self.plan.steps):
            for chunk in self.plan.chunks(k):
                yield order[chunk.start : chunk.stop].tolist(), [view]


def start_worker(number: int) -> None:
    """Leave being told to stop to the main process, which saves first and then stops its workers itself.

    Ctrl-C, ``timeout`` and cluster schedulers signal the whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stop_workers(decoded: Iterator[Any]) -> None:
    """End an iterator's worker processes, if it has any, in the orderly way that PyTorch has for it.

    At the end of the process they would be told by a signal, which they leave to the main process, and be waited for.
    """
    if (stop := getattr(decoded, "_shutdown_workers", None)) is not None:
        stop()
