"""Being told to stop: finish the step, save, and say how to go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "watching"]


class Interrupt:
    """Whether the process was told to stop (SIGTERM, or Ctrl-C once)."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def watching() -> Iterator[Interrupt]:
    """Turn SIGTERM and the first Ctrl-C into a flag for the loop to read; the second Ctrl-C stops at once.

    Outside the main thread, where Python takes no signals, the flag simply stays down.
    """
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupt:
            raise KeyboardInterrupt
        interrupt.signal = signal.Signals(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        before = {}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
