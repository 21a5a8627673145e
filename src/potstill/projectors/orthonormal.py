"""Weights that stay orthonormal whatever an optimiser does to the parameters behind them."""

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError

__all__ = ["Orthonormal"]


class Orthonormal(nn.Module):
    r"""A stack of weights of orthonormal columns, or of orthonormal rows where they are wider than high.

    .. math:: W = \begin{pmatrix} 2 A - I \\ 2 C A \end{pmatrix} R, \qquad A = (I + C^\top C - X + X^\top)^{-1}

    of n x k (the longer side first, so W is transposed where it is wider than high): the first k columns of Cayley's
    map. X and C are the upper k and the lower n - k rows of the parameter ``free``; R is a fixed rotation from the
    start. The symmetric part of the matrix to invert is at least I, so it can always be inverted: no value of the
    parameter is forbidden. Weight decay pulls it to 0, where W is R and still orthonormal.

    Args:
        weights: how many.
        rows: of each.
        columns: of each.

    Example:
        >>> weight = Orthonormal(3, 6, 4).weight
        >>> torch.testing.assert_close(weight.mT @ weight, torch.eye(4).expand(3, 4, 4), rtol=0, atol=1e-5)
    """

    rotation: Tensor

    def __init__(self, weights: int, rows: int, columns: int) -> None:
        super().__init__()
        long, short = max(rows, columns), min(rows, columns)
        self.shape = (weights, rows, columns)
        self.free = nn.Parameter(torch.zeros(weights, long, short))
        self.register_buffer("rotation", torch.eye(short).repeat(weights, 1, 1))

    @property
    def weight(self) -> Tensor:
        """W, ``(weights, rows, columns)``, in the graph of the parameter."""
        short = self.free.shape[2]
        skew, lower = self.free[:, :short], self.free[:, short:]
        eye = torch.eye(short, dtype=self.free.dtype, device=self.free.device)
        system = eye + lower.mT @ lower - skew + skew.mT
        # solve_ex does not look whether a matrix is singular, which it cannot be: no waiting for the device
        inverse = torch.linalg.solve_ex(system, eye.expand_as(system)).result
        columns = torch.cat([2 * inverse - eye, 2 * lower @ inverse], dim=1) @ self.rotation
        return self._turned(columns)

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Make W the nearest orthonormal weights to these, which are themselves where they are orthonormal.

        Raises:
            NetworkError: for another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise NetworkError(f"Orthonormal weights of shape {self.shape} were given {tuple(weight.shape)}.")
        short = self.free.shape[2]
        columns = _polar(self._turned(weight.to(self.free.device).double()))
        # The rotation takes the top to a positive matrix, as far as can be from where Cayley's map has no value.
        rotation = _polar(columns[:, :short])
        unrotated = columns @ rotation.mT
        eye = torch.eye(short, dtype=columns.dtype, device=columns.device)
        self.rotation.copy_(rotation)
        self.free.zero_()
        self.free[:, short:].copy_(torch.linalg.solve(eye + unrotated[:, :short], unrotated[:, short:], left=False))

    def _turned(self, weight: Tensor) -> Tensor:
        return weight if self.shape[1] >= self.shape[2] else weight.mT


def _polar(x: Tensor) -> Tensor:
    """The nearest matrices of orthonormal columns."""
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    return left @ right
