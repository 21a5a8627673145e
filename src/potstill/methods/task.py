"""A network's own losses as a term: what a detector learns from boxes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["Task", "task"]


def task(losses: Mapping[str, Tensor], parts: Mapping[str, float] | None = None) -> Tensor:
    r"""The sum of a network's own losses.

    .. math:: L = \sum_k a_k L_k

    Args:
        losses: by name, each a scalar; in float32 here, or float64 where it is that.
        parts: a, by name; a loss that is not named has the factor 1.

    Returns:
        A scalar.

    Raises:
        NetworkError: for no losses.
        RecipeError: for a factor of a loss that there is not, and where the factors leave nothing.

    Example:
        >>> task({"boxes": torch.tensor(1.0), "classes": torch.tensor(2.0)}, {"classes": 0.5})
        tensor(2.)
    """
    if not losses:
        raise NetworkError(
            "task is the sum of a network's own losses, and this student has none: it is for detectors "
            "(task=detection). Take ce for a classifier."
        )
    factors = dict.fromkeys(losses, 1.0) | dict(parts or {})
    for name in factors:
        if name not in losses:
            raise RecipeError(
                f"parts of task has a factor for {name!r}, which is none of the network's losses."
                f"{nearest(name, losses)} There are {', '.join(losses)}."
            )
    if not any(factors.values()):
        raise RecipeError(f"parts of task multiplies every loss by 0 ({', '.join(losses)}); take task out instead.")
    return torch.stack([factors[name] * full_precision(losses[name]) for name in losses if factors[name]]).sum()


@register("task")
class Task(Method):
    """The network's own losses, summed; of a detector those of its proposals, classes and boxes.

    What ``ce`` is to a classifier: weight 1 beside whatever is distilled, and the only term of the control. It trains
    nothing of its own and reads no teacher.

    Args:
        setting: the student; its losses are known once it trains.
        parts: a factor by a loss's name, 0 or more; the others have 1. A name that there is not is refused in the first
            step, with those that there are.

    Raises:
        RecipeError: for a factor that is no number of 0 or more.
    """

    needs = Needs(student=frozenset({"losses"}), labels=True)

    def __init__(self, setting: Setting, *, parts: Mapping[str, float] | None = None) -> None:
        super().__init__()
        for name, factor in (parts or {}).items():
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not (number and math.isfinite(factor) and factor >= 0):
                raise RecipeError(f"parts of task has {name}: {factor!r}; expected a factor of 0 or more.")
        self.parts = dict(parts or {})

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The sum of the losses that came with the pass."""
        return task(student.losses, self.parts)
