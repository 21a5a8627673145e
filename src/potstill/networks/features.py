"""What a network shows of itself: the values every distillation method reads, and their description."""

from dataclasses import dataclass, field

from torch import Tensor

from potstill.objects import Regions

__all__ = ["ON_DEMAND", "FeatureSpec", "Features", "MapSpec"]

ON_DEMAND = frozenset({"maps", "preacts", "blocks"})
"""The fields of :class:`Features` that a network fills only where it is asked to."""


@dataclass(frozen=True, slots=True)
class Features:
    """One forward pass of a network.

    Attributes:
        logits: ``(B, C)``, the classifier's output.
        embedding: ``(B, D)``, the pooled vector that the classifier reads.
        maps: the ends of the stages, stem first, each ``(B, C_l, H_l, W_l)``; empty unless they were asked for.
        preacts: the same ends before their last activation, of the same shapes; empty unless they were asked for.
        blocks: the ends of every block of the stages, ``(B, C_k, H_k, W_k)``; empty unless they were asked for.
        peers: the logits ``(B, C)`` of networks that go with this one: a student's peers in mutual learning while it
            trains, further teachers beside a teacher.
        losses: the network's own losses by name, scalars, where it has any: those of a detector that trains.
        regions: a detector's: what the rows of its logits and of its embedding are.

    Of a detector the rows of ``logits`` ``(R, C + 1)`` and ``embedding`` ``(R, D)`` are the regions of all images of
    the batch, background is the last class, ``maps`` are the pyramid's levels (the finest first) and ``blocks`` the
    ends of the backbone's stages. Of a network for segmentation the rows of ``logits`` are the pixels that count.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...] = ()
    preacts: tuple[Tensor, ...] = ()
    blocks: tuple[Tensor, ...] = ()
    peers: tuple[Tensor, ...] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
    regions: Regions | None = None

    @property
    def trunk(self) -> tuple[Tensor, ...]:
        """Where the terms of an objective meet, so that their pulls can be compared: the embedding.

        Of a detector, whose terms do not all read regions, the pyramid; for segmentation the ends of the stages.
        """
        return self.maps if self.losses or self.logits.ndim == 4 else (self.embedding,)


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
        maps: one :class:`MapSpec` for each of ``Features.maps``, and of ``Features.preacts``, in the same order.
        blocks: one for each of ``Features.blocks``.
    """

    classes: int
    embedding_dim: int
    maps: tuple[MapSpec, ...] = field(default=())
    blocks: tuple[MapSpec, ...] = field(default=(), repr=False)
