"""What a method's own modules learn before it teaches the student."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.methods.base import Known, Method, Needs
from potstill.methods.objective import Objective, in_full
from potstill.networks.features import Features

__all__ = ["Pretrained", "Pretraining", "opened", "pretrained_methods"]


@runtime_checkable
class Pretrained(Protocol):
    """A method with modules that learn from the teacher alone first (FT's paraphraser)."""

    pretrains: tuple[str, ...]

    def pretraining_loss(self, teacher: Features) -> Tensor:
        """What they are trained on, a scalar."""


def pretrained_methods(objective: Objective) -> dict[str, Pretrained]:
    """The methods of an objective that have something to learn first, by name."""
    return {name: method for name, method in objective.methods.items() if isinstance(method, Pretrained)}


class Pretraining(Objective):
    """An objective's own preparation: the sum of what its methods' modules learn from the teacher alone.

    It shares the methods of the objective that follows, so that their state dicts have the same names.

    Args:
        objective: the one that follows; it has a method at least that is :class:`Pretrained`.
    """

    def __init__(self, objective: Objective) -> None:
        nn.Module.__init__(self)
        self.pretrained = pretrained_methods(objective)
        self.weights = dict.fromkeys(self.pretrained, 1.0)
        self.warmups = dict.fromkeys(self.pretrained, 0)
        self.epoch = 0
        self.terms = objective.terms

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that learn something first, by name."""
        return {name: self.terms[name] for name in self.weights}  # type: ignore[misc]

    @property
    def needs(self) -> Needs:
        """What they read of the teacher; of the student nothing."""
        whole = Needs()
        for method in self.methods.values():
            whole = whole | method.needs
        return Needs(teacher=whole.teacher)

    def open(self, training: bool) -> None:
        """Let the modules learn, or close them for good."""
        for name, method in self.methods.items():
            for module in self.pretrained[name].pretrains:
                method.get_submodule(module).requires_grad_(training)

    def prepare(self, known: Known) -> None:
        """Nothing: the objective that follows is told itself."""

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Each method's loss by name, and their sum as ``"total"``."""
        if teacher is None:
            raise ValueError("A pretraining reads the teacher's features; it was given none.")
        with torch.autocast(teacher.embedding.device.type, enabled=False):
            teacher = in_full(teacher, self.needs.teacher)
            losses: Mapping[str, Tensor] = {
                name: method.pretraining_loss(teacher) for name, method in self.pretrained.items()
            }
        return {**losses, "total": sum(losses.values(), start=next(iter(losses.values())) * 0)}


@contextmanager
def opened(objective: Objective) -> Iterator[None]:
    """What an objective trains before the student may learn here; of every other objective nothing is changed."""
    if not isinstance(objective, Pretraining):
        yield
        return
    objective.open(True)
    try:
        yield
    finally:
        objective.open(False)
