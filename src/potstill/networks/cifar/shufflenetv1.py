"""ShuffleNet (version 1, three groups) for CIFAR.

Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR 2018),
table 1, g = 3. State-dict keys and shapes are those of RepDistiller's ``models/ShuffleNetv1.py``, so that its
checkpoints load. Differences from it: pooling is adaptive, and channels_last maps stay so. Differences of both from the
paper: a 1x1 stem of stride 1 with no max pooling, a ReLU after the depthwise convolution too, and hidden channels a
quarter of what a block adds, not of what it outputs.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, shuffle_channels

__all__ = ["CifarShuffleNetV1"]

default_cfgs = generate_default_cfgs({"ShuffleV1": cifar_cfg(classifier="linear")})

STEM = 24


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; then plus x, or at stride 2 beside x's average pooling.

    Args:
        in_channels: channels of x.
        channels: channels that the unit computes; at stride 2 its output has ``channels + in_channels``.
        stride: 1 or 2.
        groups: of both 1x1 convolutions, except the first of the network.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        hidden = channels // 4
        # The paper groups no 1x1 convolution on the stem's few channels.
        self.groups = 1 if in_channels == STEM else groups
        self.conv1 = conv1x1(in_channels, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, channels, groups=groups)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to the same, or at stride 2 to ``(B, channels + in_channels, H / 2, W / 2)``."""
        out = shuffle_channels(self.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + x if self.pool is None else torch.cat([out, self.pool(x)], 1))


class CifarShuffleNetV1(CifarNetwork):
    """Three stages of shuffle units at 16, 8 and 4 pixels, of 240, 480 and 960 channels.

    Each stage's first unit halves the map. Taps: the stem and each stage's end, all after the ReLU. All weights start
    from torch's default.

    Args:
        widths: channels of the three stages.
        blocks: units in each.
        groups: g.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
    """

    tap_modules = ("relu", "layer1", "layer2", "layer3")
    tap_reductions = (1, 2, 4, 8)
    classifier_name = "linear"

    def __init__(
        self,
        widths: tuple[int, int, int] = (240, 480, 960),
        blocks: tuple[int, int, int] = (4, 8, 4),
        groups: int = 3,
        num_classes: int = 100,
        in_chans: int = 3,
    ) -> None:
        super().__init__((STEM, *widths), widths[-1], num_classes)
        self.conv1 = conv1x1(in_chans, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = make_stage(STEM, widths[0], blocks[0], groups)
        self.layer2 = make_stage(widths[0], widths[1], blocks[1], groups)
        self.layer3 = make_stage(widths[1], widths[2], blocks[2], groups)
        self.linear = self.make_classifier()

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 1x1 convolution, batch norm and ReLU, at the image's size."""
        return self.relu(self.bn1(self.conv1(x)))


def make_stage(in_channels: int, channels: int, blocks: int, groups: int) -> nn.Sequential:
    """``blocks`` shuffle units; the first halves the map and computes what its pooled input does not fill."""
    first = ShuffleUnit(in_channels, channels - in_channels, 2, groups)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, 1, groups) for _ in range(blocks - 1)))


@register_model
def ShuffleV1(pretrained: bool = False, **kwargs: Any) -> CifarShuffleNetV1:  # noqa: N802, the papers' name
    """Three groups, width 1: 949,258 parameters at 100 classes."""
    return build(CifarShuffleNetV1, "ShuffleV1", pretrained, **kwargs)
