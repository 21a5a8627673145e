"""ResNets of depth 6n + 2 for CIFAR: resnet8 to resnet110, and the four times wider resnet8x4 and resnet32x4.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2; the wider ones are
RepDistiller's. State-dict keys and shapes are those of RepDistiller's ``models/resnet.py``, so that its checkpoints
load. Differences from it: every activation is out of place, and pooling is adaptive. Difference of both from the paper:
where a shape changes, the shortcut is a 1x1 convolution with batch norm, not zero padding.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, fan_out_init

__all__ = ["CifarResNet"]

default_cfgs = generate_default_cfgs(
    {
        name: cifar_cfg()
        for name in (
            *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
            *("resnet8x4", "resnet32x4"),
        )
    }
)


class BasicBlock(nn.Module):
    """``relu(bn(conv(relu(bn(conv x)))) + shortcut x)`` with two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


class CifarResNet(CifarNetwork):
    """Three stages of n basic blocks at 32, 16 and 8 pixels; depth 6n + 2.

    Taps: the stem and each stage's end, all after the ReLU. Convolutions start from N(0, 2 / (k k C_out)), the last
    layer from torch's default.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and the three stages: 16-16-32-64, or 32-64-128-256 for "x4" (whose stem is x2).
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.

    Raises:
        ValueError: a depth that is not 6n + 2.
    """

    tap_modules = ("relu", "layer1", "layer2", "layer3")
    tap_reductions = (1, 1, 2, 4)

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 100,
        in_chans: int = 3,
    ) -> None:
        super().__init__(widths, widths[-1], num_classes)
        blocks, odd = divmod(depth - 2, 6)
        if odd or blocks < 1:
            raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110, ...")
        self.conv1 = conv3x3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = make_stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = make_stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = make_stage(widths[2], widths[3], blocks, stride=2)
        self.fc = self.make_classifier()
        fan_out_init(self)

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 3x3 convolution, batch norm and ReLU, at the image's size."""
        return self.relu(self.bn1(self.conv1(x)))


def make_stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` basic blocks; the first changes the channels and the size."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


@register_model
def resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 8, one block a stage: 83,892 parameters at 100 classes."""
    return build(CifarResNet, "resnet8", pretrained, depth=8, **kwargs)


@register_model
def resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 14, two blocks a stage: 181,108 parameters at 100 classes."""
    return build(CifarResNet, "resnet14", pretrained, depth=14, **kwargs)


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 20, three blocks a stage: 278,324 parameters at 100 classes."""
    return build(CifarResNet, "resnet20", pretrained, depth=20, **kwargs)


@register_model
def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 32, five blocks a stage: 472,756 parameters at 100 classes."""
    return build(CifarResNet, "resnet32", pretrained, depth=32, **kwargs)


@register_model
def resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 44, seven blocks a stage: 667,188 parameters at 100 classes."""
    return build(CifarResNet, "resnet44", pretrained, depth=44, **kwargs)


@register_model
def resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 56, nine blocks a stage: 861,620 parameters at 100 classes."""
    return build(CifarResNet, "resnet56", pretrained, depth=56, **kwargs)


@register_model
def resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 110, eighteen blocks a stage: 1,736,564 parameters at 100 classes."""
    return build(CifarResNet, "resnet110", pretrained, depth=110, **kwargs)


@register_model
def resnet8x4(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 8, stages four times as wide: 1,233,540 parameters at 100 classes."""
    return build(CifarResNet, "resnet8x4", pretrained, depth=8, widths=(32, 64, 128, 256), **kwargs)


@register_model
def resnet32x4(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Depth 32, stages four times as wide: 7,433,860 parameters at 100 classes."""
    return build(CifarResNet, "resnet32x4", pretrained, depth=32, widths=(32, 64, 128, 256), **kwargs)
