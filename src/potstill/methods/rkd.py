"""Relational knowledge distillation (Park et al.): distances between images, and angles at them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, unit
from potstill.methods.registry import register
from potstill.methods.relations import check_pairs, check_rows
from potstill.networks.features import Features

__all__ = ["RKD", "rkd", "rkd_angle", "rkd_distance"]


def rkd_distance(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""How far apart the two networks' distances between the images of a batch are.

    .. math:: L_D = \frac{1}{b^2} \sum_{i,j} h(\psi^s_{ij} - \psi^t_{ij}), \qquad
              \psi_{ij} = \frac{\lVert x_i - x_j \rVert}{\mu}, \qquad
              \mu = \frac{1}{b (b - 1)} \sum_{i \ne j} \lVert x_i - x_j \rVert

    with h the Huber function, :math:`h(u) = u^2 / 2` for :math:`\lvert u \rvert < 1` and
    :math:`\lvert u \rvert - 1/2` beyond. The student's mean distance is differentiated too. No gradient reaches the
    teacher.

    Args:
        student_embedding: ``(B, D_s)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedding: ``(B, D_t)``.

    Returns:
        A scalar; 0 for a batch of one image. Equal vectors have distance 0 and take no gradient from each other;
        where all are equal, every distance counts as 0.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), equations 6 to 8. The same
    value as in RepDistiller's ``RKD.py``, which has equal vectors at distance 1e-6.

    Example:
        >>> rkd_distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
        tensor(0.3472)
    """
    check_rows(student_embedding, teacher_embedding, "rkd")
    return _distance(_differences(student_embedding), _differences(teacher_embedding.detach()))


def rkd_angle(student_embedding: Tensor, teacher_embedding: Tensor, eps: float = 1e-6) -> Tensor:
    r"""How far apart the two networks' angles between the images of a batch are.

    .. math:: L_A = \frac{1}{b^3} \sum_{i,j,k} h(\langle e^s_{ij}, e^s_{ik} \rangle - \langle e^t_{ij}, e^t_{ik}
              \rangle), \qquad e_{ij} = \frac{x_j - x_i}{\lVert x_j - x_i \rVert}

    with h the Huber function of :func:`rkd_distance`: the cosines of the angles at image i between images j and k, of
    all triplets. No gradient reaches the teacher.

    Needs O(b³ + b² D) memory: a cosine of each triplet and network, their differences, and gradients of those. One
    such tensor has b³ float32 values: 1 MiB for b = 64, 64 MiB for 256, 512 MiB for 512.

    Args:
        student_embedding: ``(B, D_s)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedding: ``(B, D_t)``.
        eps: two vectors nearer than this count as equal: their e is 0 and takes no gradient. All others are
            untouched by it.

    Returns:
        A scalar.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), equations 9 to 11. The
    same value as in RepDistiller's ``RKD.py``, where two equal student vectors take gradients of about 1e12.

    Example:
        >>> rkd_angle(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]]))
        tensor(0.1296)
    """
    check_rows(student_embedding, teacher_embedding, "rkd")
    return _angle(_differences(student_embedding), _differences(teacher_embedding.detach()), eps)


def rkd(student_embedding: Tensor, teacher_embedding: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """``distance * rkd_distance + angle * rkd_angle``, with the differences taken once; a term of weight 0 is left out.

    Args:
        student_embedding: ``(B, D_s)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_embedding: ``(B, D_t)``.
        distance: weight of :func:`rkd_distance`; the paper's and RepDistiller's 25.
        angle: weight of :func:`rkd_angle`; 50.

    Returns:
        A scalar.

    Raises:
        NetworkError: for two batches of different lengths.

    Source: see :func:`rkd_distance` and :func:`rkd_angle`.

    Example:
        >>> s, t = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]])
        >>> rkd(s, t, distance=2.0, angle=0.0) == 2 * rkd_distance(s, t)
        tensor(True)
    """
    check_rows(student_embedding, teacher_embedding, "rkd")
    s, t = _differences(student_embedding), _differences(teacher_embedding.detach())
    loss = s.new_zeros(())
    if distance:
        loss = loss + distance * _distance(s, t)
    if angle:
        loss = loss + angle * _angle(s, t)
    return loss


def _differences(x: Tensor) -> Tensor:
    """``[i, j] = x_j - x_i``: not by the products of vectors, which lose the digits of near ones."""
    x = full_precision(x)
    return x.unsqueeze(0) - x.unsqueeze(1)


def _distance(s: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(_relative(s), _relative(t))


def _relative(differences: Tensor, eps: float = 1e-12) -> Tensor:
    distances = torch.linalg.vector_norm(differences, dim=-1)  # its gradient at 0 is 0
    b = distances.shape[0]
    mean = distances.sum() / max(b * (b - 1), 1)
    equal = mean < eps
    return distances * torch.where(equal, 0.0, 1.0 / torch.where(equal, 1.0, mean))


def _angle(s: Tensor, t: Tensor, eps: float = 1e-6) -> Tensor:
    s, t = unit(s, eps), unit(t, eps)
    return F.smooth_l1_loss(s @ s.transpose(1, 2), t @ t.transpose(1, 2))


@register("rkd")
class RKD(Method):
    """Distances and angles between the images of a batch; the common objective is ce + rkd.

    Args:
        setting: both networks, with embeddings of any lengths.
        distance: weight of the distances, 25; 0 leaves them out.
        angle: weight of the angles, 50; 0 leaves them out, and with them the memory of b³ values.

    Raises:
        RecipeError: for weights that are negative, not finite or both 0, no teacher, or a batch of one image.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))

    def __init__(self, setting: Setting, *, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        teacher_spec(setting, "rkd")
        check_pairs(setting, "rkd")
        for name, value in {"distance": distance, "angle": angle}.items():
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"{name} is {value}; expected a weight of 0 or more, such as 25 or 50.")
        if not distance and not angle:
            raise RecipeError("distance and angle are both 0, which does nothing; give one a weight, or take rkd out.")
        self.distance = distance
        self.angle = angle

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings."""
        return rkd(student.embedding, teacher_features(teacher, "rkd").embedding, self.distance, self.angle)
