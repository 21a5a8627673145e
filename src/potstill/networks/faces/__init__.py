"""Embedding networks for faces, registered with timm when this package is imported.

Example:
    >>> import timm
    >>> import potstill.networks.faces
    >>> network = timm.create_model("mobilefacenet", num_classes=20, img_size=64)
    >>> network.num_features, [info["num_chs"] for info in network.feature_info], network.get_classifier()
    (512, [64, 64, 128, 128], IdentityHead(512, 20, scale=64.0))
"""

import inspect
from pathlib import Path
from typing import Literal

from timm.models import model_entrypoint
from torch import nn

from . import backbone, iresnet, mobilefacenet
from .base import IdentityHead

__all__ = ["FACE_MODELS", "IdentityHead", "family_file", "identity_scale"]

FAMILIES = (mobilefacenet, iresnet, backbone)

# The names to timm's, which has no network of any of these names.
FACE_MODELS: dict[str, str] = {name: name for family in FAMILIES for name in family.default_cfgs}


def family_file(timm_name: str) -> Path:
    """The source file that defines a network; this and ``base.py`` beside it are all that its weights need to load.

    Args:
        timm_name: a value of :data:`FACE_MODELS`.

    Raises:
        ValueError: a name that is none of them.

    Example:
        >>> family_file("iresnet50").name
        'iresnet.py'
    """
    if timm_name not in FACE_MODELS.values():
        raise ValueError(f"{timm_name!r} is no face network; there are {', '.join(sorted(FACE_MODELS.values()))}")
    return Path(inspect.getfile(model_entrypoint(timm_name)))


def identity_scale(network: nn.Module) -> float | Literal["norm"] | None:
    """By what the cosines in a network's logits are multiplied; None for a network without an identity head.

    Example:
        >>> identity_scale(iresnet.iresnet10(num_classes=4, width=0.125, img_size=32, scale=30.0))
        30.0
    """
    get_classifier = getattr(network, "get_classifier", None)
    head = get_classifier() if callable(get_classifier) else None
    return head.scale if isinstance(head, IdentityHead) else None
