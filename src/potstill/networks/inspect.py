"""What a network's layers look like, and which of two networks' layers belong together."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from potstill.networks.contract import ContractTapped
from potstill.networks.features import FeatureSpec, MapSpec
from potstill.networks.probe import at_rest, default_input_size, probe_images, run_probe, stride_of
from potstill.networks.tapped import Tapped

__all__ = ["TapPair", "TapRow", "describe_taps", "propose_pairs"]


@dataclass(frozen=True, slots=True)
class TapRow:
    """A layer whose output can be a map (or, with neither stride nor size, a vector).

    Attributes:
        name: as taps name it.
        kind: the class of the layer.
        channels: of its output.
        stride: how many input pixels one of its pixels covers, a side.
        size: ``(H, W)`` of its output.
        used: whether the network's features hold it.
    """

    name: str
    kind: str
    channels: int
    stride: int | None
    size: tuple[int, int] | None
    used: bool


class TapPair(NamedTuple):
    """Two maps of one stride, and a note on their channels."""

    student: MapSpec
    teacher: MapSpec
    note: str


def describe_taps(network: nn.Module, input_size: tuple[int, int, int] | None = None) -> list[TapRow]:
    """The layers that can be tapped, in the order of the pass.

    Of a network that keeps timm's contract these are its stages, the embedding and the logits. Of any other, tapped or
    bare, they are all layers that return one tensor ``(B, C, H, W)`` or ``(B, D)``; a layer that runs several times
    stands where it ran last.

    Args:
        network: a :class:`Tapped` network or a bare one.
        input_size: ``(3, H, W)`` of a bare network's probe; None for what the network says of itself.

    Raises:
        NetworkError: the network does not run on images of this size.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> [(row.name, row.kind, row.channels, row.size) for row in describe_taps(network, (3, 32, 32))]
        [('0', 'Conv2d', 8, (16, 16)), ('1', 'AdaptiveAvgPool2d', 8, (1, 1)), ('2', 'Flatten', 8, None),
         ('3', 'Linear', 10, None)]
    """
    if isinstance(network, ContractTapped):
        return describe_stages(network)
    bare = network.network if isinstance(network, Tapped) else network
    used = {row.name for row in network.spec.maps} if isinstance(network, Tapped) else set()
    size = network.input_size if isinstance(network, Tapped) else input_size or default_input_size(bare)
    return describe_layers(bare, size, used)


def describe_stages(tapped: ContractTapped) -> list[TapRow]:
    network: Any = tapped.network
    layers = dict(network.named_modules())
    with at_rest(network):
        images = probe_images(network, tapped.input_size)
        ends = network.forward_intermediates(images, intermediates_only=True)
    rows = [
        TapRow(
            stage.name,
            type(layers[stage.name]).__name__ if stage.name in layers else "stage",
            stage.channels,
            stage.stride,
            (end.shape[2], end.shape[3]),
            index in tapped.indices,
        )
        for index, (stage, end) in enumerate(zip(tapped.available, ends, strict=True))
    ]
    rows.append(TapRow("embedding", "vector", tapped.spec.embedding_dim, None, None, True))
    if tapped.spec.classes:
        rows.append(TapRow("logits", "vector", tapped.spec.classes, None, None, True))
    return rows


def describe_layers(network: nn.Module, input_size: tuple[int, int, int], used: set[str]) -> list[TapRow]:
    names = {layer: name for name, layer in network.named_modules() if name}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = names[layer]
        shapes.pop(name, None)  # so that a second run moves the layer to its place
        if isinstance(output, Tensor):
            shapes[name] = type(layer).__name__, tuple(output.shape)

    handles = [layer.register_forward_hook(note) for layer in names]
    try:
        with at_rest(network):
            run_probe(network, probe_images(network, input_size))
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for name, (kind, shape) in shapes.items():
        if len(shape) == 4:
            stride = stride_of(input_size[1], shape[2])
            rows.append(TapRow(name, kind, shape[1], stride, (shape[2], shape[3]), name in used))
        elif len(shape) == 2:
            rows.append(TapRow(name, kind, shape[1], None, None, name in used))
    return rows


def propose_pairs(student: FeatureSpec, teacher: FeatureSpec) -> list[TapPair]:
    """Pairs of maps to compare: for each stride that both networks have, each one's last layer of that stride.

    Example:
        >>> student = FeatureSpec(10, 64, (MapSpec("layer1", 16, 1), MapSpec("layer2", 32, 2)))
        >>> teacher = FeatureSpec(10, 256, (MapSpec("relu", 32, 1), MapSpec("layer1", 64, 1), MapSpec("layer2", 32, 2)))
        >>> [(pair.student.name, pair.teacher.name, pair.note) for pair in propose_pairs(student, teacher)]
        [('layer1', 'layer1', 'channels differ: 16 and 64'), ('layer2', 'layer2', '32 channels in both')]
    """
    ours = {spec.stride: spec for spec in student.maps}  # a later layer of a stride takes the place of an earlier one
    theirs = {spec.stride: spec for spec in teacher.maps}
    return [
        TapPair(ours[stride], theirs[stride], compare_channels(ours[stride].channels, theirs[stride].channels))
        for stride in sorted(ours.keys() & theirs.keys())
    ]


def compare_channels(student: int, teacher: int) -> str:
    return f"{student} channels in both" if student == teacher else f"channels differ: {student} and {teacher}"
