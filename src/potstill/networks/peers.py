"""Networks that learn together, seen as the first of them."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.features import Features
from potstill.networks.tapped import Tapped

__all__ = ["Peers"]


class Peers(Tapped):
    """A student with the peers that it learns together with; all train, and the first one ships.

    In training mode a pass runs all of them, and ``Features.peers`` holds the others' logits, in the graph. In
    evaluation mode only the first one runs: it is what is judged.

    Args:
        first: the student.
        others: its peers, with the same classes.

    Raises:
        NetworkError: for no peers, or peers of other classes.
    """

    def __init__(self, first: Tapped, others: Sequence[Tapped]) -> None:
        if not others:
            raise NetworkError("Mutual learning needs a peer at least; name networks in procedure.peers.")
        if classes := {other.spec.classes for other in others} - {first.spec.classes}:
            raise NetworkError(
                f"Peers compare logits, but the student has {first.spec.classes} classes and a peer {classes.pop()}."
            )
        super().__init__(
            nn.ModuleList([first.network, *(other.network for other in others)]), first.spec, first.input_size
        )
        self.first = first
        self.others = nn.ModuleList(others)
        self.normalisation = first.normalisation

    def forward(self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False) -> Features:
        """The first network's features; in training with the others' logits as ``peers``."""
        features: Features = self.first(images, maps=maps, preacts=preacts, blocks=blocks)
        if not self.training:
            return features
        return replace(features, peers=tuple(other(images).logits for other in self.others))

    def read(self, images: Tensor, maps: bool) -> Features:
        """The first network's pass."""
        return self.first.read(images, maps)

    def open(self, maps: bool = False, preacts: bool = False, blocks: bool = False) -> None:
        """Make the first network ready to show them."""
        self.first.open(maps=maps, preacts=preacts, blocks=blocks)

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """The first network's."""
        return self.first.classifier()
