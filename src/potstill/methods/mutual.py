"""Mutual learning as one term: what all peers of a student learn from the labels and from each other."""

from typing import Literal

from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.ce import ce
from potstill.methods.dml import Variant, dml
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["Mutual"]


@register("mutual")
class Mutual(Method):
    r"""Peers that learn together (DML); the objective is ce + mutual, with ``procedure.name=mutual``.

    .. math:: L = \sum_{k=1}^{K} L_{DML}(z_k, \{z_j\}_{j \ne k}) + \sum_{k=2}^{K} L_{CE}(z_k, y)

    The first network's cross entropy is the objective's own ``ce``. Every network's gradient is that of its own loss
    alone, since :func:`~potstill.methods.dml.dml` lets none reach the peers; one SGD or AdamW over all networks makes
    the same steps as one for each. All networks see the same batch and step at the same time, as in the paper; the
    authors' code lets them step one after another.

    Args:
        setting: the student, with the number of its peers.
        variant: see :func:`~potstill.methods.dml.dml`.

    Raises:
        RecipeError: for a student without peers.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018 (arXiv 1706.00384), section 3.
    """

    needs = Needs(student=frozenset({"logits", "peers"}), labels=True)

    def __init__(self, setting: Setting, *, variant: Literal["paper", "code"] = "paper") -> None:
        super().__init__()
        if not setting.peers:
            raise RecipeError(
                "mutual trains networks together, and the student has no peers: give procedure.name=mutual and "
                "procedure.peers=[MODEL, ...]."
            )
        self.variant: Variant = variant

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The sum over all networks; of a student alone (in evaluation) nothing."""
        logits = [student.logits, *student.peers]
        if len(logits) == 1 or batch.targets is None:
            return student.logits.new_zeros(())
        loss = student.logits.new_zeros(())
        for k, own in enumerate(logits):
            loss = loss + dml(own, logits[:k] + logits[k + 1 :], self.variant)
        for own in student.peers:
            loss = loss + ce(own, batch.targets)
        return loss
