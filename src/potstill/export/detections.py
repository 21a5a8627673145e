"""A detector as it is exported: one image at a time, and how near two lists of detections are to each other."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.export.detector import DetectorGraph
from potstill.export.student import TOLERANCE, Mismatch, Student
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.tap import Tapped

__all__ = ["DetectorStudent", "pair"]

log = logging.getLogger(__name__)

Found = tuple[Tensor, Tensor, Tensor]  # boxes (D, 4), scores (D,), labels (D,)

TRIALS = 8  # random images, of which those are compared in which most is found
COMPARED = 3
NEAR = 0.01  # of the canvas' longer side, and of a score: what may be the same detection
ODD = 0.01  # of all detections: those that suppression may decide otherwise, where two scores are as good as the same


@dataclass(frozen=True)
class DetectorStudent(Student):
    """A detector, whose graph has the outputs of :class:`~potstill.export.detector.DetectorGraph`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return ("images", "size")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it returns."""
        return ("boxes", "scores", "labels")

    @property
    def axes(self) -> None:
        """No axis is free: one image at a time."""
        return None

    @property
    def named_axes(self) -> None:
        """Likewise."""
        return None

    def network(self) -> nn.Module:
        """What is traced, without the normalisation."""
        return DetectorGraph(cast(TappedDetector, self.tapped), self.card.input_size)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the network with."""
        return torch.rand(1, *self.card.input_size), torch.tensor(self.card.input_size[1:])

    def answer(self, tapped: Tapped) -> Callable[..., Any]:
        """The function that such a detector computes, by torchvision's own code."""

        def run(images: Tensor, size: Tensor) -> Found:
            height, width = size.tolist()
            inside = torch.zeros_like(images)
            inside[..., :height, :width] = images[..., :height, :width]
            (found,) = cast(TappedDetector, tapped).detect(inside, ((height, width),))
            return found["boxes"], found["scores"], found["labels"]

        return run

    def examples(self) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """Random images of coarse and fine patches, of the canvas' size and smaller, with what the student finds."""
        answer = self.answer(self.tapped)
        generator = torch.Generator().manual_seed(0)
        channels, height, width = self.card.input_size
        tried = []
        for number in range(TRIALS):
            cells = 2 ** (2 + number % 4)
            patches = torch.rand(1, channels, cells, cells, generator=generator)
            pixels = F.interpolate(patches, (height, width), mode="bilinear" if number % 2 else "nearest")
            size = torch.tensor((height, width) if number < TRIALS // 2 else (height - height // 8, width - width // 4))
            normalised = self.normalise(pixels)
            found = answer(normalised, size)
            tried.append((len(found[1]), (pixels if self.raw else normalised, size), found))
        tried.sort(key=lambda one: -one[0])
        if not tried[0][0]:
            log.warning(
                "%s finds nothing in random images, so that its files were compared with it on images without "
                "detections alone; compare them on images of yours",
                self.card.model,
            )
        yield from ((inputs, found) for _, inputs, found in tried[:COMPARED])

    def difference(self, got: Any, expected: Any) -> float:
        """The largest difference of a box, as a part of the canvas' longer side, or of a score.

        Raises:
            Mismatch: further than :data:`TOLERANCE`, or too many detections that only one of the two has.
        """
        real = got[2] >= 0
        difference, odd = pair(tuple(one[real] for one in got), expected, max(self.card.input_size[1:]))
        total = int(real.sum()) + len(expected[1])
        if odd > ODD * total:
            raise Mismatch(
                f"it finds {int(real.sum())} objects where the student finds {len(expected[1])}, and {odd} of both are "
                f"not the other's; {int(ODD * total)} may be"
            )
        if not difference <= TOLERANCE:
            raise Mismatch(
                f"its boxes or scores differ from the student's by {difference:.3g} of the longer side or of 1, and "
                f"{TOLERANCE:g} is allowed"
            )
        return difference

    def describe(self) -> dict[str, Any]:
        """What a graph takes and returns, for the JSON beside it."""
        rows = self.network()(*self.example())[1].shape[0]
        image = f"{self.values}; one image at the upper left"
        canvas, resize = list(self.card.input_size), self.card.resize
        if resize is not None:
            image += (
                f", resized to a shorter side of {resize.short}, or less where the longer would pass {resize.longest}"
            )
        return {
            "inputs": [
                {"name": "images", "dtype": "float32", "shape": [1, *canvas], "values": image},
                {"name": "size", "dtype": "int64", "shape": [2], "values": "height and width of the image in it"},
            ],
            "outputs": [
                {"name": "boxes", "dtype": "float32", "shape": [rows, 4], "values": "x1, y1, x2, y2 in pixels"},
                {"name": "scores", "dtype": "float32", "shape": [rows], "values": "the best first; 0: nothing"},
                {"name": "labels", "dtype": "int64", "shape": [rows], "values": "positions in classes; -1: nothing"},
            ],
            "needs": "import torchvision, before torch.export.load",
        }  # fmt: skip


def pair(got: Found, expected: Found, side: float) -> tuple[float, int]:
    """The largest difference of two detections that are the same one, and how many detections have no partner.

    Args:
        got: some detections.
        expected: others.
        side: what differences of boxes are divided by.

    Example:
        >>> one = (torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0.9]), torch.tensor([1]))
        >>> boxes = torch.tensor([[0.0, 0.0, 10.5, 10.0], [5.0, 5.0, 9.0, 9.0]])
        >>> pair(one, (boxes, torch.tensor([0.9, 0.4]), torch.tensor([1, 1])), side=128)
        (0.00390625, 1)
    """
    boxes = (got[0][:, None] - expected[0][None]).abs().amax(-1) / side
    apart = torch.maximum(boxes, (got[1][:, None] - expected[1][None]).abs())
    apart = torch.where(got[2][:, None] == expected[2][None], apart, torch.inf).nan_to_num(nan=torch.inf)
    largest, paired = 0.0, 0
    while apart.numel() and float(apart.min()) <= NEAR:
        best = float(apart.min())
        row, column = divmod(int(apart.argmin()), apart.shape[1])
        apart[row], apart[:, column] = torch.inf, torch.inf
        largest, paired = max(largest, best), paired + 1
    return largest, len(got[1]) + len(expected[1]) - 2 * paired
