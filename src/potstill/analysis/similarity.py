"""How alike two sets of features are, whatever their lengths."""

import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.methods.numerics import full_precision

__all__ = ["linear_cka"]


def linear_cka(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Centred kernel alignment with linear kernels: 1 for features that differ by a rotation and a factor.

    .. math:: \frac{\lVert \bar S^\top \bar T \rVert_F^2}
              {\lVert \bar S^\top \bar S \rVert_F \, \lVert \bar T^\top \bar T \rVert_F}

    with every column of S and T centred. The matrices are D x D, never N x N.

    Args:
        student: ``(N, D)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher: ``(N, M)`` of the same images.

    Returns:
        A scalar in [0, 1]; 0 where one side does not vary.

    Raises:
        DataError: for another number of images.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.

    Example:
        >>> features = torch.randn(50, 3, dtype=torch.float64)
        >>> turned = features @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
        >>> round(linear_cka(features, 5 * turned).item(), 6)
        1.0
    """
    if len(student) != len(teacher) or student.ndim != 2 or teacher.ndim != 2:
        raise DataError(
            f"CKA compares features (N, D) and (N, M) of the same images; got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    s, t = (full_precision(x) - full_precision(x).mean(0) for x in (student, teacher))
    return alignment(s.T @ s, t.T @ t, s.T @ t)


def alignment(own: Tensor, other: Tensor, across: Tensor) -> Tensor:
    """CKA of covariances: the student's ``(D, D)``, the teacher's ``(M, M)`` and those across, ``(D, M)``."""
    whole = torch.linalg.matrix_norm(own) * torch.linalg.matrix_norm(other)
    return across.square().sum() / whole.clamp_min(torch.finfo(whole.dtype).tiny)
