"""The blocks of a network's stages, found from one recorded pass."""

from dataclasses import dataclass

from torch import nn

from potstill.networks.features import MapSpec
from potstill.networks.probe import stride_of
from potstill.networks.recording import Call, Key, Recording

__all__ = ["Block", "blocks_of_maps", "find_blocks"]


@dataclass(frozen=True, slots=True)
class Block:
    """The end of a block.

    Attributes:
        spec: its shape; the name is the layer's.
        stage: the map that its stage ends with, by index.
        call: which call of the layer in a pass, counted from 0; None where the block's end is the map itself.
    """

    spec: MapSpec
    stage: int
    call: int | None = None


def blocks_of_maps(maps: tuple[MapSpec, ...]) -> tuple[Block, ...]:
    """Each map as the end of a block of its own."""
    return tuple(Block(spec, stage) for stage, spec in enumerate(maps))


def find_blocks(recording: Recording, keys: list[Key], maps: tuple[MapSpec, ...], pixels: int) -> tuple[Block, ...]:
    """The blocks on the way from each map to the next, in the order of the pass.

    A stage's blocks are the children of its ``nn.Sequential``, or of a module that runs children of one class one after
    the other. A stage without such children is one block, and so is one whose map no layer returns as it is (tokens
    that are put back in rows). The first map is no block if it has none itself and later ones have: it is the stem.

    Args:
        recording: of a pass.
        keys: of the maps in that pass.
        maps: their shapes.
        pixels: of a side of the images.
    """
    stages = [stage_blocks(recording, keys[: index + 1]) for index in range(len(keys))]
    found = []
    for index, (spec, blocks) in enumerate(zip(maps, stages, strict=True)):
        if not blocks and (index or not any(stages)):
            found.append(Block(spec, index))
        for block in blocks:
            assert block.returned is not None
            _, channels, rows, _ = block.returned[2]
            stride = spec.stride if rows == keys[index][2][2] else stride_of(pixels, rows)
            call = None if block.returned == keys[index] else block.number
            found.append(Block(MapSpec(block.name, channels, stride), index, call))
    return tuple(found)


def stage_blocks(recording: Recording, keys: list[Key]) -> list[Call]:
    """The blocks that lead from the second to last of ``keys`` to the last; none where a stage is not made of any."""
    *earlier, key = keys
    blocks: list[Call] = []
    call = outermost(recording.calls, key, earlier)
    if call is None or not expand(recording, call):
        return blocks
    while call is not None:
        blocks = expand(recording, call) + blocks
        before = recording.calls[: recording.calls.index(call)]
        call = None if call.given is None or call.given in earlier else outermost(before, call.given, earlier)
    return blocks


def outermost(calls: list[Call], key: Key, earlier: list[Key]) -> Call | None:
    """The outermost call that returned a tensor and made no earlier map on the way."""
    made = [call for call in calls if call.returned in earlier and not call.idle()]
    whole = (call for call in calls if call.returned == key and not any(other.within(call) for other in made))
    return next(whole, None)


def expand(recording: Recording, call: Call) -> list[Call]:
    """The blocks that a stage's call is made of; none where it is not made of blocks."""
    children = recording.inside(call)
    last = next((child for child in children if child.returned == call.returned), None)
    if isinstance(call.layer, nn.Sequential):
        blocks = [child for child in children if is_map(child) and any(True for _ in child.layer.children())]
        return blocks if last in blocks else []
    if last is not None and (isinstance(last.layer, nn.Sequential) or len(children) == 1):
        return expand(recording, last)
    alike = all(type(child.layer) is type(children[0].layer) and recording.inside(child) for child in children)
    return children if last is not None and alike and all(map(is_map, children)) else []


def is_map(call: Call) -> bool:
    return call.returned is not None and len(call.returned[2]) == 4
