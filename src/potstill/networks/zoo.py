"""The networks that come with Potstill, by origin; each lies in a file that ships beside its weights."""

from pathlib import Path

from potstill.networks import cifar, faces

__all__ = ["ZOOS", "zoo_file"]

# By the origin of "cifar/NAME" and "faces/NAME": the names, and what timm knows each by.
ZOOS: dict[str, dict[str, str]] = {"cifar": cifar.CIFAR_MODELS, "faces": faces.FACE_MODELS}


def zoo_file(timm_name: str) -> Path | None:
    """The source file that defines a network of Potstill's own; None for any other network.

    Example:
        >>> zoo_file("wrn_40_2").name, zoo_file("iresnet50").name, zoo_file("resnet18")
        ('wrn.py', 'iresnet.py', None)
    """
    for package, models in ((cifar, ZOOS["cifar"]), (faces, ZOOS["faces"])):
        if timm_name in models.values():
            return package.family_file(timm_name)
    return None
