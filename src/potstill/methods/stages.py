"""Which ends of the stages a method that works level by level reads, and how a map comes to another's size."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.inputs import teacher_spec
from potstill.networks.features import MapSpec

__all__ = ["deepest", "paired_stages", "pooled", "stages", "two_images"]


def stages(maps: Sequence[MapSpec], levels: int, method: str, network: str) -> tuple[MapSpec, ...]:
    """The deepest maps of a network.

    Args:
        maps: of the network's spec, the stem's first.
        levels: how many; 0 for all but the first, which is the stem's.
        method: for the sentences.
        network: "student" or "teacher", likewise.

    Raises:
        RecipeError: for a negative number.
        NetworkError: where the network has fewer.

    Example:
        >>> stages([MapSpec("stem", 16, 1), MapSpec("1", 16, 1), MapSpec("2", 32, 2)], 0, "ofd", "student")
        (MapSpec(name='1', channels=16, stride=1), MapSpec(name='2', channels=32, stride=2))
    """
    if levels < 0:
        raise RecipeError(f"levels is {levels}; expected how many of the deepest maps to compare, or 0 for all stages.")
    count = levels or len(maps) - 1
    if not 1 <= count <= len(maps):
        raise NetworkError(
            f"{method} compares {f'the {levels} deepest maps' if levels else 'the ends of the stages'}, but the "
            f"{network} shows {len(maps)} maps, its stem's among them. Name its taps, set fewer levels, or take a "
            "method that compares embeddings, such as pefd."
        )
    return tuple(maps[-count:])


def paired_stages(setting: Setting, levels: int, method: str) -> tuple[tuple[MapSpec, ...], tuple[MapSpec, ...]]:
    """The deepest maps of student and teacher, as many of one as of the other: a shallower end has no partner.

    Raises:
        RecipeError: for no teacher, and as in :func:`stages`.
        NetworkError: as in :func:`stages`.
    """
    student = stages(setting.student.maps, levels, method, "student")
    teacher = stages(teacher_spec(setting, method).maps, levels, method, "teacher")
    count = min(len(student), len(teacher))
    return student[-count:], teacher[-count:]


def deepest(tensors: Sequence[Tensor], count: int, method: str, what: str) -> tuple[Tensor, ...]:
    """The last of the maps that a network gave.

    Raises:
        NetworkError: where it gave fewer.
    """
    if len(tensors) < count:
        raise NetworkError(f"{method} reads {count} of {what}, but the network gave {len(tensors)} of them.")
    return tuple(tensors[-count:])


def pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The maps averaged down to ``(h, w)``, or repeated up to it; as they are where that is their size."""
    height, width = size
    return maps if maps.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(maps, (height, width))


def two_images(setting: Setting, method: str) -> None:
    """Refuse a step of one image: a batch norm on one value a channel has no variance.

    Raises:
        RecipeError: with what to do.
    """
    if setting.batch_size == 1:
        raise RecipeError(
            f"The batch_size is 1 in a process, but {method} has batch norms on one value an image and a channel: "
            "take 2 images or more."
        )
