"""Probabilistic knowledge transfer (Passalis and Tefas)."""

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, gram
from potstill.methods.registry import register
from potstill.methods.relations import check_pairs, check_rows
from potstill.networks.features import Features

__all__ = ["PKT", "pkt"]


def pkt(student_embedding: Tensor, teacher_embedding: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Divergence of the student's neighbourhoods in the batch from the teacher's.

    .. math:: L_{PKT} = \frac{1}{b^2} \sum_{i,j} p^t_{ij} \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \qquad
              p_{ij} = \frac{K_{ij}}{\sum_{k} K_{ik}}, \qquad
              K_{ij} = \frac{1}{2} \left( 1 + \frac{\langle x_i, x_j \rangle}
              {(\lVert x_i \rVert + \epsilon)(\lVert x_j \rVert + \epsilon)} \right)

    Only directions count. An image is a neighbour of itself, and the mean is over all b² pairs, not over images. No
    gradient reaches the teacher.

    Args:
        student_embedding: ``(B, D_s)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedding: ``(B, D_t)``.
        eps: added to lengths and in the logarithm. A vector shorter than it counts as zero: as near to every other as
            at a right angle, with gradient zero.

    Returns:
        A scalar; 0 for a batch of one image.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (arXiv 1803.10837), with the kernel of the cosine. The same value as in RepDistiller's ``PKT.py``, where an all-zero
    student vector makes the gradients NaN.

    Example:
        >>> pkt(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]]))
        tensor(0.0294)
    """
    check_rows(student_embedding, teacher_embedding, "pkt")
    p_s, p_t = _neighbours(student_embedding, eps), _neighbours(teacher_embedding.detach(), eps)
    return (p_t * ((p_t + eps) / (p_s + eps)).log()).mean()


def _neighbours(x: Tensor, eps: float) -> Tensor:
    x = full_precision(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    zero = length < eps
    x = x * torch.where(zero, 0.0, 1.0 / (torch.where(zero, 1.0, length) + eps))
    # The floor is for products that are rounded coarsely (TF32): below 0 the logarithm would be NaN.
    similarity = ((gram(x) + 1) / 2).clamp_min(0)
    return similarity / similarity.sum(1, keepdim=True)


@register("pkt")
class PKT(Method):
    """Neighbourhoods in the batch by the cosine of embeddings; the common objective is ce + 30000 pkt.

    Args:
        setting: both networks, with embeddings of any lengths.

    Raises:
        RecipeError: for no teacher, or a batch of one image.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        teacher_spec(setting, "pkt")
        check_pairs(setting, "pkt")

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        return pkt(student.embedding, teacher_features(teacher, "pkt").embedding)
