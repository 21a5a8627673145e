"""ShuffleNet V2 (width 1) for CIFAR.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (ECCV 2018), table 5, 1x.
State-dict keys and shapes are those of RepDistiller's ``models/ShuffleNetv2.py``, so that its checkpoints load.
Differences from it: pooling is adaptive, and channels_last maps stay so. Difference of both from the paper: a 1x1 stem
of stride 1 with no max pooling.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, shuffle_channels

__all__ = ["CifarShuffleNetV2"]

default_cfgs = generate_default_cfgs({"ShuffleV2": cifar_cfg(classifier="linear")})

STEM = 24


class BasicUnit(nn.Module):
    """One half of the channels passes, the other goes through 1x1, depthwise 3x3 and 1x1; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to the same shape."""
        kept, out = x.chunk(2, dim=1)
        out = self.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.relu(self.bn3(self.conv3(out)))
        return shuffle_channels(torch.cat([kept, out], 1), 2)


class DownUnit(nn.Module):
    """Two branches, each of which halves the map and computes one half of the channels; then all are shuffled.

    ``conv1`` and ``conv2`` are the left branch (depthwise 3x3, 1x1), ``conv3`` to ``conv5`` the right (1x1, depthwise
    3x3, 1x1).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / 2, W / 2)``."""
        left = self.bn1(self.conv1(x))
        left = self.relu(self.bn2(self.conv2(left)))
        right = self.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = self.relu(self.bn5(self.conv5(right)))
        return shuffle_channels(torch.cat([left, right], 1), 2)


class CifarShuffleNetV2(CifarNetwork):
    """Three stages at 16, 8 and 4 pixels, of 116, 232 and 464 channels, and a 1x1 convolution to 1024.

    Each stage is one unit that halves the map and ``blocks`` that keep it. Taps: the stem and each stage's end, after
    the ReLU; the embedding is pooled after the last convolution, so it has more channels than the last tap. All weights
    start from torch's default.

    Args:
        widths: channels of the three stages and of the last convolution.
        blocks: units after the first in each stage.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
    """

    tap_modules = ("relu", "layer1", "layer2", "layer3")
    tap_reductions = (1, 2, 4, 8)
    classifier_name = "linear"

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (116, 232, 464, 1024),
        blocks: tuple[int, int, int] = (3, 7, 3),
        num_classes: int = 100,
        in_chans: int = 3,
    ) -> None:
        super().__init__((STEM, *widths[:3]), widths[3], num_classes)
        self.conv1 = conv1x1(in_chans, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = make_stage(STEM, widths[0], blocks[0])
        self.layer2 = make_stage(widths[0], widths[1], blocks[1])
        self.layer3 = make_stage(widths[1], widths[2], blocks[2])
        self.conv2 = conv1x1(widths[2], widths[3])
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU()
        self.linear = self.make_classifier()

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 1x1 convolution, batch norm and ReLU, at the image's size."""
        return self.relu(self.bn1(self.conv1(x)))

    def forward_final(self, x: Tensor) -> Tensor:
        """The 1x1 convolution to the embedding's channels, batch norm and ReLU."""
        return self.relu2(self.bn2(self.conv2(x)))


def make_stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """One unit that halves the map, then ``blocks`` that keep its shape."""
    return nn.Sequential(DownUnit(in_channels, channels), *(BasicUnit(channels) for _ in range(blocks)))


@register_model
def ShuffleV2(pretrained: bool = False, **kwargs: Any) -> CifarShuffleNetV2:  # noqa: N802, the papers' name
    """Width 1: 1,355,528 parameters at 100 classes."""
    return build(CifarShuffleNetV2, "ShuffleV2", pretrained, **kwargs)
