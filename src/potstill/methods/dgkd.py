"""Densely guided distillation: softened logits of the teacher and of every assistant (DGKD)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.kd import kd
from potstill.methods.pairs import common_classes
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["DGKD", "dgkd"]


def dgkd(student_logits: Tensor, teachers_logits: Sequence[Tensor], temperature: float = 5.0, drop: int = 0) -> Tensor:
    r"""The sum of the divergences from several teachers, some of them left out at random.

    .. math:: L = \sum_{k \in K'} L_{KD}(z_s, z_k)

    where K' are all teachers but ``drop`` of them, drawn anew in each call from torch's generator. Nothing waits for
    the device.

    Args:
        student_logits: ``(B, C)``, any floating dtype; computed in float32, or float64 where it is that.
        teachers_logits: of the teacher and the assistants, each ``(B, C)``. No gradient reaches them.
        temperature: T > 0; 5 in the authors' code.
        drop: how many to leave out, below the number of teachers; 1 in the authors' code, 0 for none.

    Returns:
        A scalar.

    Raises:
        RecipeError: for no teachers, or as many left out as there are.
        NetworkError: for logits of two shapes.

    Source: Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021;
    ``train.py`` of wonchulSon/DGKD, whose ``KLDivLoss`` averages over classes too, which makes its term C times smaller
    than this one.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> torch.equal(dgkd(z, [z, z]), torch.zeros(()))
        True
    """
    teachers = list(teachers_logits)
    if not 0 <= drop < max(1, len(teachers)) or not teachers:
        raise RecipeError(
            f"dgkd leaves out {drop} of {len(teachers)} teachers; at least one has to stay, so give a smaller drop."
        )
    terms = torch.stack([kd(student_logits, logits, temperature) for logits in teachers])
    if drop:
        kept = torch.rand(len(teachers), device=terms.device).argsort() >= drop
        terms = torch.where(kept, terms, 0.0)
    return terms.sum()


@register("dgkd")
class DGKD(Method):
    """The teacher and all assistants at once; ``procedure.name=assistants`` with ``dense`` trains those one by one.

    The authors' defaults give the cross entropy the weight 0: their objective is dgkd alone.

    Args:
        setting: both networks, with the same classes.
        temperature: T > 0; 5 in the authors' code.
        drop: how many teachers to leave out of each step; 1 in the authors' code. With a teacher and no assistants
            none is left out.

    Raises:
        NetworkError: where the classes differ or a network has none.
        RecipeError: for a temperature or a number out of range, or no teacher.
    """

    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits", "peers"}))

    def __init__(self, setting: Setting, *, temperature: float = 5.0, drop: int = 1) -> None:
        super().__init__()
        common_classes(setting, "dgkd")
        if temperature <= 0 or drop < 0:
            raise RecipeError(f"dgkd got temperature={temperature} and drop={drop}; give T > 0 and drop 0 or more.")
        self.temperature, self.drop = temperature, drop

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The divergences of the batch's logits; nothing is left out while the student is evaluated."""
        seen = teacher_features(teacher, "dgkd")
        logits = [seen.logits, *seen.peers]
        drop = min(self.drop, len(logits) - 1) if self.training else 0
        return dgkd(student.logits, logits, self.temperature, drop)
