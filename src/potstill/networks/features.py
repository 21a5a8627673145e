"""What a network shows of itself: the values every distillation method reads, and their description."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["FeatureSpec", "Features", "MapSpec"]


@dataclass(frozen=True, slots=True)
class Features:
    """One forward pass of a network.

    Attributes:
        logits: ``(B, C)``, the classifier's output.
        embedding: ``(B, D)``, the pooled vector that the classifier reads.
        maps: the ends of the stages, stem first, each ``(B, C_l, H_l, W_l)``; empty unless they were asked for.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One tap: the layer's name, its channels, and how many input pixels one of its pixels covers (a side)."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The shapes of a network's :class:`Features`, known without running it.

    Attributes:
        classes: C, the number of logits; 0 for a network without a classifier (a self-supervised teacher).
        embedding_dim: D.
        maps: one :class:`MapSpec` for each of ``Features.maps``, in the same order.
    """

    classes: int
    embedding_dim: int
    maps: tuple[MapSpec, ...] = field(default=())
