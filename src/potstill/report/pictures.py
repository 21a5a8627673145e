"""What networks find in some images, beside what is there."""

from collections import Counter
from collections.abc import Sequence

from potstill.report.blocks import Block, Mark, Note, Picture, Pictures, Section, Text, View
from potstill.report.colours import class_colour
from potstill.report.picture_files import PICTURES, Box, Mask, Seen

__all__ = ["pictures"]

_SCORE = 0.5  # from which boxes are shown at first
_CLEAR = 0.55  # of a mask at first: 1 hides the picture
_CROWDED = 8  # true boxes of a picture, on which their names would lie over each other


def pictures(found: Sequence[Seen], classes: Sequence[str] = ()) -> Section:
    """The section of the pictures that a run has kept.

    Args:
        found: of :func:`potstill.report.picture_files.read_pictures`.
        classes: names by class number, which give the colours.
    """
    if not found:
        return Section("pictures", "Pictures", [Note(f"The run kept no pictures ({PICTURES}/).")])
    colours = _colours(found, classes)
    masked = any(one.masks for one in found)
    shown = Pictures(
        "Strength of the masks" if masked else "Boxes with a score of at least", _CLEAR if masked else _SCORE,
        [_picture(one, colours) for one in found], list(colours.items()),
        named=not masked and max(len(one.boxes.get("truth", ())) for one in found) <= _CROWDED,
    )  # fmt: skip
    what = (
        "Images of the validation split: what is there, and what each network says of every pixel."
        if masked
        else "Images of the validation split: what is there, and what each network finds. A box's score is how sure "
        "the network is of it; point at a box to read its class and score."
    )
    blocks: list[Block] = [Text(what), shown]
    return Section("pictures", "Pictures", blocks)


def _colours(found: Sequence[Seen], classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class that is on a picture; of a class that has no number, after all that have one."""
    boxes = (box.label for one in found for row in one.boxes.values() for box in row)
    painted = {name: colour for one in found for mask in one.masks.values() for name, colour in mask.labels.items()}
    there = dict.fromkeys(boxes)
    known = {name: number for number, name in enumerate(classes)}
    extra = [name for name in there if name not in known]
    numbers = known | {name: len(classes) + place for place, name in enumerate(extra)}
    return {name: class_colour(numbers[name]) for name in sorted(there, key=numbers.__getitem__)} | painted


def _picture(seen: Seen, colours: dict[str, str]) -> Picture:
    views = [
        View(who.capitalize(), _said(boxes), [_mark(box, colours[box.label]) for box in boxes])
        for who, boxes in seen.boxes.items()
    ]
    views += [View(who.capitalize(), _shown(mask), mask=mask.image) for who, mask in seen.masks.items()]
    return Picture(seen.name, seen.image, *seen.size, views or [View("Image", "the image alone")])


def _mark(box: Box, colour: str) -> Mark:
    return Mark(box.x, box.y, box.width, box.height, colour, box.label, box.score)


def _said(boxes: Sequence[Box]) -> str:
    """How many boxes of each class there are, of a network's those that are shown at first."""
    counts = Counter(box.label for box in boxes if box.score is None or box.score >= _SCORE)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return f"{found} with a score of {_SCORE} or more" if any(box.score is not None for box in boxes) else found


def _shown(mask: Mask) -> str:
    return ", ".join(mask.labels) or "nothing"
