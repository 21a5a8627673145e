"""ResNet50 for CIFAR: ImageNet's bottleneck ResNet with a stem for small images.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1, with a 3x3 stem of stride 1 and
no max pooling. timm's ``resnet50`` is the one for ImageNet. State-dict keys and shapes are those of RepDistiller's
``models/resnetv2.py``, so that its checkpoints load. Difference from it: every activation and every sum is out of
place.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, fan_out_init

__all__ = ["CifarBottleneckResNet"]

default_cfgs = generate_default_cfgs({"ResNet50": cifar_cfg(classifier="linear")})

EXPANSION = 4  # channels of a block's output for each channel of its 3x3 convolution


class Bottleneck(nn.Module):
    """``relu(expand(spatial(reduce x)) + shortcut x)``: 1x1, 3x3 and 1x1 convolutions, each with batch norm."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, 4 width, H / stride, W / stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


class CifarBottleneckResNet(CifarNetwork):
    """Four stages of bottleneck blocks at 32, 16, 8 and 4 pixels, of 256, 512, 1024 and 2048 channels.

    Taps: the stem and each stage's end, all after the ReLU. Convolutions start from N(0, 2 / (k k C_out)), the last
    layer from torch's default.

    Args:
        blocks: blocks in each of the four stages.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
    """

    tap_modules = ("relu", "layer1", "layer2", "layer3", "layer4")
    tap_reductions = (1, 1, 2, 4, 8)
    classifier_name = "linear"

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__((64, 256, 512, 1024, 2048), 2048, num_classes)
        self.conv1 = conv3x3(in_chans, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = make_stage(64, 64, blocks[0], stride=1)
        self.layer2 = make_stage(256, 128, blocks[1], stride=2)
        self.layer3 = make_stage(512, 256, blocks[2], stride=2)
        self.layer4 = make_stage(1024, 512, blocks[3], stride=2)
        self.linear = self.make_classifier()
        fan_out_init(self)

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 3x3 convolution, batch norm and ReLU, at the image's size."""
        return self.relu(self.bn1(self.conv1(x)))


def make_stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` bottlenecks; the first changes the channels and the size."""
    first = Bottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)))


@register_model
def ResNet50(pretrained: bool = False, **kwargs: Any) -> CifarBottleneckResNet:  # noqa: N802, the papers' name
    """Stages of 3, 4, 6 and 3 blocks: 23,705,252 parameters at 100 classes."""
    return build(CifarBottleneckResNet, "ResNet50", pretrained, blocks=(3, 4, 6, 3), **kwargs)
