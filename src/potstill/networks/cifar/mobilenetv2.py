"""MobileNetV2 for CIFAR, half as wide as the original.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2. State-dict keys
and shapes are those of RepDistiller's ``models/mobilenetv2.py`` (``mobile_half``), so that its checkpoints load.
Differences from it: every activation is out of place, and pooling is adaptive. Differences of both from the paper:
stride 1 in the second stage, ReLU in place of ReLU6, an expansion layer in the first block too, and no dropout.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, conv1x1, conv3x3, fan_out_init

__all__ = ["CifarMobileNetV2"]

default_cfgs = generate_default_cfgs({"MobileNetV2": cifar_cfg(first_conv="conv1.0", classifier="classifier.0")})

# Channels at full width, blocks and first stride of the seven stages; the first does not expand.
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
TAP_STAGES = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 with no activation; plus x where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv = nn.Sequential(
            *(conv1x1(in_channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU()),
            *(conv3x3(hidden, hidden, stride, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU()),
            *(conv1x1(hidden, channels), nn.BatchNorm2d(channels)),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``, not activated."""
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV2(CifarNetwork):
    """A stem of stride 2, seven stages of inverted residuals at 16 to 2 pixels, and a 1x1 convolution to 1280.

    Taps: the stem after its ReLU, and the ends of stages 2, 3, 5 and 7, which are linear (no activation follows a
    block). The embedding is pooled after the last convolution, so it has more channels than the last tap. Convolutions
    start from N(0, 2 / (k k C_out)), the last layer from N(0, 0.01^2) with bias zero.

    Args:
        expansion: T, hidden channels of a block for each of its input channels.
        width: W, the factor on the paper's channels, rounded down; the last convolution keeps 1280 up to W = 1.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
    """

    tap_modules = ("conv1", *(f"blocks.{stage}" for stage in TAP_STAGES))
    tap_reductions = (2, 2, 4, 8, 16)
    classifier_name = "classifier.0"

    def __init__(self, expansion: int = 6, width: float = 0.5, num_classes: int = 100, in_chans: int = 3) -> None:
        stem = int(32 * width)
        last = int(1280 * max(width, 1.0))
        super().__init__((stem, *(int(STAGES[stage][0] * width) for stage in TAP_STAGES)), last, num_classes)
        self.conv1 = nn.Sequential(conv3x3(in_chans, stem, 2), nn.BatchNorm2d(stem), nn.ReLU())
        self.blocks = nn.ModuleList()
        in_channels = stem
        for stage, (full, count, stride) in enumerate(STAGES):
            channels, factor = int(full * width), expansion if stage else 1
            first = InvertedResidual(in_channels, channels, stride, factor)
            others = (InvertedResidual(channels, channels, 1, factor) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *others))
            in_channels = channels
        self.conv2 = nn.Sequential(conv1x1(in_channels, last), nn.BatchNorm2d(last), nn.ReLU())
        self.classifier = nn.Sequential(self.make_classifier())
        fan_out_init(self)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Weights from N(0, 0.01^2), bias zero."""
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)

    def forward_stem(self, x: Tensor) -> Tensor:
        """One 3x3 convolution of stride 2, batch norm and ReLU."""
        return self.conv1(x)

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """The stages from the tap before to this one."""
        first = TAP_STAGES[index - 2] + 1 if index > 1 else 0
        for stage in range(first, TAP_STAGES[index - 1] + 1):
            x = self.blocks[stage](x)
        return x

    def forward_final(self, x: Tensor) -> Tensor:
        """The 1x1 convolution to the embedding's channels, batch norm and ReLU."""
        return self.conv2(x)


@register_model
def MobileNetV2(pretrained: bool = False, **kwargs: Any) -> CifarMobileNetV2:  # noqa: N802, the papers' name
    """Expansion 6, width 0.5: 812,836 parameters at 100 classes."""
    return build(CifarMobileNetV2, "MobileNetV2", pretrained, expansion=6, width=0.5, **kwargs)
