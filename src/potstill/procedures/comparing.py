"""Timing several things beside each other, so that what disturbs the machine disturbs all of them."""

import time
from collections.abc import Callable, Mapping

import torch

from potstill.data.workers import decoding_workers
from potstill.procedures.rehearsal import Round
from potstill.training.settings import NonFiniteLoss

__all__ = ["FEWEST", "Make", "Take", "interleaved", "other_threads", "threaded"]

Take = Callable[[int], Round]
"""Takes some steps."""

Make = Callable[[], Take]
"""Builds what takes them."""

FEWEST, MOST = 5, 15
"""Rounds of a comparison."""


def interleaved(contenders: Mapping[str, Take], steps: int, seconds: float) -> dict[str, list[Round]]:
    """Rounds of all contenders in turn, each time beginning with another one: at least five.

    Args:
        contenders: takes some steps, by name.
        steps: of each in a round.
        seconds: after which no further round begins.
    """
    names, began = list(contenders), time.perf_counter()
    found: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(MOST):
        if not names or (number >= FEWEST and time.perf_counter() - began > seconds):
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            try:
                found[name].append(contenders[name](steps))
            except NonFiniteLoss:  # fp16, say: of numbers that are none no time is worth knowing
                names.remove(name)
                del found[name]
    return found


def other_threads() -> list[int]:
    """1, 2, 4 and so on, and all cores; without as many as there are now."""
    cores = decoding_workers(most=1 << 20)
    return sorted({cores, *(1 << power for power in range((cores - 1).bit_length()))} - {torch.get_num_threads()})


def threaded(count: int, make: Make) -> Make:
    """The same with another number of PyTorch's threads, which it leaves as it finds them."""

    def made() -> Take:
        take = make()

        def counted(steps: int) -> Round:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            try:
                return take(steps)
            finally:
                torch.set_num_threads(before)

        return counted

    return made
