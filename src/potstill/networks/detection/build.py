"""torchvision's detectors on any backbone of timm's: Faster R-CNN, RetinaNet and FCOS with a feature pyramid.

This file imports torch, timm and torchvision, and nothing else: it lies beside the weights of a student that ships.
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "KINDS", "Body", "PyramidBackbone", "fasterrcnn", "fcos", "retinanet"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Body(nn.Module):
    """A backbone of timm's that returns the ends of some of its stages by name, as torchvision's pyramid takes them.

    Args:
        backbone: timm's name.
        strides: of the stages to return, such as ``(4, 8, 16, 32)``.
        pretrained: download timm's weights.

    Raises:
        ValueError: the backbone has no stage of such a stride.
    """

    def __init__(self, backbone: str, strides: Sequence[int], pretrained: bool = False) -> None:
        super().__init__()
        probe: Any = timm.create_model(backbone, features_only=True, pretrained=False)
        # The last stage of each stride.
        last = {row["reduction"]: index for index, row in enumerate(probe.feature_info.info)}
        if missing := [stride for stride in strides if stride not in last]:
            raise ValueError(f"{backbone} has no stage of stride {missing[0]}; its stages have {sorted(last)}")
        indices = [last[stride] for stride in strides]
        network: Any = timm.create_model(
            backbone, features_only=True, out_indices=indices, pretrained=pretrained
        )  # fmt: skip
        self.network = network
        self.channels: list[int] = list(network.feature_info.channels())
        self.strides = list(strides)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The ends of the stages by number, for images ``(B, 3, H, W)``."""
        return OrderedDict((str(number), end) for number, end in enumerate(self.network(images)))


