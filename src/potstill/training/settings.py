"""What a loop is told, where its batches come from, and how it can end early."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from potstill.batch import Batch
from potstill.errors import RunError
from potstill.training.schedules import Schedule

__all__ = ["Loader", "NonFiniteLoss", "Settings", "Stopped"]


class Loader(Protocol):
    """Where batches come from."""

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches, a list for each step, from step ``start`` on."""


class Stopped(RunError):
    """The run was told to stop, and saved itself."""


class NonFiniteLoss(RunError):
    """A loss became infinite or NaN."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers of the loop; the recipe's fields of the same names say what each one is.

    Attributes:
        epochs: the epoch that this phase ends before; epochs and steps are counted through all phases of a run.
        begin: the epoch that it begins with; the learning rate's schedule runs from there to the end.
        phase: its name, as checkpoints know it.
        takes_objective: whether the objective goes on with the state that it had at the end of the phase before.
        graph: whether full steps run as one CUDA graph; its optimiser is made with ``recorded=True``.

    Raises:
        RunError: for a graph with float16, whose loss scale the host looks at in each step.
    """

    epochs: int
    begin: int = 0
    phase: str = "joint"
    takes_objective: bool = False
    seed: int = 0
    lr: float = 0.05
    schedule: Schedule = field(default_factory=Schedule)
    clip: float | None = None
    fp16: bool = False
    graph: bool = False
    log_every: int = 50
    shares_every: int = 500
    evaluate_every: int = 1
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        if self.graph and self.fp16:
            raise RunError(
                "graph=true and precision=fp16 do not go together: the host looks at fp16's loss scale in each "
                "step. Take precision=bf16, or graph=false."
            )
