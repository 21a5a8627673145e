"""How projectors start: PyTorch's own way, and others of ours that make the projectors of an ensemble differ more."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

__all__ = ["Init", "start"]

Init = Literal["default", "orthogonal", "kaiming", "xavier", "scaled", "mixed"]


def start(init: Init, layers: Sequence[tuple[Tensor, Tensor | None]], k: int, projectors: int) -> None:
    """Draw the parameters of projector k in place, layer by layer.

    Args:
        init: see :class:`~potstill.projectors.ProjectorEnsemble`.
        layers: ``(weight (out, in), bias (out,))`` of each layer, outside the graph.
        k: which projector of the ensemble it is, from 0.
        projectors: how many there are.
    """
    kind = _MIXED[k % len(_MIXED)] if init == "mixed" else init
    for weight, bias in layers:
        _DRAWS[kind](weight, bias)
    if init == "scaled" and projectors > 1:
        factor = 2 ** (2 * k / (projectors - 1) - 1)
        weight, bias = layers[-1]
        weight.mul_(factor)
        if bias is not None:
            bias.mul_(factor)


def _default(weight: Tensor, bias: Tensor | None) -> None:
    """What ``nn.Linear`` draws, in its order: weight, then bias, both from U(-1/sqrt(in), 1/sqrt(in))."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight.shape[1])
        nn.init.uniform_(bias, -bound, bound)


def _without_bias(draw: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor | None], None]:
    def drawn(weight: Tensor, bias: Tensor | None) -> None:
        draw(weight)
        if bias is not None:
            nn.init.zeros_(bias)

    return drawn


_DRAWS: dict[str, Callable[[Tensor, Tensor | None], None]] = {
    "default": _default,
    "scaled": _default,
    "orthogonal": _without_bias(nn.init.orthogonal_),
    "kaiming": _without_bias(lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu")),
    "xavier": _without_bias(nn.init.xavier_uniform_),
}
_MIXED = ("default", "orthogonal", "kaiming", "xavier")
