"""IR-ResNets, the residual networks of face recognition: iresnet18 to iresnet100, and iresnet10 for small students.

Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (CVPR 2019), section 3.1. State-
dict keys and shapes are those of insightface's ``arcface_torch`` at 112 pixels, so that its weights load. Differences
from it: every activation is out of place. The batch norm that ends the embedding keeps its weight at one, as there.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import Scale, StagedFaceNetwork, build, conv1x1, conv3x3, face_cfg, scaled

__all__ = ["IResNet"]

default_cfgs = generate_default_cfgs(
    {name: face_cfg("conv1") for name in ("iresnet10", "iresnet18", "iresnet34", "iresnet50", "iresnet100")}
)


class Block(nn.Module):
    """``bn(conv(prelu(bn(conv(bn x))))) + shortcut x`` with two 3x3 convolutions; nothing is activated at its end."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, channels), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        if self.downsample is None:
            return out + x
        # What a strided 1x1 convolution reads; oneDNN's backward pass of one with few channels writes past its memory
        # (torch 2.15, float32, channels last).
        return out + self.downsample(x[..., :: self.stride, :: self.stride])


class IResNet(StagedFaceNetwork):
    """A stem at the image's size and four stages that halve it; then batch norm, dropout, one linear layer, batch norm.

    Taps: the stem after its PReLU, and each stage's end, which is linear.

    Args:
        blocks: of each stage.
        width: a factor on the channels 64-64-128-256-512, in whole eights.
        img_size: height and width of the images, or one number for both.
        dim: D, the length of the embedding.
        drop_rate: of what the linear layer reads, in training.
        num_classes: C, the identities; 0 for embeddings alone.
        in_chans: channels of the images.
        scale: of the identity head.
    """

    tap_modules = ("prelu", "layer1", "layer2", "layer3", "layer4")
    tap_reductions = (1, 2, 4, 8, 16)

    def __init__(
        self,
        blocks: Sequence[int],
        width: float = 1.0,
        img_size: int | Sequence[int] = 112,
        dim: int = 512,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        scale: Scale = 64.0,
    ) -> None:
        widths = [scaled(channels, width) for channels in (64, 64, 128, 256, 512)]
        super().__init__(widths, img_size, dim, num_classes, scale)
        self.conv1 = conv3x3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        self.layer1 = make_stage(widths[0], widths[1], blocks[0])
        self.layer2 = make_stage(widths[1], widths[2], blocks[1])
        self.layer3 = make_stage(widths[2], widths[3], blocks[2])
        self.layer4 = make_stage(widths[3], widths[4], blocks[3])
        self.bn2 = nn.BatchNorm2d(widths[4])
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(widths[4] * self.map_size[0] * self.map_size[1], dim)
        self.features = nn.BatchNorm1d(dim)
        self.features.weight.requires_grad_(False)  # the embedding's length is for the loss to say, not for this layer
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Tap ``index - 1`` to tap ``index``; images to tap 0."""
        return super().forward_stage(index, x) if index else self.prelu(self.bn1(self.conv1(x)))

    def embed(self, x: Tensor) -> Tensor:
        """The last stage's end to the embedding ``(B, D)``."""
        self.check_map(x)
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))


def make_stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """``blocks`` blocks; the first halves the size."""
    return nn.Sequential(Block(in_channels, channels, 2), *(Block(channels, channels, 1) for _ in range(blocks - 1)))


@register_model
def iresnet10(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """One block a stage; with ``width=0.25`` a student for the CPU."""
    return build(IResNet, "iresnet10", pretrained, blocks=(1, 1, 1, 1), **kwargs)


@register_model
def iresnet18(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """Two blocks a stage: 24.0 million parameters without the head."""
    return build(IResNet, "iresnet18", pretrained, blocks=(2, 2, 2, 2), **kwargs)


@register_model
def iresnet34(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """3-4-6-3 blocks: 34.1 million parameters without the head."""
    return build(IResNet, "iresnet34", pretrained, blocks=(3, 4, 6, 3), **kwargs)


@register_model
def iresnet50(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """3-4-14-3 blocks: 43.6 million parameters without the head."""
    return build(IResNet, "iresnet50", pretrained, blocks=(3, 4, 14, 3), **kwargs)


@register_model
def iresnet100(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """3-13-30-3 blocks: 65.2 million parameters without the head."""
    return build(IResNet, "iresnet100", pretrained, blocks=(3, 13, 30, 3), **kwargs)
