"""From the times of a run's steps to sentences: which part takes the most, and which setting would help."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.training.clock import PARTS

__all__ = [
    "STEP_PARTS", "WORTH", "Advice", "Exchange", "StepTimes", "Trial", "advise", "conclude", "duration", "milliseconds",
    "too_small",
]  # fmt: skip

STEP_PARTS = tuple(part for part in PARTS if part != "evaluation")
"""The parts that a step has, of those of a run (:data:`potstill.training.clock.PARTS`)."""

WORTH = 0.03
"""A setting is advised where it saves more than this part of a step."""

_HOST_BOUND = 0.9  # of the time; busier than that, the host can hardly keep a GPU at work

# What people call the parts, and what is said of the largest.
_GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "data": (("data",), "Waiting for batches takes"),
    "teacher": (("teacher",), "The teacher's pass takes"),
    "student": (("forward", "backward"), "The student's own passes take"),
    "optimizer": (("optimizer",), "The optimiser's step takes"),
    "host": (("host",), "The loop itself (logging, measuring, saving) takes"),
}
_STORED = "Reading the teacher's store takes"


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Where the time of a step goes.

    Attributes:
        parts: milliseconds of each of :data:`STEP_PARTS`.
        low: the lower quartile of the whole step over the rounds, in milliseconds.
        high: the upper one.
        images: of a step, in the mean.
        host_busy: on a GPU, the part of the time that the host was at work and did not wait for it; None elsewhere.
        stored: whether the teacher's part is the reading of a store.
    """

    parts: Mapping[str, float]
    low: float
    high: float
    images: float
    host_busy: float | None = None
    stored: bool = False

    @property
    def ms(self) -> float:
        """Of the whole step."""
        return sum(self.parts.values())

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share; they sum to 1."""
        return {part: ms / self.ms for part, ms in self.parts.items()}

    @property
    def bottleneck(self) -> str:
        """The largest of ``data``, ``teacher``, ``student`` (forward and backward), ``optimizer`` and ``host``."""
        return max(_GROUPS, key=self.share_of)

    def share_of(self, group: str) -> float:
        """The share of one of these."""
        return sum(self.shares.get(part, 0.0) for part in _GROUPS[group][0])


@dataclass(frozen=True, slots=True)
class Exchange:
    """Some parts of a step, timed as they are and as another setting has them, in the same rounds.

    Attributes:
        parts: of the step.
        now: milliseconds in each round.
        then: likewise, with the other setting.
    """

    parts: tuple[str, ...]
    now: tuple[float, ...]
    then: tuple[float, ...]

    def ratios(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of ``then / now`` over the rounds.

        Example:
            >>> Exchange(("teacher",), now=(4.0, 4.0, 8.0, 4.0, 4.0), then=(2.0, 2.0, 4.0, 1.0, 3.0)).ratios()
            (0.5, 0.5, 0.5)
        """
        found = [then / now for now, then in zip(self.now, self.then, strict=True)]
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        return low, middle, high


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting: as a command line has it.
        exchanges: what of a step it changes.
        changes: what is computed otherwise with it, in words; empty where nothing is.
        once: what has to be made beforehand, in words; empty where nothing has.
        once_seconds: how long that takes.
    """

    setting: str
    exchanges: tuple[Exchange, ...]
    changes: str = ""
    once: str = ""
    once_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Advice:
    """What a setting would bring.

    Attributes:
        trial: the setting.
        now_ms: a step as it is, in milliseconds.
        step_ms: a step with the setting, predicted.
        low: the same by the lower quartile of what was timed.
        high: by the upper one.
        pays_from: the number of epochs from which on what has to be made beforehand has paid for itself; 0 where
            nothing has to be made, None where it never does.
        epochs: how many the run has.
    """

    trial: Trial
    now_ms: float
    step_ms: float
    low: float
    high: float
    pays_from: int | None
    epochs: int

    @property
    def times(self) -> float:
        """How many times as fast a step would be."""
        return self.now_ms / self.step_ms

    @property
    def faster(self) -> bool:
        """Whether it saves more than :data:`WORTH`, and by the less favourable quartile anything at all."""
        return self.step_ms < (1 - WORTH) * self.now_ms and self.high < self.now_ms

    @property
    def advised(self) -> bool:
        """Whether it is faster and pays in this run."""
        return self.faster and self.pays_from is not None and self.pays_from <= self.epochs

    @property
    def sentence(self) -> str:
        """All of it."""
        trial, pays = self.trial, self.pays_from
        once = f" ({trial.once}, {duration(trial.once_seconds)})" if trial.once else ""
        times = f"{self.times:.1f}" if self.times >= 1.95 else f"{self.times:.2f}"
        said = (
            f"{trial.setting}{once} would bring a step from {milliseconds(self.now_ms)} to "
            f"{milliseconds(self.step_ms)}: {times} times as fast"
        )
        if trial.once:
            said += "; it never pays" if pays is None else f"; pays from {pays:,} epoch{'s' if pays > 1 else ''} on"
            said += f", and this run has {self.epochs:,}" if pays is not None and pays > self.epochs else ""
        return f"{said}. It changes what is computed: {trial.changes}." if trial.changes else f"{said}."


def advise(step: StepTimes, trials: Sequence[Trial], epochs: int, steps: int) -> list[Advice]:
    r"""What each trial would bring, the best first.

    A step is predicted with the parts that the setting changes exchanged, each by the ratio that was timed:

    .. math:: t' = t + \sum_p t_p (r_p - 1), \quad r_p = \text{median}(\text{then}_p / \text{now}_p)

    Args:
        step: as it is.
        trials: what was timed beside it.
        epochs: of the whole run.
        steps: of an epoch.

    Example:
        >>> step = StepTimes({"teacher": 60.0, "forward": 20.0, "backward": 20.0}, low=99, high=101, images=64)
        >>> bf16 = Trial("teacher.precision=bf16", (Exchange(("teacher",), (50.0,) * 5, (25.0,) * 5),))
        >>> (found,) = advise(step, [bf16], epochs=10, steps=100)
        >>> found.advised, found.sentence
        (True, 'teacher.precision=bf16 would bring a step from 100 ms to 70.0 ms: 1.43 times as fast.')
    """
    found = []
    for trial in trials:
        low, middle, high = (_predicted(step, trial, quartile) for quartile in range(3))
        saved = (step.ms - middle) / 1000 * steps  # seconds an epoch
        pays = 0 if not trial.once else math.ceil(trial.once_seconds / saved) if saved > 0 else None
        found.append(Advice(trial, step.ms, middle, low, high, pays, epochs))
    return sorted(found, key=lambda advice: advice.step_ms)


def conclude(step: StepTimes, advice: Sequence[Advice]) -> list[str]:
    """The sentences for people: what takes the time, what helps, and what would in a longer run.

    Args:
        step: as it is.
        advice: of :func:`advise`.
    """
    largest = step.bottleneck
    takes = _STORED if step.stored and largest == "teacher" else _GROUPS[largest][1]
    share = f"{takes} {100 * step.share_of(largest):.0f} %"
    helpful = [one.sentence for one in advice if one.advised]
    if helpful:
        said = [f"{share} of a step.", *helpful]
    else:
        tried = "no setting tried helps" if advice else "there was no setting to try that helps"
        said = [f"{share}; {tried} by more than {100 * WORTH:.0f} %."]
    if step.host_busy is not None and step.host_busy > _HOST_BOUND:
        said.append(
            f"The host is at work for {100 * step.host_busy:.0f} % of the time, so the GPU waits for it: larger pieces "
            "of work help it, as graph=true, compile=true or a larger batch_size make them."
        )
    return said + [one.sentence for one in advice if one.faster and not one.advised]


def too_small(batch_size: int, twice: Exchange | None) -> list[str]:
    """A sentence where the batch does not fill the machine; what size trains well is another question.

    Args:
        batch_size: images of a step.
        twice: an image's time in such batches, and in batches of twice as many; None where that was not tried.

    Example:
        >>> too_small(64, Exchange(("forward",), now=(2.0,) * 5, then=(1.5,) * 5))
        ['A batch of 64 does not fill the machine: in one of 128 an image takes 25 % less time. ...']
    """
    _, middle, high = twice.ratios() if twice else (1.0, 1.0, 1.0)
    if middle >= 1 - WORTH or high >= 1:
        return []
    return [
        f"A batch of {batch_size} does not fill the machine: in one of {2 * batch_size} an image takes "
        f"{100 * (1 - middle):.0f} % less time. Whether the student learns as well from it is another question."
    ]


def _predicted(step: StepTimes, trial: Trial, quartile: int) -> float:
    saved = (
        (1 - exchange.ratios()[quartile]) * sum(step.parts.get(part, 0.0) for part in exchange.parts)
        for exchange in trial.exchanges
    )
    return step.ms - sum(saved)


def milliseconds(ms: float) -> str:
    """Three digits, or all before the point.

    Example:
        >>> milliseconds(1234.5), milliseconds(140.2), milliseconds(1.234)
        ('1,234 ms', '140 ms', '1.23 ms')
    """
    return f"{ms:,.0f} ms" if ms >= 99.95 else f"{ms:#.3g} ms"


def duration(seconds: float) -> str:
    """In the largest unit of which there are two.

    Example:
        >>> duration(34 * 60), duration(7.4), duration(0.2), duration(7300), duration(400_000)
        ('34 min', '7 s', '0.2 s', '2.0 h', '4.6 days')
    """
    for unit, size, form in (("days", 86_400, ".1f"), ("h", 3600, ".1f"), ("min", 60, ".0f")):
        if seconds >= 2 * size:
            return f"{seconds / size:{form}} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
