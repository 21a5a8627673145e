"""Any network of timm as an embedding network for faces: its pooled vector, one linear layer, batch norm."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, model_entrypoint, register_model
from torch import Tensor, nn

from .base import FaceNetwork, Scale, face_cfg

__all__ = ["FaceBackbone"]

default_cfgs = generate_default_cfgs({"face_backbone": face_cfg("backbone")})


class FaceBackbone(FaceNetwork):
    """A network of timm, by name, without its classifier; dropout, a linear layer and a batch norm make the embedding.

    Taps are the backbone's own. Backbones pool the places of the last map, so most of them take images of any size.

    Args:
        backbone: timm's name, such as ``"mobilenetv3_small_100"``.
        backbone_args: keyword arguments of the backbone's own, such as ``{"img_size": 112}`` for a transformer.
        backbone_pretrained: start from the backbone's published weights, which are downloaded.
        dim: D, the length of the embedding.
        drop_rate: of what the linear layer reads, in training.
        num_classes: C, the identities; 0 for embeddings alone.
        in_chans: channels of the images.
        scale: of the identity head.

    Raises:
        ValueError: a backbone that is none of timm's own.
    """

    def __init__(
        self,
        backbone: str,
        backbone_args: Mapping[str, Any] | None = None,
        backbone_pretrained: bool = False,
        dim: int = 512,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        scale: Scale = 64.0,
    ) -> None:
        super().__init__(dim, num_classes, scale)
        if not timm.is_model(backbone) or not model_entrypoint(backbone).__module__.startswith("timm."):
            raise ValueError(f"backbone is {backbone!r}; give the name of one of timm's own networks")
        network: Any = timm.create_model(
            backbone, pretrained=backbone_pretrained, num_classes=0, in_chans=in_chans, **dict(backbone_args or {})
        )
        self.backbone = network
        self.feature_info = [
            {**row, "module": f"backbone.{row['module']}"} for row in getattr(network, "feature_info", [])
        ]
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(getattr(network, "head_hidden_size", None) or network.num_features, dim, bias=False)
        self.bn = nn.BatchNorm1d(dim)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the backbone's last map."""
        return self.backbone.forward_features(x)

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The backbone's taps, by its own method."""
        return self.backbone.forward_intermediates(x, indices=indices, **kwargs)

    def embed(self, x: Tensor) -> Tensor:
        """The last map to the embedding ``(B, D)``."""
        return self.bn(self.fc(self.dropout(self.backbone.forward_head(x, pre_logits=True))))


@register_model
def face_backbone(pretrained: bool = False, **kwargs: Any) -> FaceBackbone:
    """``backbone="NAME"`` of timm; ``pretrained`` is of the backbone, whose mean and deviation then hold."""
    if "backbone" not in kwargs:
        raise ValueError("face_backbone needs the name of one of timm's networks (args: {backbone: NAME})")
    network: Any = build_model_with_cfg(FaceBackbone, "face_backbone", False, backbone_pretrained=pretrained, **kwargs)
    if pretrained:
        own = network.backbone.pretrained_cfg
        network.pretrained_cfg = network.default_cfg = {
            **network.pretrained_cfg, **{key: own[key] for key in ("input_size", "mean", "std")}
        }  # fmt: skip
    return network
