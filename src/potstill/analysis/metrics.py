"""What PEFD's authors look at to explain a result: directions, classes drawn together, projectors drifting together."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.errors import DataError, NetworkError
from potstill.methods.numerics import cosine, unit
from potstill.projectors import Layer

__all__ = ["between_class_cosine", "direction_alignment", "mean_projector_distance", "projector_distance"]

Reduction = Literal["mean", "none"]


def direction_alignment(student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""M_DA: how far the student's embeddings point from the teacher's, without any projector.

    .. math:: M_{DA} = 1 - \frac{1}{b} \sum_{i=1}^{b} \cos(s_i, t_i)

    Lower is closer. Defined only where both embeddings have the same length; a student trained through projectors is
    measured on its raw embedding too. A zero vector counts with cosine 0.

    Args:
        student: ``(N, D)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher: ``(N, D)``.
        reduction: "none" gives each sample's value, ``(N,)``.

    Raises:
        NetworkError: for two different shapes.

    Source: Chen et al., NeurIPS 2022 (arXiv 2210.15274), equation 2 and figure 2; not in the authors' code.

    Example:
        >>> direction_alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """
    if student.shape != teacher.shape:
        raise NetworkError(
            f"The direction alignment compares embeddings of one shape, but the student's are {tuple(student.shape)} "
            f"and the teacher's {tuple(teacher.shape)}; it has no meaning for this pair."
        )
    distance = 1 - cosine(student, teacher)
    return distance.mean() if reduction == "mean" else distance


def between_class_cosine(embedding: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""M_BC: how alike the embeddings of different classes are.

    .. math:: M_{BC} = \frac{1}{b} \sum_{i=1}^{b} \frac{1}{c_i} \sum_{j:\, y_j \ne y_i} \cos(s_i, s_j)

    where c_i counts the samples of other classes. First each sample's mean, then the mean over samples, which is not
    the mean over all pairs. Lower is more discriminative.

    Exact in O(N D): with unit vectors n and their sums over classes, the inner sum is
    ``n_i . (total - class_sum[y_i])``; no N x N matrix is made.

    Args:
        embedding: ``(N, D)``, any floating dtype; computed in float32, or float64 where it is that.
        labels: ``(N,)`` integers.
        reduction: "none" gives each sample's value, ``(N,)``.

    Raises:
        DataError: for samples of fewer than two classes: every c_i is 0.

    Source: Chen et al., NeurIPS 2022 (arXiv 2210.15274), equation 3 and figure 2; not in the authors' code. Whether
    the paper takes it over batches or a whole set is not said; this takes what it is given as one set.

    Example:
        >>> between_class_cosine(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.)
    """
    classes, of_class = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"The between-class cosine needs samples of two classes or more; got {len(classes)}.")
    directions = unit(embedding)
    sums = directions.new_zeros(len(classes), directions.shape[1]).index_add_(0, of_class, directions)
    others = len(labels) - torch.bincount(of_class, minlength=len(classes))  # c of each class
    # (N, D): what all samples of the other classes add up to, seen from each sample
    elsewhere = (sums.sum(0) - sums)[of_class]
    alike = (directions * elsewhere).sum(-1) / others[of_class]
    return alike.mean() if reduction == "mean" else alike


def projector_distance(projectors: Sequence[Sequence[Layer]], *, squared: bool = False, bias: bool = False) -> Tensor:
    r"""The distance of each two projectors in parameter space.

    .. math:: d_{kl} = \lVert W_k - W_l \rVert_F

    over all layers' weights together. The paper writes "L2 distance" and no more; its numbers (440.93 falling to
    206.32 on ResNet32x4 -> ResNet8x4, q=2) look like squared ones.

    Args:
        projectors: each as ``(weight, bias)`` of its layers, as :meth:`ProjectorEnsemble.projector` gives them.
        squared: the square of the distance.
        bias: count the biases too.

    Returns:
        ``(q, q)``, symmetric, with zeros on the diagonal.

    Raises:
        NetworkError: for ``bias=True`` with a projector that has none.

    Source: Chen et al., NeurIPS 2022 (arXiv 2210.15274), table 4; not in the authors' code.

    Example:
        >>> one, two = [(torch.zeros(2, 2), None)], [(torch.ones(2, 2), None)]
        >>> projector_distance([one, two])
        tensor([[0., 2.],
                [2., 0.]])
    """
    points = torch.stack([_flat(layers, bias) for layers in projectors])
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near ones too
    return distance.square() if squared else distance


def mean_projector_distance(
    projectors: Sequence[Sequence[Layer]], *, squared: bool = False, bias: bool = False
) -> Tensor:
    """The mean of :func:`projector_distance` over all pairs of two different projectors.

    Raises:
        NetworkError: for fewer than two projectors, and as :func:`projector_distance`.

    Example:
        >>> from potstill.projectors import ProjectorEnsemble
        >>> ensemble = ProjectorEnsemble(256, 256, projectors=2)
        >>> float(mean_projector_distance([ensemble.projector(k) for k in range(2)])) > 12
        True
    """
    if len(projectors) < 2:
        raise NetworkError(f"A distance is between two projectors; got {len(projectors)}.")
    distance = projector_distance(projectors, squared=squared, bias=bias)
    first, second = torch.triu_indices(len(projectors), len(projectors), offset=1)
    return distance[first, second].mean()


def _flat(layers: Sequence[Layer], bias: bool) -> Tensor:
    parts = [weight.flatten() for weight, _ in layers]
    if bias:
        offsets = [offset for _, offset in layers if offset is not None]
        if len(offsets) != len(parts):
            raise NetworkError("The projectors have no biases to compare; leave bias=True out.")
        parts += offsets
    return torch.cat(parts)
