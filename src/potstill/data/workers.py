"""How many decode images at once, and who of a machine's processes begins where."""

import os

__all__ = ["decoding_workers", "turns"]


def decoding_workers(most: int = 8) -> int:
    """One worker a core that this process may use, up to ``most``: decoding saturates before that.

    The processes that ``torchrun`` started on this machine (``LOCAL_WORLD_SIZE``) share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def turns(count: int) -> list[int]:
    """The numbers from 0 to ``count - 1`` in the order in which this process does what each process has to do.

    The processes that ``torchrun`` started on this machine begin at different ones, so that where each keeps what it
    did, each finds what the others have done.

    Example:
        >>> turns(4)
        [0, 1, 2, 3]
    """
    first = count * int(os.environ.get("LOCAL_RANK", "0")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return [*range(first, count), *range(first)]
