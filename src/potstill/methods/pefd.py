"""Feature distillation through a projector ensemble (PEFD)."""

from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import cosine
from potstill.methods.registry import register
from potstill.networks.features import Features
from potstill.projectors import Activation, Init, ProjectorEnsemble

__all__ = ["PEFD", "pefd"]


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
        >>> import torch
        >>> pefd(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    if projected.shape != teacher_embedding.shape:
        raise NetworkError(
            f"pefd compares vectors of one shape, but the projected ones are {tuple(projected.shape)} and the "
            f"teacher's {tuple(teacher_embedding.shape)}."
        )
    return 1 - cosine(projected, teacher_embedding.detach(), eps).mean()


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

    Raises:
        RecipeError: for sizes that make no projector, or no teacher.
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
    ) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "pefd")
        self.projector = ProjectorEnsemble(
            setting.student.embedding_dim, teacher.embedding_dim, projectors, depth, width, activation, bias, init
        )

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        return pefd(self.projector(student.embedding), teacher_features(teacher, "pefd").embedding)
