"""A network seen as Features: the class that the training loop, the teacher and the exporters hold."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.affine import affine_of
from potstill.networks.blocks import Block
from potstill.networks.catch import CatchInput, CatchOutput
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.points import Points
from potstill.networks.preacts import End
from potstill.networks.probe import probe_images

__all__ = ["Tapped", "Taps"]

log = logging.getLogger(__name__)


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
        ends: for each map where it stands before its last activation.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: FeatureSpec,
        input_size: tuple[int, int, int],
        ends: tuple[End, ...] = (),
        blocks: tuple[Block, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.spec = replace(spec, blocks=tuple(block.spec for block in blocks)) if blocks else spec
        self.input_size = input_size
        self.normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.ends = ends
        self.block_stages = [block.stage for block in blocks]
        self.preacts = Points(CatchInput, [(end.activation, end.call) if end.activation else None for end in ends])
        self.blocks = Points(CatchOutput, [None if b.call is None else (b.spec.name, b.call) for b in blocks])

    @property
    def classes(self) -> int:
        """The number of classes that it knows: that of its logits, but for background."""
        return self.spec.classes

    def forward(self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False) -> Features:
        """One pass over ``images`` ``(B, 3, H, W)``.

        In the autograd graph the logits depend on the embedding, so ``autograd.grad(loss, embedding)`` is defined for
        losses of either.

        Args:
            images: as the network takes them, on its device.
            maps: fill ``Features.maps``, which stays empty otherwise.
            preacts: likewise.
            blocks: likewise.

        Raises:
            NetworkError: as :meth:`open` does.
        """
        if not (preacts or blocks):
            return self.read(images, maps)
        self.open(preacts=preacts, blocks=blocks)
        self.preacts.store.active, self.blocks.store.active = preacts, blocks
        try:
            features = self.read(images, maps=True)
            before = self.preacts.caught(features.maps) if preacts else ()
            inside = self.blocks.caught([features.maps[stage] for stage in self.block_stages]) if blocks else ()
        finally:
            self.preacts.store.clear()
            self.blocks.store.clear()
        return Features(features.logits, features.embedding, features.maps if maps else (), before, inside)

    @abstractmethod
    def read(self, images: Tensor, maps: bool) -> Features:
        """The pass itself: logits, embedding and, where asked for, maps."""

    @abstractmethod
    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight ``(C, D)`` and bias ``(C,)`` of the layer that turns the embedding into the logits, detached.

        None where that is no linear layer and no 1x1 convolution, or no single one.
        """

    def norms(self) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """For each preact the affine of the batch norm behind it: weight and bias ``(C_l,)``, detached.

        Where a norm returned the preact it is that one; where the preact is a sum, the last of the block's main path.
        None where there is none, or where it covers some of the channels only.
        """
        norms = [None if end.norm is None else self.network.get_submodule(end.norm) for end in self.ends]
        return tuple(None if norm is None else affine_of(norm) for norm in norms)

    def open(self, maps: bool = False, preacts: bool = False, blocks: bool = False) -> None:
        """Register the hooks that preacts and blocks are read by, once, before the network is compiled.

        A call that asks for either opens the network by itself, unless that call is compiled.

        Args:
            maps: needs no opening; taken so that the arguments can be those of a call.
            preacts: whether calls will ask for preacts.
            blocks: whether calls will ask for blocks.

        Raises:
            NetworkError: the network shows no maps, or is compiled already.
        """
        for name, points in [("preacts", self.preacts)] * preacts + [("blocks", self.blocks)] * blocks:
            if points.opened:
                continue
            if torch.compiler.is_compiling():
                raise NetworkError(f"the network is being compiled; call its open({name}=True) before")
            if not self.spec.maps:
                raise NetworkError(
                    f"{type(self.network).__name__} shows no maps, and its {name} are found by them; name the layers "
                    "that end its stages in taps.maps"
                )
            images = probe_images(self.network, self.input_size)
            points.open(self.network, partial(self.read, images, maps=True))
            if name == "preacts":
                self._say_linear_ends()

    def _say_linear_ends(self) -> None:
        linear = [spec.name for spec, end in zip(self.spec.maps, self.ends, strict=True) if end.activation is None]
        if linear:
            name = type(self.network).__name__
            log.info("%s: no activation layer ends %s; there the preact is the map itself", name, ", ".join(linear))
