"""torchvision's heads for segmentation on any backbone of timm's: FCN, DeepLabV3 and LR-ASPP.

This file imports torch, timm and torchvision, and nothing else: it lies beside the weights of a student that ships.
"""

from collections import OrderedDict
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

__all__ = ["KINDS", "Stages", "deeplabv3", "fcn", "lraspp"]


class Stages(nn.Module):
    """A backbone of timm's that returns the ends of its stages by number, and two of them by the names heads read.

    Args:
        backbone: timm's name.
        output_stride: of the last stage; 8 or 16 where the backbone can be dilated, else 32.
        pretrained: download timm's weights.

    Attributes:
        channels: of the ends, the first stage's first.
        low: which of them is "low", for heads that read two: the last one of stride 8 or less.
    """

    def __init__(self, backbone: str, output_stride: int, pretrained: bool = False) -> None:
        super().__init__()
        network: Any = timm.create_model(
            backbone, features_only=True, pretrained=pretrained, output_stride=output_stride
        )  # fmt: skip
        self.network = network
        self.channels: list[int] = list(network.feature_info.channels())
        strides: list[int] = list(network.feature_info.reduction())
        self.low = max((k for k, stride in enumerate(strides[:-1]) if stride <= 8), default=0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The ends of the stages ``"0"``, ``"1"``, ..., and of them ``"low"``, ``"high"`` and ``"out"``."""
        ends = list(self.network(images))
        named = OrderedDict((str(number), end) for number, end in enumerate(ends))
        named.update(low=ends[self.low], high=ends[-1], out=ends[-1])
        return named


def fcn(backbone: str, num_classes: int, *, output_stride: int = 8, pretrained_backbone: bool = False) -> FCN:
    """A fully convolutional network: two convolutions on the last stage.

    Args:
        backbone: timm's name, such as ``resnet18``.
        num_classes: of pixels, background counted where it is a class.
        output_stride: see :class:`Stages`; 8 in torchvision's.
        pretrained_backbone: download timm's weights.

    Example:
        >>> import torch
        >>> fcn("resnet18", num_classes=3).eval()(torch.rand(1, 3, 64, 64))["out"].shape
        torch.Size([1, 3, 64, 64])
    """
    stages = Stages(backbone, output_stride, pretrained_backbone)
    return FCN(stages, FCNHead(stages.channels[-1], num_classes))


def deeplabv3(
    backbone: str, num_classes: int, *, output_stride: int = 8, pretrained_backbone: bool = False
) -> DeepLabV3:
    """DeepLabV3: dilated convolutions of several rates on the last stage.

    Args:
        backbone: as in :func:`fcn`.
        num_classes: likewise.
        output_stride: likewise.
        pretrained_backbone: likewise.
    """
    stages = Stages(backbone, output_stride, pretrained_backbone)
    return DeepLabV3(stages, DeepLabHead(stages.channels[-1], num_classes))


def lraspp(
    backbone: str, num_classes: int, *, output_stride: int = 16, inter_channels: int = 128,
    pretrained_backbone: bool = False,
) -> LRASPP:  # fmt: skip
    """Lite R-ASPP: a light head on the last stage and on one of stride 8.

    Args:
        backbone: as in :func:`fcn`.
        num_classes: likewise.
        output_stride: likewise; 16 in torchvision's.
        inter_channels: of the head.
        pretrained_backbone: as in :func:`fcn`.
    """
    stages = Stages(backbone, output_stride, pretrained_backbone)
    return LRASPP(stages, stages.channels[stages.low], stages.channels[-1], num_classes, inter_channels)


KINDS = {"fcn": fcn, "deeplabv3": deeplabv3, "lraspp": lraspp}
