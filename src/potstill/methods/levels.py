"""The levels of two pyramids: which go together, and which of a level's locations count."""

import torch
from torch import Tensor

from potstill.errors import NetworkError
from potstill.methods.base import Setting
from potstill.methods.inputs import teacher_spec
from potstill.methods.pairs import Pairs, map_pairs
from potstill.networks.features import MapSpec
from potstill.objects import Objects

__all__ = ["foreground", "inside", "level_pairs"]

Strides = tuple[float, float]  # of a map, down and across: pixels of the batch's image for one of its own


def level_pairs(setting: Setting, layers: Pairs | None, method: str) -> list[tuple[int, int]]:
    """Which of the student's maps is compared with which of the teacher's: those of one stride, finest first.

    Of several maps with one stride the deepest stands for it, so that of a classifier these are the ends of its stages;
    of a pyramid all levels that both have.

    Args:
        setting: both networks.
        layers: the pairs of indices, counted from 0; None for those of one stride.
        method: its name, for the sentence.

    Raises:
        NetworkError: where no stride is common to both and no pairs are named.
        RecipeError: for an index that there is not, no pairs at all, or no teacher.

    Example:
        >>> from potstill.networks.features import FeatureSpec
        >>> ours, theirs = (4, 8, 16, 32), (8, 16, 32, 64)
        >>> specs = [FeatureSpec(0, 8, tuple(MapSpec(f"p{s}", 8, s) for s in strides)) for strides in (ours, theirs)]
        >>> level_pairs(Setting(*specs), None, "pefd_maps")
        [(1, 0), (2, 1), (3, 2)]
    """
    teacher = teacher_spec(setting, method)
    if layers is not None:
        return map_pairs(setting, layers, method)
    ours, theirs = ({m.stride: at for at, m in enumerate(maps)} for maps in (setting.student.maps, teacher.maps))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise NetworkError(
            f"{method} compares maps of one stride, but the student has {_listed(setting.student.maps)} and the "
            f"teacher {_listed(teacher.maps)}. Name the pairs in {method}'s layers, for instance [[0, 0], [1, 1]], or "
            "the layers in student.taps and teacher.taps."
        )
    return [(ours[stride], theirs[stride]) for stride in common]


def inside(objects: Objects, size: tuple[int, int], strides: Strides, device: torch.device) -> Tensor:
    """Which locations of a level lie in their image and not in what the batch is padded with.

    Args:
        objects: of the batch, B images.
        size: of the level's maps, ``(H, W)``.
        strides: pixels of the image for one of the map, down and across.
        device: of the result.

    Returns:
        ``(B, H, W)`` bool; a location is where its centre is.
    """
    down, across = _centres(size, strides, device)
    # compared with plain numbers: a tensor of them would have to be brought to the device
    return torch.stack([(down < height)[:, None] & (across < width) for height, width in objects.sizes])


def foreground(objects: Objects, size: tuple[int, int], strides: Strides) -> Tensor:
    """Which locations of a level have their centre in one of their image's boxes.

    Args:
        objects: of the batch, B images.
        size: of the level's maps, ``(H, W)``.
        strides: pixels of the image for one of the map, down and across.

    Returns:
        ``(B, H, W)`` bool, on the boxes' device.

    Example:
        >>> box, label = torch.tensor([[0.0, 0.0, 16.0, 8.0]]), torch.tensor([0])
        >>> foreground(Objects((box,), (label,), ((24, 24),), ((24, 24),)), size=(3, 3), strides=(8, 8)).int()
        tensor([[[1, 1, 0],
                 [0, 0, 0],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    found = []
    for boxes in objects.boxes:
        down, across = _centres(size, strides, boxes.device)
        x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # each (n, 1)
        rows, columns = (y1 <= down) & (down < y2), (x1 <= across) & (across < x2)  # (n, H), (n, W)
        found.append((rows.float().T @ columns.float()) > 0.5)  # in how many boxes
    return torch.stack(found)


def _centres(size: tuple[int, int], strides: Strides, device: torch.device) -> tuple[Tensor, Tensor]:
    """In pixels of the image: of the rows ``(H,)`` and of the columns ``(W,)``."""
    down, across = (
        (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * stride
        for count, stride in zip(size, strides, strict=True)
    )
    return down, across


def _listed(maps: tuple[MapSpec, ...]) -> str:
    return ", ".join(f"{m.name} (stride {m.stride})" for m in maps) if maps else "no maps"
