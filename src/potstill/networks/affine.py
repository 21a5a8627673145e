"""Frozen views of a network's affine layers: what a method may read of a teacher beside its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["affine_of", "linear_of"]


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias ``(C,)`` of a norm."""
    weight, bias = norm.weight, norm.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight.detach(), bias.detach()


def linear_of(layer: object) -> tuple[Tensor, Tensor | None] | None:
    """Weight ``(C, D)`` and bias ``(C,)`` of a linear layer or a 1x1 convolution.

    None for any other layer, and for a subclass of these that computes something else.

    Example:
        >>> weight, bias = linear_of(nn.Conv2d(8, 5, 1, bias=False))
        >>> weight.shape, bias
        (torch.Size([5, 8]), None)
        >>> linear_of(nn.Conv2d(8, 5, 3)), linear_of(nn.Identity())
        (None, None)
    """
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid")
        weight = layer.weight.detach().flatten(1)
    elif isinstance(layer, nn.Linear):
        plain, weight = True, layer.weight.detach()
    else:
        return None
    bias = None if layer.bias is None else layer.bias.detach()
    return (weight, bias) if plain and computes(layer, weight, bias) else None


@torch.no_grad()
def computes(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the layer does with a vector what its weight and bias say."""
    vectors = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    given = vectors[:, :, None, None] if isinstance(layer, nn.Conv2d) else vectors
    returned, expected = layer(given).flatten(1), F.linear(vectors, weight, bias)
    if returned.shape != expected.shape:
        return False
    return torch.allclose(returned.float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