class PyramidBackbone(nn.Module):
    """A body with a feature pyramid on it, the finest level first.

    Args:
        body: the backbone.
        channels: of every level.
        extra: makes the levels above the last stage's.

    Attributes:
        out_channels: of every level, where torchvision's detectors look for it.
        strides: of every level.
    """

    def __init__(self, body: Body, channels: int, extra: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, extra)
        self.out_channels = channels
        above = 2 if isinstance(extra, LastLevelP6P7) else 1
        self.strides = [*body.strides, *(body.strides[-1] * 2 ** (k + 1) for k in range(above))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid's levels by name."""
        levels: dict[str, Tensor] = self.fpn(self.body(images))
        return levels


def fasterrcnn(
    backbone: str,
    num_classes: int,
    *,
    pyramid: int = 256,
    representation: int = 1024,
    anchors: Sequence[float] = (32, 64, 128, 256, 512),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pretrained_backbone: bool = False,
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
    **settings: Any,
) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid of five levels (strides 4 to 64) and a box head of two layers.

    Its labels count from 1, as torchvision has them; 0 is background.

    Args:
        backbone: timm's name, such as ``resnet18``.
        num_classes: of objects, background not counted.
        pyramid: channels of the levels; 256 in the papers.
        representation: units of the box head's two layers; 1024 in the papers.
        anchors: the side of the anchors in pixels, one for each level.
        ratios: height over width of the anchors.
        pretrained_backbone: download timm's weights.
        min_size: the network brings images to this shorter side.
        max_size: and bounds the longer one.
        image_mean: of the channels, for pixels in 0..1.
        image_std: likewise.
        settings: torchvision's own: ``box_batch_size_per_image``, ``rpn_post_nms_top_n_train`` and so on.

    Raises:
        ValueError: a backbone without stages of the pyramid's strides; a setting that torchvision does not know.

    Example:
        >>> import torch
        >>> network = fasterrcnn("resnet18", num_classes=3, pyramid=32, representation=64, min_size=64)
        >>> found = network.eval()([torch.rand(3, 64, 80)])
        >>> sorted(found[0])
        ['boxes', 'labels', 'scores']
    """
    _check_settings(FasterRCNN, settings)
    body = Body(backbone, (4, 8, 16, 32), pretrained_backbone)
    levels = PyramidBackbone(body, pyramid, LastLevelMaxPool())
    pool = MultiScaleRoIAlign([str(k) for k in range(4)], output_size=7, sampling_ratio=2)
    return FasterRCNN(
        levels, None, min_size=min_size, max_size=max_size, image_mean=list(image_mean), image_std=list(image_std),
        rpn_anchor_generator=_anchors([[side] for side in anchors], ratios),
        box_roi_pool=pool,
        box_head=TwoMLPHead(pyramid * 49, representation),
        box_predictor=FastRCNNPredictor(representation, num_classes + 1),
        **settings,
    )  # fmt: skip


def retinanet(
    backbone: str,
    num_classes: int,
    *,
    pyramid: int = 256,
    anchors: Sequence[float] = (32, 64, 128, 256, 512),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pretrained_backbone: bool = False,
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
    **settings: Any,
) -> RetinaNet:
    """RetinaNet with a feature pyramid of five levels (strides 8 to 128); its labels count from 0.

    Args:
        backbone: timm's name, such as ``resnet18``.
        num_classes: of objects; there is no background.
        pyramid: channels of the levels; 256 in the papers.
        anchors: the side of the anchors in pixels, one for each level, each taken in three sizes, a third of an octave
            apart.
        ratios: height over width of the anchors.
        pretrained_backbone: download timm's weights.
        min_size: the network brings images to this shorter side.
        max_size: and bounds the longer one.
        image_mean: of the channels, for pixels in 0..1.
        image_std: likewise.
        settings: torchvision's own: ``topk_candidates``, ``score_thresh`` and so on.
    """
    _check_settings(RetinaNet, settings)
    body = Body(backbone, (8, 16, 32), pretrained_backbone)
    levels = PyramidBackbone(body, pyramid, LastLevelP6P7(pyramid, pyramid))
    sides = [[side * 2 ** (k / 3) for k in range(3)] for side in anchors]
    return RetinaNet(
        levels, num_classes, min_size=min_size, max_size=max_size, image_mean=list(image_mean),
        image_std=list(image_std), anchor_generator=_anchors(sides, ratios), **settings,
    )  # fmt: skip


def fcos(
    backbone: str,
    num_classes: int,
    *,
    pyramid: int = 256,
    convolutions: int = 4,
    pretrained_backbone: bool = False,
    min_size: int = 800,
    max_size: int = 1333,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
    **settings: Any,
) -> FCOS:
    """FCOS with a feature pyramid of five levels (strides 8 to 128); its labels count from 0.

    Args:
        backbone: timm's name, such as ``resnet18``.
        num_classes: of objects; there is no background.
        pyramid: channels of the levels; 256 in the papers.
        convolutions: of each of the head's two branches; 4 in the paper.
        pretrained_backbone: download timm's weights.
        min_size: the network brings images to this shorter side.
        max_size: and bounds the longer one.
        image_mean: of the channels, for pixels in 0..1.
        image_std: likewise.
        settings: torchvision's own: ``center_sampling_radius``, ``topk_candidates`` and so on.
    """
    _check_settings(FCOS, settings)
    body = Body(backbone, (8, 16, 32), pretrained_backbone)
    levels = PyramidBackbone(body, pyramid, LastLevelP6P7(pyramid, pyramid))
    return FCOS(
        levels, num_classes, min_size=min_size, max_size=max_size, image_mean=list(image_mean),
        image_std=list(image_std), anchor_generator=_anchors([[stride] for stride in levels.strides], (1.0,)),
        head=FCOSHead(pyramid, 1, num_classes, convolutions), **settings,
    )  # fmt: skip


def _check_settings(kind: type[nn.Module], settings: dict[str, Any]) -> None:
    """Refuse what torchvision would take without a word and not read: its detectors accept any keyword."""
    known = [name for name, p in inspect.signature(kind).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"{unknown[0]} is no setting of torchvision's {kind.__name__}; it has {', '.join(known)}")


def _anchors(sides: Sequence[Sequence[float]], ratios: Sequence[float]) -> AnchorGenerator:
    return AnchorGenerator(tuple(map(tuple, sides)), (tuple(ratios),) * len(sides))


KINDS = {"fasterrcnn": fasterrcnn, "retinanet": retinanet, "fcos": fcos}
