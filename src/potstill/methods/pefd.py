"""Feature distillation through a projector ensemble (PEFD)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import cosine, unit
from potstill.methods.registry import register
from potstill.networks.features import Features
from potstill.projectors import Activation, Constraint, Init, ProjectorEnsemble

__all__ = ["PEFD", "pefd", "weight_similarity"]

Side = Literal["student", "teacher"]


def pefd(projected: Tensor, teacher_embedding: Tensor, eps: float = 1e-12) -> Tensor:
    r"""How far the projected student embeddings point from the teacher's: one minus the mean cosine.

    .. math:: L_{MDA} = 1 - \frac{1}{b} \sum_{i=1}^{b}
              \frac{\langle f(s_i), t_i \rangle}{\lVert f(s_i) \rVert \, \lVert t_i \rVert}

    with f the projector ensemble. Only directions count: neither norm does. No gradient reaches the teacher.

    Args:
        projected: f(s), ``(B, D)`` with the teacher's D, any floating dtype; computed in float32, or float64 where
            it is that.
        teacher_embedding: t, ``(B, D)``.
        eps: a vector shorter than this counts as zero: its cosine is 0 and so is its gradient. All other values are
            untouched by it.

    Returns:
        A scalar in [0, 2].

    Raises:
        NetworkError: for two different shapes.

    Source: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022 (arXiv 2210.15274),
    equation 4. The paper weights it with alpha = 25, which is ``beta`` on the command line of the authors' code. That
    code has no eps: there an embedding whose projection is all zero (every ReLU off) makes the loss NaN.

    Example:
        >>> pefd(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    return _one_minus_cosine(projected, teacher_embedding.detach(), eps)


def _one_minus_cosine(projected: Tensor, teacher_embedding: Tensor, eps: float = 1e-12) -> Tensor:
    if projected.shape != teacher_embedding.shape:
        raise NetworkError(
            f"pefd compares vectors of one shape, but the projected ones are {tuple(projected.shape)} and the "
            f"teacher's {tuple(teacher_embedding.shape)}."
        )
    return 1 - cosine(projected, teacher_embedding, eps).mean()


def weight_similarity(weights: Sequence[Tensor]) -> Tensor:
    r"""How alike the weights of the projectors of an ensemble are: the mean cosine between two of them.

    .. math:: R = \frac{1}{n} \sum_{l=1}^{n} \frac{1}{q (q - 1)} \sum_{j \ne k} \cos(W_{lj}, W_{lk})

    of the n layers' weights, each taken as one long vector. It is lowest, -1/(q-1), where they add up to zero.

    Args:
        weights: of each layer ``(q, out, in)`` with q of 2 or more, as :meth:`ProjectorEnsemble.weights` gives them,
            any floating dtype; computed in float32, or float64 where they are that.

    Returns:
        A scalar in [-1/(q-1), 1].

    Source: ours. The paper speaks of a regulariser for the projectors' diversity in a supplement that is not
    available, and the authors' code has none.

    Example:
        >>> weight_similarity([torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]])])
        tensor(0.3333)
    """
    found = []
    for weight in weights:
        directions = unit(weight.flatten(1))
        pairs = directions.sum(0).square().sum() - directions.square().sum()  # of the square of a sum, what is mixed
        found.append(pairs / (len(directions) * (len(directions) - 1)))
    return torch.stack(found).mean()


@register("pefd")
class PEFD(Method):
    """Projector ensemble and cosine loss on the embeddings; the paper's objective is ce + 25 pefd.

    Reads no logits, so any teacher will do: one of other classes, or a self-supervised one without a classifier. The
    ensemble trains with the student (same optimiser, same weight decay, as in the authors' code) and never ships.

    Args:
        setting: both networks.
        projectors: q; the paper's 3, or 0 for none where the dimensions are equal.
        depth: layers of each projector.
        width: hidden units as a multiple of the teacher's dimension.
        activation: after every layer.
        bias: as in the authors' code; the paper's equation has none.
        init: see :class:`~potstill.projectors.ProjectorEnsemble`.
        constraint: likewise.
        side: "student" is the paper's. "teacher" compares the student's embedding as it is with the teacher's,
            projected to its length; the paper tried it and found it worse.
        diversity: factor of :func:`weight_similarity`, which is added to the loss and presses the projectors' weights
            apart; like the rest of the loss it is multiplied by the term's weight.
            0 adds nothing. Ours: the paper speaks of such a regulariser in a supplement that is not available.

    Raises:
        RecipeError: for sizes that make no projector, values that have no effect, or no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))

    def __init__(
        self,
        setting: Setting,
        *,
        projectors: int = 3,
        depth: int = 1,
        width: int = 1,
        activation: Activation = "relu",
        bias: bool = True,
        init: Init = "default",
        constraint: Constraint | None = None,
        side: Side = "student",
        diversity: float = 0.0,
    ) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "pefd")
        _check(projectors, side, diversity)
        self.side = side
        self.diversity = diversity
        dims = [setting.student.embedding_dim, teacher.embedding_dim]
        d, m = dims if side == "student" else reversed(dims)
        self.projector = ProjectorEnsemble(d, m, projectors, depth, width, activation, bias, init, constraint)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        s, t = student.embedding, teacher_features(teacher, "pefd").embedding
        # The projection of the teacher is in the graph, or nothing would train its projectors; the teacher is not.
        loss = (
            pefd(self.projector(s), t) if self.side == "student" else _one_minus_cosine(s, self.projector(t.detach()))
        )
        return loss + self.diversity * weight_similarity(self.projector.weights()) if self.diversity else loss


def _check(projectors: int, side: str, diversity: float) -> None:
    sides = get_args(Side)
    if side not in sides:
        raise RecipeError(f"side is {side!r}; it is student or teacher.{nearest(str(side), sides)}")
    if side == "teacher" and not projectors:
        raise RecipeError("side='teacher' has no effect with projectors=0, which projects nothing; leave it out.")
    if not (math.isfinite(diversity) and diversity >= 0):
        raise RecipeError(f"diversity is {diversity}; expected a factor of 0 or more.")
    if diversity and projectors < 2:
        raise RecipeError(f"diversity={diversity} has no effect with projectors={projectors}; it compares two or more.")
