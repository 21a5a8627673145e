"""Where a run's time goes: every moment of it belongs to one part."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

__all__ = ["PARTS", "Clock", "Mark"]

PARTS = ("data", "teacher", "forward", "backward", "optimizer", "graph", "host", "evaluation")
"""Waiting for a batch; the teacher's pass or the store's rows; student and objective; their backward pass; clipping,
the optimiser's step and the weights' average; a step that runs as one CUDA graph, from its images to the optimiser;
logging, measuring, saving and the loop itself; evaluation."""


class Mark(Protocol):
    """A place in a device's queue, as a ``torch.cuda.Event`` that was recorded with its time."""

    def synchronize(self) -> None:
        """Wait until the device has come there."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds that the device took from there to a later mark; both have been passed."""


class Clock:
    """Divides the time since :meth:`start` among the parts: each :meth:`lap` gives what has passed to one of them.

    On a CUDA device the host runs ahead, so a lap also puts a mark into the device's queue, and a part is what the
    device took between two marks, with its waits for the host. The marks are read where the host waits anyway
    (:meth:`read`); a lap itself never waits. Elsewhere the host's own watch counts.

    Args:
        device: where the run computes.
        mark: puts a mark into the device's queue; None for a CUDA event on the current stream.

    Attributes:
        launching: seconds that the host worked on steps beside a CUDA device and did not wait for it in :meth:`read`;
            evaluation is left out. 0 on a CPU, which is always at work.
        wall: seconds that the laps cover, by the host's watch.

    Example:
        >>> clock = Clock(torch.device("cpu"))
        >>> clock.start()
        >>> clock.lap("data")
        >>> clock.lap("forward")
        >>> [part for part, seconds in clock.read().items() if seconds > 0]
        ['data', 'forward']
    """

    def __init__(self, device: torch.device, mark: Callable[[], Mark] | None = None) -> None:
        self._device = device
        self._on_device = device.type == "cuda"
        self._new_mark = mark or self._event
        self._totals = dict.fromkeys(PARTS, 0.0)
        self._seen = dict(self._totals)
        self._marks: list[tuple[str | None, Mark]] = []
        self._since = time.perf_counter()
        self._within = False  # a part that counts as a whole
        self.launching = self.wall = 0.0

    def start(self) -> None:
        """Begin to count, or go on after what is not this run's time."""
        self._since = time.perf_counter()
        if self._on_device:
            self._marks.append((None, self._new_mark()))

    def lap(self, part: str) -> None:
        """Give the time since the last lap to a part; on a GPU the host's time is kept apart from the device's."""
        if self._within:
            return
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        self.wall += passed
        if not self._on_device:
            self._totals[part] += passed
            return
        if part != "evaluation":
            self.launching += passed
        self._marks.append((part, self._new_mark()))

    @contextmanager
    def whole(self, part: str) -> Iterator[None]:
        """Give all that happens within to one part, whatever laps it takes: a recorded step has no marks inside."""
        self._within = True
        try:
            yield
        finally:
            self._within = False
        self.lap(part)

    def totals(self) -> dict[str, float]:
        """Seconds of each part since the run began. Waits for the device, which is not the host's work."""
        if self._marks:
            self._marks[-1][1].synchronize()
            for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
                if part is not None:
                    self._totals[part] += before.elapsed_time(after) / 1000
            del self._marks[:-1]
            now = time.perf_counter()
            self.wall += now - self._since
            self._since = now
        return dict(self._totals)

    def read(self) -> dict[str, float]:
        """Seconds of each part since it was last read. Waits likewise."""
        totals = self.totals()
        found = {part: totals[part] - self._seen[part] for part in PARTS}
        self._seen = totals
        return found

    def restore(self, totals: Mapping[str, float]) -> None:
        """Take up the :meth:`totals` of an interrupted run."""
        self._totals = {part: float(totals[part]) for part in PARTS}
        self._seen = dict(self._totals)

    def _event(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # of the run's device, which need not be the current one
        return event
