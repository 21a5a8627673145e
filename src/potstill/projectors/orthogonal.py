"""A linear map whose weight is orthonormal whatever an optimiser does to its parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.projectors.orthonormal import Orthonormal

__all__ = ["OrthogonalLinear"]


class OrthogonalLinear(nn.Module):
    """``x -> W x`` without a bias, W of orthonormal columns, or of orthonormal rows where it is wider than high.

    The weight is that of :class:`~potstill.projectors.orthonormal.Orthonormal`, so every value of its parameters, one
    that weight decay pulls to 0 among them, gives an orthonormal W.

    ``torch.nn.utils.parametrizations.orthogonal`` keeps signs of 1 and -1 in its parameter where W is not square and
    cuts them to whole numbers: weight decay makes them 0.99..., they become 0, and so does the weight. Its other maps
    work on n x n matrices.

    Args:
        inputs: length of x.
        outputs: length of W x.

    Raises:
        NetworkError: for a length below 1.

    Example:
        >>> project = OrthogonalLinear(3, 5)
        >>> torch.testing.assert_close(project.weight.T @ project.weight, torch.eye(3), rtol=0, atol=1e-5)
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if inputs < 1 or outputs < 1:
            raise NetworkError(f"An orthogonal map needs lengths of at least 1; got {inputs} -> {outputs}.")
        self.inputs, self.outputs = inputs, outputs
        self.orthonormal = Orthonormal(1, outputs, inputs)
        self.orthonormal.load(nn.init.orthogonal_(torch.empty(1, outputs, inputs)))

    @property
    def weight(self) -> Tensor:
        """W, ``(outputs, inputs)``, in the graph of the parameters."""
        return self.orthonormal.weight[0]

    def load_weight(self, weight: Tensor) -> None:
        """Make W this one.

        Raises:
            NetworkError: for another shape, or a weight that is not orthonormal.
        """
        if weight.shape != (self.outputs, self.inputs):
            raise NetworkError(
                f"The orthogonal map has shape {(self.outputs, self.inputs)}; got {tuple(weight.shape)}."
            )
        short = (weight if self.outputs >= self.inputs else weight.T).double()
        eye = torch.eye(short.shape[1], dtype=short.dtype, device=short.device)
        if not torch.allclose(short.T @ short, eye, rtol=0, atol=1e-4):
            raise NetworkError(
                "The weight is not orthonormal: neither its rows nor its columns are unit vectors apart."
            )
        self.orthonormal.load(weight[None])

    def forward(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return F.linear(x, self.weight)

    def extra_repr(self) -> str:
        """What the module is, in ``print(module)``."""
        return f"{self.inputs} -> {self.outputs}"
