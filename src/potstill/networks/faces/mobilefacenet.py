"""MobileFaceNet: inverted residuals with PReLU, and a global depthwise convolution in the place of pooling.

Source: Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices" (CCBR
2018), table 1. Difference from it: the embedding has 512 numbers unless ``dim=128`` asks for the paper's 128.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import Scale, StagedFaceNetwork, build, conv1x1, conv3x3, face_cfg, scaled

__all__ = ["MobileFaceNet"]

default_cfgs = generate_default_cfgs({"mobilefacenet": face_cfg("conv1.0")})

# Table 1: each stage's channels, and for each of its blocks the expansion; the first block halves the size.
STAGES = ((64, (2, 2, 2, 2, 2)), (128, (4, 2, 2, 2, 2, 2, 2)), (128, (4, 2, 2)))


class Bottleneck(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 with no activation; plus x where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv = nn.Sequential(
            *(conv1x1(in_channels, hidden), nn.BatchNorm2d(hidden), nn.PReLU(hidden)),
            *(conv3x3(hidden, hidden, stride, groups=hidden), nn.BatchNorm2d(hidden), nn.PReLU(hidden)),
            *(conv1x1(hidden, channels), nn.BatchNorm2d(channels)),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``, not activated."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileFaceNet(StagedFaceNetwork):
    """A stem of stride 2 and three stages; a 1x1 convolution; then one weight for each place and channel, and a layer.

    Taps: the stem after its PReLU, and each stage's end, which is linear.

    Args:
        width: a factor on all channels, in whole eights.
        img_size: height and width of the images, or one number for both.
        dim: D, the length of the embedding; 128 in the paper.
        drop_rate: of what the last layer reads, in training; 0 in the paper.
        num_classes: C, the identities; 0 for embeddings alone.
        in_chans: channels of the images.
        scale: of the identity head.
    """

    tap_modules = ("conv2", "layer1", "layer2", "layer3")
    tap_reductions = (2, 4, 8, 16)

    def __init__(
        self,
        width: float = 1.0,
        img_size: int | Sequence[int] = 112,
        dim: int = 512,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        scale: Scale = 64.0,
    ) -> None:
        stem, last = scaled(64, width), scaled(512, width)
        widths = [stem, *(scaled(channels, width) for channels, _ in STAGES)]
        super().__init__(widths, img_size, dim, num_classes, scale)
        self.conv1 = nn.Sequential(conv3x3(in_chans, stem, 2), nn.BatchNorm2d(stem), nn.PReLU(stem))
        self.conv2 = nn.Sequential(conv3x3(stem, stem, groups=stem), nn.BatchNorm2d(stem), nn.PReLU(stem))
        self.layer1, self.layer2, self.layer3 = (
            make_stage(widths[stage], widths[stage + 1], expansions) for stage, (_, expansions) in enumerate(STAGES)
        )
        self.conv3 = nn.Sequential(conv1x1(widths[3], last), nn.BatchNorm2d(last), nn.PReLU(last))
        places = nn.Conv2d(last, last, self.map_size, groups=last, bias=False)
        self.gdc = nn.Sequential(places, nn.BatchNorm2d(last))
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(last, dim, bias=False)
        self.bn = nn.BatchNorm1d(dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Tap ``index - 1`` to tap ``index``; images to tap 0."""
        return super().forward_stage(index, x) if index else self.conv2(self.conv1(x))

    def forward_final(self, x: Tensor) -> Tensor:
        """The last stage's end to the map that the embedding reads."""
        return self.conv3(x)

    def embed(self, x: Tensor) -> Tensor:
        """That map to the embedding ``(B, D)``."""
        self.check_map(x)
        return self.bn(self.fc(self.dropout(self.gdc(x).flatten(1))))


def make_stage(in_channels: int, channels: int, expansions: tuple[int, ...]) -> nn.Sequential:
    """A block for each expansion; the first changes the channels and halves the size."""
    first = Bottleneck(in_channels, channels, 2, expansions[0])
    return nn.Sequential(first, *(Bottleneck(channels, channels, 1, expansion) for expansion in expansions[1:]))


@register_model
def mobilefacenet(pretrained: bool = False, **kwargs: Any) -> MobileFaceNet:
    """1.0 million parameters with ``dim=128``, 1.2 million with 512, both without the head."""
    return build(MobileFaceNet, "mobilefacenet", pretrained, **kwargs)
