"""Correlation congruence (Peng et al.): the form of the published code, and the paper's."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, gram, unit
from potstill.methods.registry import register
from potstill.methods.relations import check_pairs, check_rows
from potstill.networks.features import Features

__all__ = ["CC", "cc", "cc_kernel"]

Variant = Literal["code", "paper"]


def cc(student_embedded: Tensor, teacher_embedded: Tensor) -> Tensor:
    r"""The differences of two networks' embedded vectors, multiplied with those of the next image of the batch.

    .. math:: L = \frac{1}{b - 1} \sum_{i=1}^{b-1} \sum_{d=1}^{E} \delta_{id} \, \delta_{i+1,d}, \qquad
              \delta_i = \lvert E_s s_i - E_t t_i \rvert

    The value depends on the order of the batch, which is shuffled in training. The teacher's side is not detached
    here: its embedding is trained. Detach what goes into that embedding.

    Args:
        student_embedded: ``(B, E)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedded: ``(B, E)``.

    Returns:
        A scalar; 0 for a batch of one image.

    Raises:
        NetworkError: for two different shapes.

    Source: RepDistiller, ``CC.py``, the same value. It is not the loss of the paper: see :func:`cc_kernel`.

    Example:
        >>> cc(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor(4.)
    """
    if student_embedded.shape != teacher_embedded.shape:
        raise NetworkError(
            f"cc compares vectors of one shape, but the student's are {tuple(student_embedded.shape)} and the "
            f"teacher's {tuple(teacher_embedded.shape)}."
        )
    difference = (full_precision(student_embedded) - full_precision(teacher_embedded)).abs()
    return (difference[:-1] * difference[1:]).sum() / max(difference.shape[0] - 1, 1)


def cc_kernel(student_embedding: Tensor, teacher_embedding: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    r"""How far apart the two networks' correlations between the images of a batch are, by an expanded Gaussian kernel.

    .. math:: L_{CC} = \frac{1}{b^2} \lVert K^s - K^t \rVert_F^2, \qquad
              K_{ij} = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} \langle x_i, x_j \rangle^p

    which for vectors x of length 1 is the Taylor series of :math:`\exp(-\gamma \lVert x_i - x_j \rVert^2)`: they are
    scaled to that length first. No gradient reaches the teacher, and the two embeddings may differ in length.

    Args:
        student_embedding: ``(B, D_s)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedding: ``(B, D_t)``.
        gamma: of the kernel, above 0; the paper's 0.4.
        order: P, the highest power; the paper's 2.

    Returns:
        A scalar.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (arXiv 1904.01802). Unlike
    torchdistill's form, which leaves the vectors' lengths as they are and takes the norm of the difference without
    its square.

    Example:
        >>> cc_kernel(torch.eye(2), torch.ones(2, 3))
        tensor(0.1266)
    """
    check_rows(student_embedding, teacher_embedding, "cc")
    k_s = _kernel(student_embedding, gamma, order)
    k_t = _kernel(teacher_embedding.detach(), gamma, order)
    return (k_s - k_t).square().mean()


def _kernel(x: Tensor, gamma: float, order: int) -> Tensor:
    products = gram(unit(x))
    coefficients = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    kernel = torch.full_like(products, coefficients.pop())
    while coefficients:  # by Horner's rule
        kernel = kernel * products + coefficients.pop()
    return kernel


@register("cc")
class CC(Method):
    """Correlation congruence on the embeddings; the common objective is ce + 0.02 cc.

    ``variant="code"`` is what CC means in RepDistiller's table and what is compared with elsewhere, so it is the
    default: :func:`cc` of two trained embeddings, ``Linear(D_s -> dim)`` and ``Linear(D_t -> dim)``. ``"paper"`` is
    :func:`cc_kernel` on the embeddings as they are, with nothing to train.

    Args:
        setting: both networks, with embeddings of any lengths.
        variant: "code" or "paper".
        dim: E, of the two trained embeddings of "code"; 128 in RepDistiller.
        gamma: of the kernel of "paper", above 0.
        order: P of the kernel of "paper", 1 or more.

    Raises:
        RecipeError: for a value out of its range or of the other variant, no teacher, or a batch of one image.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))

    def __init__(
        self, setting: Setting, *, variant: Variant = "code", dim: int = 128, gamma: float = 0.4, order: int = 2
    ) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "cc")
        check_pairs(setting, "cc")
        _check(variant, dim, gamma, order)
        self.variant = variant
        self.gamma = gamma
        self.order = order
        if variant == "code":
            self.embed_s = nn.Linear(setting.student.embedding_dim, dim)
            self.embed_t = nn.Linear(teacher.embedding_dim, dim)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        taught = teacher_features(teacher, "cc").embedding.detach()
        if self.variant == "paper":
            return cc_kernel(student.embedding, taught, self.gamma, self.order)
        return cc(self.embed_s(student.embedding), self.embed_t(taught))


def _check(variant: str, dim: int, gamma: float, order: int) -> None:
    variants = get_args(Variant)
    if variant not in variants:
        raise RecipeError(f"variant is {variant!r}; it is code or paper.{nearest(variant, variants)}")
    if dim < 1:
        raise RecipeError(f"dim is {dim}; expected 1 or more, such as 128.")
    if not (math.isfinite(gamma) and gamma > 0):
        raise RecipeError(f"gamma is {gamma}; expected a positive number, such as 0.4.")
    if order < 1:
        raise RecipeError(f"order is {order}; expected 1 or more, such as 2.")
    if variant == "paper" and dim != 128:
        raise RecipeError(f"dim={dim} has no effect with variant='paper', which embeds nothing; leave it out.")
    if variant == "code" and (gamma, order) != (0.4, 2):
        raise RecipeError(f"gamma={gamma}, order={order} have no effect with variant='code'; leave them out.")
