"""The networks of the distillation papers for CIFAR, registered with timm when this package is imported.

Example:
    >>> import timm
    >>> import potstill.networks.cifar
    >>> network = timm.create_model("resnet8x4", num_classes=10)
    >>> network.num_features, [info["num_chs"] for info in network.feature_info]
    (256, [32, 64, 128, 256])
"""

import inspect
from pathlib import Path

from timm.models import model_entrypoint

from . import mobilenetv2, resnet, resnet_bottleneck, shufflenetv1, shufflenetv2, vgg, wrn

__all__ = ["CIFAR_MODELS", "family_file"]

FAMILIES = (resnet, wrn, vgg, resnet_bottleneck, mobilenetv2, shufflenetv1, shufflenetv2)

# The papers' names to timm's: they differ where timm has a network of that name for ImageNet (vgg13 is cifar_vgg13).
CIFAR_MODELS: dict[str, str] = {
    name.removeprefix("cifar_"): name for family in FAMILIES for name in family.default_cfgs
}


def family_file(timm_name: str) -> Path:
    """The source file that defines a network; this and ``base.py`` beside it are all that its weights need to load.

    Args:
        timm_name: a value of :data:`CIFAR_MODELS`.

    Raises:
        ValueError: a name that is none of them.

    Example:
        >>> family_file("wrn_40_2").name
        'wrn.py'
    """
    if timm_name not in CIFAR_MODELS.values():
        raise ValueError(
            f"{timm_name!r} is no network of the CIFAR zoo; it has {', '.join(sorted(CIFAR_MODELS.values()))}"
        )
    return Path(inspect.getfile(model_entrypoint(timm_name)))
