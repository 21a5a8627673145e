"""The norm alone: the student's feature norms towards the teacher's, upwards by steps, or towards a number."""

import math

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["HAFN", "SAFN", "NormMatch", "hafn", "norm_match", "safn"]


def norm_match(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""The mean squared difference of the two embeddings' norms.

    .. math:: L = \frac{1}{b} \sum_{i=1}^{b} (\lVert s_i \rVert - \lVert t_i \rVert)^2

    Args:
        student_embedding: s, ``(B, d)``, any floating dtype; computed in float32, or float64 where it is that. A zero
            vector has gradient 0.
        teacher_embedding: t, ``(B, m)``: lengths may differ, a norm is one number. No gradient reaches it.

    Returns:
        A scalar of at least 0, in the square of the embedding's unit.

    Raises:
        NetworkError: for two numbers of images.

    Source: Wang et al. (arXiv 2305.17007), explored there as the norm's part alone. The published code does not have
    it, and the paper's own equation was not at hand.

    Example:
        >>> import torch
        >>> norm_match(torch.tensor([[3.0, 4.0]]), torch.tensor([[7.0]]))
        tensor(4.)
    """
    if len(student_embedding) != len(teacher_embedding):
        raise NetworkError(
            f"norm_match compares the same images, but the student has {len(student_embedding)} of them and the "
            f"teacher {len(teacher_embedding)}."
        )
    return (_norms(student_embedding) - _norms(teacher_embedding.detach())).square().mean()


def safn(student_embedding: Tensor, step: float = 1.0) -> Tensor:
    r"""Each feature norm shall grow by a step from where it is: stepwise adaptive feature norm.

    .. math:: L = \frac{1}{b} \sum_{i=1}^{b} (\lVert s_i \rVert - (\operatorname{sg}(\lVert s_i \rVert) + r))^2

    Its value is the constant r², so it says nothing about training: only its gradient counts, which for each image is
    ``-2 r / b`` along the embedding.

    Args:
        student_embedding: s, ``(B, D)``, any floating dtype; computed in float32, or float64 where it is that. A zero
            vector has gradient 0 and stays where it is.
        step: r; 1 in the authors' code, 0.3 on VisDA.

    Returns:
        A scalar: the step squared.

    Source: Xu et al., "Larger Norm More Transferable: An Adaptive Feature Norm Approach for Unsupervised Domain
    Adaptation", ICCV 2019; jihanyang/AFN, which weights it with 0.05 (0.01 on VisDA). The stepwise increase of the norm
    that ND's paper (arXiv 2305.17007) explores is modelled on it; its own equation was not at hand.

    Example:
        >>> import torch
        >>> safn(torch.tensor([[3.0, 4.0]]))
        tensor(1.)
    """
    norms = _norms(student_embedding)
    return (norms - (norms.detach() + step)).square().mean()


def hafn(student_embedding: Tensor, radius: float = 25.0) -> Tensor:
    r"""The mean feature norm of the batch shall be a given number: hard adaptive feature norm.

    .. math:: L = \left( \frac{1}{b} \sum_{i=1}^{b} \lVert s_i \rVert - R \right)^2

    Args:
        student_embedding: s, ``(B, D)``, any floating dtype; computed in float32, or float64 where it is that. A zero
            vector has gradient 0.
        radius: R; 25 in the authors' code.

    Returns:
        A scalar of at least 0.

    Source: Xu et al., ICCV 2019 (see :func:`safn`), weighted with 0.05.

    Example:
        >>> import torch
        >>> hafn(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), radius=5.0)
        tensor(4.)
    """
    return (_norms(student_embedding).mean() - radius).square()


@register("norm_match")
class NormMatch(Method):
    """The teacher's feature norms as an objective's term; no published weight.

    It is the norm that ships that is matched: the embeddings are compared without a head, whatever their lengths.

    Args:
        setting: both networks.

    Raises:
        RecipeError: for no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        teacher_spec(setting, "norm_match")

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        return norm_match(student.embedding, teacher_features(teacher, "norm_match").embedding)


@register("safn")
class SAFN(Method):
    """Growing feature norms as an objective's term; the authors' is ce + 0.05 safn. Reads no teacher and no labels.

    Args:
        setting: the student.
        step: r > 0.

    Raises:
        RecipeError: for a step that is not positive.
    """

    needs = Needs(student=frozenset({"embedding"}))

    def __init__(self, setting: Setting, *, step: float = 1.0) -> None:
        super().__init__()
        self.step = _positive("step", step, "1")

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The step squared, with the gradient that lengthens."""
        return safn(student.embedding, self.step)


@register("hafn")
class HAFN(Method):
    """A mean feature norm as an objective's term; the authors' is ce + 0.05 hafn. Reads no teacher and no labels.

    Args:
        setting: the student.
        radius: R > 0.

    Raises:
        RecipeError: for a radius that is not positive.
    """

    needs = Needs(student=frozenset({"embedding"}))

    def __init__(self, setting: Setting, *, radius: float = 25.0) -> None:
        super().__init__()
        self.radius = _positive("radius", radius, "25")

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        return hafn(student.embedding, self.radius)


def _norms(embedding: Tensor) -> Tensor:
    return torch.linalg.vector_norm(full_precision(embedding), dim=-1)


def _positive(name: str, value: float, usual: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise RecipeError(f"{name} is {value}; expected a positive number, such as {usual}.")
    return value
