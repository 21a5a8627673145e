"""How many decode images at once."""

import os

__all__ = ["decoding_workers"]


def decoding_workers(most: int = 8) -> int:
    """One worker a core that this process may use, up to ``most``: decoding saturates before that.

    The processes that ``torchrun`` started on this machine (``LOCAL_WORLD_SIZE``) share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
