"""A network seen as Features: the class that the training loop, the teacher and the exporters hold."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.features import Features, FeatureSpec

__all__ = ["Tapped", "Taps"]


@dataclass(frozen=True, slots=True)
class Taps:
    """Where to read a network's features, by layer name; :func:`potstill.networks.tap.tap` finds what is left out.

    Attributes:
        classifier: the layer whose input is the embedding.
        embedding: instead, the layer whose output is the embedding. Where that is the network's own output, the network
            has no classifier.
        maps: the layers whose outputs are the feature maps, in the order of the forward pass.
    """

    classifier: str | None = None
    embedding: str | None = None
    maps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        if self.classifier is not None and self.embedding is not None:
            raise NetworkError(
                f"taps name both a classifier ({self.classifier!r}, whose input is the embedding) and an embedding "
                f"({self.embedding!r}, whose output is the embedding); name one of them"
            )
        if twice := sorted({name for name in self.maps if self.maps.count(name) > 1}):
            raise NetworkError(f"taps.maps names {', '.join(map(repr, twice))} more than once; name each layer once")


class Tapped(nn.Module, ABC):
    """A network that returns its :class:`Features`.

    Attributes:
        network: the wrapped network; its own state dict is what ships.
        spec: the shapes of its features.
        input_size: ``(3, H, W)``, the size at which the features were measured.
        normalisation: mean and standard deviation of the images that its weights were trained on, where known.
    """

    def __init__(self, network: nn.Module, spec: FeatureSpec, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.input_size = input_size
        self.normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @abstractmethod
    def forward(self, images: Tensor, maps: bool = False) -> Features:
        """One pass over ``images`` ``(B, 3, H, W)``.

        In the autograd graph the logits depend on the embedding, so ``autograd.grad(loss, embedding)`` is defined for
        losses of either. ``maps=False`` leaves ``Features.maps`` empty.
        """
