"""A network for segmentation of torchvision's seen as Features: its stages, and the logits of each pixel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3

from potstill.networks.affine import linear_of
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.networks.probe import at_rest, probe_images, stride_of
from potstill.networks.tapped import Tapped

__all__ = ["SEGMENTERS", "TappedSegmenter", "tap_segmenter"]

SEGMENTERS = (FCN, DeepLabV3, LRASPP)
_ALIASES = ("low", "high", "out", "aux")


class TappedSegmenter(Tapped):
    """A network for segmentation read by its parts.

    ``Features.logits`` are ``(B, C, H, W)``, of each pixel of the images; ``maps`` the ends of the backbone's stages,
    and ``embedding`` ``(B, D)`` the mean of the last of them. An auxiliary head is not trained.
    """

    def forward(self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False) -> Features:
        """One pass over ``images`` ``(B, 3, H, W)``; see :meth:`Tapped.forward`.

        Args:
            images: as the network takes them.
            maps: fill ``Features.maps``.
            preacts: fill ``Features.preacts`` with the maps: where the last activation is, is not looked for.
            blocks: fill ``Features.blocks`` likewise.
        """
        features = self.read(images, maps=True)
        ends = features.maps
        return Features(
            features.logits, features.embedding, ends if maps else (), ends if preacts else (), ends if blocks else ()
        )

    def read(self, images: Tensor, maps: bool) -> Features:
        """The pass itself; see :meth:`Tapped.read`."""
        network: Any = self.network
        ends = network.backbone(images)
        classified = network.classifier(ends if isinstance(network, LRASPP) else ends["out"])
        logits = F.interpolate(classified, size=images.shape[-2:], mode="bilinear", align_corners=False)
        stages = stages_of(ends)
        embedding = list(stages.values())[-1].mean((2, 3))
        return Features(logits, embedding, tuple(stages.values()) if maps else ())

    def open(self, maps: bool = False, preacts: bool = False, blocks: bool = False) -> None:
        """Nothing: what it shows needs no hooks."""

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """The last 1x1 convolution, where one names the pixels; LR-ASPP has two of them, so none."""
        network: Any = self.network
        return None if isinstance(network, LRASPP) else linear_of(network.classifier[-1])


def stages_of(ends: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ends of the stages, each once: without the names that heads read them by, where others are there."""
    stages = {name: end for name, end in ends.items() if name not in _ALIASES}
    return stages or {name: end for name, end in ends.items() if name != "aux"}


def tap_segmenter(network: Any, input_size: tuple[int, int, int]) -> TappedSegmenter:
    """See a network for segmentation of torchvision's as Features.

    Args:
        network: FCN, DeepLabV3 or LR-ASPP.
        input_size: ``(3, H, W)`` of a probe.
    """
    with at_rest(network), torch.no_grad():
        images = probe_images(network, input_size)
        ends = network.backbone(images)
        classes = network(images)["out"].shape[1]
    maps = tuple(
        MapSpec(name, end.shape[1], stride_of(input_size[1], end.shape[2])) for name, end in stages_of(ends).items()
    )
    return TappedSegmenter(network, FeatureSpec(classes, maps[-1].channels, maps), input_size)
