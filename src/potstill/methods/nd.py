"""Feature norm and direction: ND, the term that makes KD into KD++."""

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError
from potstill.methods.base import Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.methods.towards_means import Head, HeadInit, TowardsMeans, check_lengths, class_directions
from potstill.networks.features import Features

__all__ = ["ND", "nd"]


def nd(
    student_embedding: Tensor, teacher_embedding: Tensor, class_means: Tensor, targets: Tensor, eps: float = 1e-12
) -> Tensor:
    r"""How far the student's embeddings are from pointing to their class's mean at the teacher's norm or above.

    .. math:: L_{ND} = \frac{1}{b} \sum_{i=1}^{b} \left( 1 -
              \frac{\langle s_i, e_i \rangle}{\max(\lVert s_i \rVert, \lVert t_i \rVert)} \right),
              \qquad e_i = c_{y_i} / \lVert c_{y_i} \rVert

    with c the teacher's class means and t its embedding of the same image. Below the teacher's norm the gradient is
    ``-e / |t|``: it turns the embedding and lengthens it. From the teacher's norm on the term is ``1 - cos(s, e)``: the
    length no longer counts. The larger norm is part of the graph, and a tie is the student's, as in the authors' code.

    Args:
        student_embedding: s, ``(B, D)`` with the teacher's D, any floating dtype; computed in float32, or float64 where
            it is that.
        teacher_embedding: t, ``(B, D)``; no gradient reaches it.
        class_means: c, ``(C, D)``, not normalised.
        targets: ``(B,)`` integers below C; or ``(B, C)`` probabilities, where e_i is their mixture of the unit means
            and the loss therefore the same mixture of the classes' losses, its least value above 0.
        eps: where neither embedding is this long the cosine counts as 0, with gradient 0; so does a shorter mean's.
            All other values are untouched by it.

    Returns:
        A scalar in [0, 2].

    Raises:
        NetworkError: for shapes that do not belong together.

    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Direction and Norm", ECCV 2024
    (arXiv 2305.17007; there also "dino-loss"). The same value as ``DirectNormLoss`` of
    WangYZ1608/Knowledge-Distillation-via-ND, which loops over the samples and has no eps: two zero embeddings are NaN
    there. Its DeiT script mixes the means themselves and normalises the mixture.

    Example:
        >>> import torch
        >>> means, label = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> nd(student, teacher, means, label)  # the right direction, a fourth as long
        tensor(0.7500)
    """
    if student_embedding.shape != teacher_embedding.shape:
        raise NetworkError(
            f"nd compares embeddings of one shape, but the student's are {tuple(student_embedding.shape)} and the "
            f"teacher's {tuple(teacher_embedding.shape)}."
        )
    check_lengths("nd", student_embedding, class_means, targets)
    s, t = full_precision(student_embedding), full_precision(teacher_embedding.detach())
    s_norm, t_norm = torch.linalg.vector_norm(s, dim=-1), torch.linalg.vector_norm(t, dim=-1)
    longer = torch.where(t_norm > s_norm, t_norm, s_norm)  # torch.maximum would halve a tie's gradient
    nothing = longer < eps
    along = (s * class_directions(class_means, targets, eps)).sum(-1)
    # The inner mask keeps a division by zero out of the graph: masked outside only, it would still make NaN on the way.
    return 1 - torch.where(nothing, 0.0, along / torch.where(nothing, 1.0, longer)).mean()


@register("nd")
class ND(TowardsMeans):
    """Feature norm and direction as an objective's term; KD++ on ResNet32x4 -> ResNet8x4 is ce + 3.5 kd + 2 nd.

    Needs labels, and the teacher's mean embedding of each class before training starts. Where the embeddings differ in
    length a head trains with the student and never ships; the logits come from the embedding before it. With a head it
    is the norm behind it that is regularised, not the one that ships.

    Args:
        setting: both networks; the student with a classifier.
        head: ``BatchNorm1d -> Dropout -> Linear`` before the embeddings are compared; "auto": where their lengths
            differ, as in the authors' code.
        dropout: of the head.
        init: of the head; see :class:`~potstill.methods.towards_means.EmbeddingHead`.

    Raises:
        NetworkError: for embeddings of two lengths without a head, or a student without classes.
        RecipeError: for a value out of range or without effect, a batch of one image with a head, or no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}), labels=True, class_means=True)

    def __init__(
        self, setting: Setting, *, head: Head = "auto", dropout: float = 0.5, init: HeadInit = "default"
    ) -> None:
        super().__init__(setting, "nd", head, dropout, init)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        target = teacher_features(teacher, "nd").embedding
        return nd(self.brought(student), target, self.means(), self.targets(batch))
