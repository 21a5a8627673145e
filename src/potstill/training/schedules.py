"""The learning rate as a pure function of how far the run is: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule"]

_ONECYCLE_WARMUP = 0.3  # of the run, as PyTorch's OneCycleLR has it
_ONECYCLE_START = 0.04  # of the peak, likewise
_SLACK = 1e-9  # a drop at epoch 150 of 240 falls on that epoch's first step whatever the fraction's rounding


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the peak learning rate is multiplied with at each step.

    Attributes:
        name: "step" (times ``factor`` at each of ``drops``), "cosine" (to ``final``), "onecycle" (cosine up, then
            cosine down to ``final``) or "constant".
        drops: parts of the run at which the rate drops; the papers' epochs 150, 180 and 210 of 240.
        factor: what a drop multiplies the rate with; the papers' 0.1.
        warmup: part of the run over which the rate rises linearly from 0; for "onecycle" the part that rises,
            0 meaning 0.3.
        final: the last rate of "cosine" and "onecycle", as a part of the peak.

    Example:
        >>> schedule = Schedule()
        >>> [round(schedule(epoch, 240), 4) for epoch in (0, 149, 150, 180, 210)]
        [1.0, 1.0, 0.1, 0.01, 0.001]
    """

    name: Literal["step", "cosine", "onecycle", "constant"] = "step"
    drops: tuple[float, ...] = (0.625, 0.75, 0.875)
    factor: float = 0.1
    warmup: float = 0.0
    final: float = 0.0

    def __call__(self, step: int, total: int) -> float:
        """The factor at one of ``total`` steps, counted from 0."""
        progress = step / total
        if self.name == "onecycle":
            peak = self.warmup or _ONECYCLE_WARMUP
            if progress < peak:
                return _cosine(_ONECYCLE_START, 1.0, progress / peak)
            return _cosine(1.0, self.final, (progress - peak) / (1 - peak))
        if progress < self.warmup:
            return (step + 1) / (self.warmup * total + 1)
        if self.name == "cosine":
            return _cosine(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))
        if self.name == "step":
            return self.factor ** sum(progress >= drop - _SLACK for drop in self.drops)
        return 1.0


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
