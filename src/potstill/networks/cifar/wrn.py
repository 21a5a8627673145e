"""Wide ResNets of depth 6n + 4 for CIFAR: wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2 (depth, then widening factor).

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016). State-dict keys and shapes are those of
RepDistiller's ``models/wrn.py``, so that its checkpoints load. Differences from it: every activation is out of place,
pooling is adaptive, and there is no dropout argument (all published pairs use 0).
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, fan_out_init

__all__ = ["WideResNet"]

default_cfgs = generate_default_cfgs({name: cifar_cfg() for name in ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")})


class PreActBlock(nn.Module):
    """``conv(relu(bn(conv a))) + shortcut`` with ``a = relu(bn x)``.

    The shortcut is x itself where the widths agree, and otherwise a 1x1 convolution of a, not of x.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.relu = nn.ReLU()
        self.convShortcut = None if in_channels == channels else conv1x1(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``, not activated."""
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """n pre-activation blocks under the published name ``layer``."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """The last block's raw output."""
        return self.layer(x)


class WideResNet(CifarNetwork):
    """Three stages of n pre-activation blocks at 32, 16 and 8 pixels; depth 6n + 4; the stem always has 16 channels.

    Taps: the stem's convolution and each stage's raw output, before any batch norm or ReLU, so they have negative
    values; the map that is pooled is ``relu(bn1(last tap))``. Convolutions start from N(0, 2 / (k k C_out)), the last
    layer's bias from zero.

    Args:
        depth: 6n + 4.
        widen_factor: k; the stages have 16k, 32k and 64k channels.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.

    Raises:
        ValueError: a depth that is not 6n + 4.
    """

    tap_modules = ("conv1", "block1", "block2", "block3")
    tap_reductions = (1, 1, 2, 4)
    final_is_norm = True

    def __init__(self, depth: int, widen_factor: int = 1, num_classes: int = 100, in_chans: int = 3) -> None:
        widths = (16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
        super().__init__(widths, widths[-1], num_classes)
        blocks, odd = divmod(depth - 4, 6)
        if odd or blocks < 1:
            raise ValueError(f"depth is {depth}; a Wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40, ...")
        self.conv1 = conv3x3(in_chans, widths[0])
        self.block1 = Stage(widths[0], widths[1], blocks, stride=1)
        self.block2 = Stage(widths[1], widths[2], blocks, stride=2)
        self.block3 = Stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.fc = self.make_classifier()
        fan_out_init(self)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Torch's default weights, bias zero."""
        nn.init.zeros_(classifier.bias)

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 3x3 convolution; its batch norm is the first block's."""
        return self.conv1(x)

    def forward_final(self, x: Tensor) -> Tensor:
        """The batch norm and ReLU that a pre-activation network owes at its end."""
        return self.relu(self.bn1(x))


@register_model
def wrn_16_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Depth 16, width 1: 180,916 parameters at 100 classes."""
    return build(WideResNet, "wrn_16_1", pretrained, depth=16, widen_factor=1, **kwargs)


@register_model
def wrn_16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Depth 16, width 2: 703,284 parameters at 100 classes."""
    return build(WideResNet, "wrn_16_2", pretrained, depth=16, widen_factor=2, **kwargs)


@register_model
def wrn_40_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Depth 40, width 1: 569,780 parameters at 100 classes."""
    return build(WideResNet, "wrn_40_1", pretrained, depth=40, widen_factor=1, **kwargs)


@register_model
def wrn_40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Depth 40, width 2: 2,255,156 parameters at 100 classes."""
    return build(WideResNet, "wrn_40_2", pretrained, depth=40, widen_factor=2, **kwargs)
