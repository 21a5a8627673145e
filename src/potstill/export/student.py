"""What is exported: a network with one output for images, and how near another's outputs come to its own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.export.quiet import quiet
from potstill.networks.card import NetworkCard
from potstill.networks.faces import identity_scale
from potstill.networks.segmentation.tapped import TappedSegmenter
from potstill.networks.tap import Tapped

__all__ = ["TOLERANCE", "Mismatch", "Normalised", "Student", "batch_axis"]

TOLERANCE = 1e-4  # allowed difference of two outputs, as a part of the student's largest one

BATCHES = (1, 3)  # two sizes, neither that of the example below: a graph that has fixed its batch fails
EXAMPLE_BATCH = 2  # 0 and 1 would be taken for constants


class Mismatch(Exception):
    """A file's outputs are not the student's; the words say how."""


class Normalised(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself."""

    mean: Tensor  # (1, 3, 1, 1), as is std
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor, *more: Tensor) -> Any:
        """What the network returns for pixels ``(B, 3, H, W)`` float in 0..1."""
        return self.network((pixels - self.mean) / self.std, *more)


class PixelLogits(nn.Module):
    """The logits ``(B, C, H, W)`` alone, of a network of torchvision's that returns them by name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Those of images ``(B, 3, H, W)``."""
        logits: Tensor = self.network(images)["out"]
        return logits


@dataclass(frozen=True)
class Student:
    """A student that has one output: logits of images or of their pixels, or embeddings.

    Attributes:
        tapped: the network.
        card: what is known of it.
        raw: whether its graphs take pixels in 0..1.
        head: whether a face network shows its identity head's cosines; otherwise it ends with the embedding.
    """

    tapped: Tapped
    card: NetworkCard
    raw: bool = False
    head: bool = False

    @property
    def embeds(self) -> bool:
        """Whether the output is the embedding."""
        return not self.card.num_classes or (identity_scale(self.tapped.network) is not None and not self.head)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it returns."""
        return ("embedding",) if self.embeds else ("logits",)

    @property
    def axes(self) -> tuple[dict[int, Any], ...] | None:
        """Which axes of a graph's inputs are free."""
        return batch_axis()

    @property
    def named_axes(self) -> tuple[dict[int, Any], ...] | None:
        """The same, by the names that they have in ONNX."""
        return batch_axis("batch")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return ("images",)

    def network(self) -> nn.Module:
        """What is traced, without the normalisation."""
        network: Any = self.tapped.network
        if isinstance(self.tapped, TappedSegmenter):
            return PixelLogits(network)
        if self.embeds and self.card.num_classes:
            network = copy.deepcopy(network)
            network.reset_classifier(0)
        return network

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the network with."""
        return (torch.rand(EXAMPLE_BATCH, *self.card.input_size),)

    @cached_property
    def graph(self) -> torch.export.ExportedProgram:
        """The traced computation."""
        network = self.network().requires_grad_(False)
        module = Normalised(network, self.card.mean, self.card.std) if self.raw else network
        with quiet():
            graph = torch.export.export(module.eval(), self.example(), dynamic_shapes=self.axes)
        graph.example_inputs = None  # images, which would be in the file too
        for node in graph.graph.nodes:
            node.meta.pop("stack_trace", None)  # the paths and lines of this machine's files
        return graph

    def plain(self) -> "Student":
        """The student as a file of weights has it: all of it, for normalised images."""
        return replace(self, raw=False, head=True)

    def answer(self, tapped: Tapped) -> Callable[..., Any]:
        """The function that such a network computes: of what a file takes, without normalisation, what it returns."""

        def run(images: Tensor) -> Tensor:
            features = tapped(images)
            return features.embedding if self.embeds else features.logits

        return run

    def examples(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Random inputs as a file takes them, with the student's own output for them."""
        answer = self.answer(self.tapped)
        generator = torch.Generator().manual_seed(0)
        for batch in BATCHES:
            pixels = torch.rand(batch, *self.card.input_size, generator=generator)
            normalised = self.normalise(pixels)
            yield (pixels if self.raw else normalised,), answer(normalised)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in 0..1 as the network takes them."""
        mean, std = (torch.tensor(row).view(1, -1, 1, 1) for row in (self.card.mean, self.card.std))
        return (pixels - mean) / std

    def difference(self, got: Any, expected: Any) -> float:
        """How far a file's output is from the student's, as a part of the student's largest number.

        Raises:
            Mismatch: further than :data:`TOLERANCE`, or of another shape.
        """
        images, name = len(expected), "number" if self.embeds else "logit"
        if got.shape != expected.shape:
            raise Mismatch(f"for {images} images it returns {tuple(got.shape)}, the student {tuple(expected.shape)}")
        peak = float(expected.abs().max())
        difference = float((got - expected).abs().max()) / (peak or 1.0)
        if not difference <= TOLERANCE:  # so that NaN is refused
            raise Mismatch(
                f"for {images} images its {'embeddings' if self.embeds else 'logits'} differ from the student's by "
                f"{difference:.3g} of the largest {name}, and {TOLERANCE:g} is allowed"
            )
        return difference

    def describe(self) -> dict[str, Any]:
        """What a graph takes and returns, for the JSON beside it."""
        dense = isinstance(self.tapped, TappedSegmenter)
        size = self.tapped.spec.embedding_dim if self.embeds else self.card.num_classes
        shape = ["batch", size, *self.card.input_size[1:]] if dense else ["batch", size]
        return {
            "input": {
                "name": "images", "dtype": "float32", "shape": ["batch", *self.card.input_size], "values": self.values
            },
            "output": {"name": self.outputs[0], "dtype": "float32", "shape": shape},
        }  # fmt: skip

    @property
    def values(self) -> str:
        """What a graph's images hold."""
        return "RGB pixels in 0..1" if self.raw else "RGB pixels in 0..1, normalised: (pixels - mean) / std"

    def check_head(self) -> None:
        """Refuse to be asked for an identity head that there is not.

        Raises:
            NetworkError: ``head`` does nothing.
        """
        if self.head and identity_scale(self.tapped.network) is None:
            raise NetworkError(
                f"head is for networks of faces, which else are exported without their identities; "
                f"{self.card.model!r} has no identity head; leave head out"
            )


def batch_axis(name: str | None = None) -> tuple[dict[int, Any]]:
    """The first axis is free; torch.onnx takes a name for it, torch.export a dimension."""
    return ({0: name or torch.export.Dim("batch", min=1)},)
