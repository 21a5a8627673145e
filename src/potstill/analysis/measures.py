"""The measures of a whole set of images, added up batch by batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.analysis.similarity import alignment
from potstill.errors import DataError
from potstill.methods.numerics import cosine, unit

__all__ = ["FeatureMeasures"]


class FeatureMeasures:
    r"""Norms, M_BC, M_DA and CKA over any number of images, exactly, in one pass.

    M_BC needs no more than each class's sum of unit vectors, as

    .. math:: M_{BC} = \frac{1}{N} \sum_k \frac{\langle S_k, \; {\textstyle \sum_l} S_l - S_k \rangle}{N - n_k},
              \qquad S_k = \sum_{i: y_i = k} \frac{s_i}{\lVert s_i \rVert}

    so it takes O(N D) time and O(C D) memory. CKA needs the covariances, O((D + M)²). Sums are kept in float64 (float32
    on MPS, which has no other) on the device, and no batch waits for it.

    Args:
        classes: C.
        student_dim: D.
        teacher_dim: M; None where there is no teacher to compare with.
        device: where the sums are.

    Source: M_BC and M_DA as in :mod:`potstill.analysis.metrics`; CKA as in :func:`potstill.analysis.linear_cka`.

    Example:
        >>> measures = FeatureMeasures(classes=2, student_dim=2)
        >>> measures.add(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> {name: round(value, 4) for name, value in measures.values().items()}
        {'norm': 3.0, 'm_bc': 0.8}
    """

    def __init__(
        self, classes: int, student_dim: int, teacher_dim: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        device = torch.device(device)
        dtype = torch.float32 if device.type == "mps" else torch.float64

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        d, m = student_dim, teacher_dim or 0
        self.paired, self.comparable = teacher_dim is not None, teacher_dim == student_dim
        self._directions, self._counts = zeros(classes, d), zeros(classes)
        self._scalars = zeros(3)  # sums of the student's norms, of the teacher's, of their cosines
        self._means, self._products = zeros(d + m), zeros(d + m, d + m) if self.paired else zeros(0)

    @torch.no_grad()
    def add(self, student: Tensor, targets: Tensor, teacher: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            student: ``(B, D)`` embeddings, any floating dtype.
            targets: ``(B,)`` integers below C.
            teacher: ``(B, M)`` of the same images, where there is one.

        Raises:
            DataError: for a teacher that is there and was not announced, or the other way round.
        """
        if (teacher is not None) != self.paired:
            raise DataError("The measures take the teacher's embeddings in every batch or in none; see teacher_dim.")
        s = student.to(self._directions)
        self._directions.index_add_(0, targets, unit(s))
        self._counts.index_add_(0, targets, torch.ones_like(s[:, 0]))
        self._scalars[0] += s.norm(dim=1).sum()
        if teacher is not None:
            t = teacher.to(s)
            both = torch.cat([s, t], 1)
            self._scalars[1] += t.norm(dim=1).sum()
            self._means += both.sum(0)
            self._products += both.T @ both
            if self.comparable:
                self._scalars[2] += cosine(s, t).sum()

    def sum_over(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up what several processes have seen, each of which calls this once.

        Args:
            total: gives a tensor's sum over all processes, such as ``Processes.sum``.
        """
        for name in ("_directions", "_counts", "_scalars", "_means", "_products"):
            setattr(self, name, total(getattr(self, name)))

    def values(self) -> dict[str, float]:
        """The measures by name; waits for the device.

        Returns:
            ``norm`` (mean length of the student's embeddings), and ``m_bc`` where the images are of two classes or
            more; with a teacher ``norm_teacher`` and ``cka``, and ``m_da`` where the embeddings have one length.
        """
        count = self._counts.sum()
        found = {"norm": self._scalars[0] / count}
        if int((self._counts > 0).sum()) > 1:
            elsewhere = self._directions.sum(0) - self._directions
            alike = (self._directions * elsewhere).sum(1) / (count - self._counts)
            found["m_bc"] = alike.sum() / count
        if self.paired:
            d = self._directions.shape[1]
            covariance = self._products - torch.outer(self._means, self._means) / count
            found["norm_teacher"] = self._scalars[1] / count
            found["cka"] = alignment(covariance[:d, :d], covariance[d:, d:], covariance[:d, d:])
        if self.comparable:
            found["m_da"] = 1 - self._scalars[2] / count
        return {name: value.item() for name, value in found.items()}
