"""The pictures that a run has kept of what it finds in images, checked, and made small enough for a page.

``pictures/pictures.json`` is a list. Of detection an entry is ``{"file": "pictures/003.jpg", "name": .., "size":
[w, h], "truth": [[x1, y1, x2, y2, label], ..], "student": [[x1, y1, x2, y2, label, score], ..], "teacher": ..}``, with
boxes in pixels of an image of that size; of segmentation ``{"file": .., "name": .., "truth": "pictures/003-truth.png",
"student": .., "teacher": ..}``, masks of 8 bits whose pixels are class numbers, 255 for one that does not count. A
label is a class's name or number. Nothing in the file is trusted: whoever made the folder wrote it.
"""

import base64
import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from potstill.errors import RunError
from potstill.report.colours import class_colour

__all__ = ["PICTURES", "Box", "Mask", "Seen", "read_pictures"]

PICTURES = "pictures"
_INDEX = "pictures.json"
_WHO = ("truth", "student", "control", "teacher")
_MOST = 12  # pictures of a page
_WIDTH, _HEIGHT = 320, 480  # pixels of an embedded picture, at most
_PIXELS = 50_000_000  # of a picture that is opened at all
_BOXES = 100  # of a network in one picture, the surest ones: as many as COCO counts
_NAME = 200  # characters of a name
_FARTHEST = 1e9  # pixels
_NOT_COUNTED = 255


@dataclass(frozen=True, slots=True)
class Box:
    """A box, in pixels of its picture's own size.

    Attributes:
        x: of its left side.
        y: of its upper side.
        width: above 0.
        height: above 0.
        label: the class's name.
        score: how sure the network is, from 0 to 1; None of a true box.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """A class for each pixel, in colours.

    Attributes:
        image: a PNG as a ``data:`` address, clear where no class or the background is.
        labels: the colour of each class that it shows, by name.
    """

    image: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """One image, with what is in it and what networks find there.

    Attributes:
        name: of the image.
        image: a JPEG as a ``data:`` address, at most 320 pixels wide.
        size: width and height that boxes are measured in.
        boxes: "truth", "student", "control", "teacher", as far as there are.
        masks: likewise; of segmentation.
    """

    name: str
    image: str
    size: tuple[float, float]
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)


def read_pictures(folder: Path, classes: Sequence[str] = ()) -> tuple[Seen, ...]:
    """The first twelve pictures of a run; none where it has kept none.

    Args:
        folder: the run's.
        classes: names by class number.

    Raises:
        RunError: where the list or an image is damaged, or a file is named that does not lie in ``pictures``.
    """
    path = folder / PICTURES / _INDEX
    if not path.is_file():
        return ()
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: it is no valid JSON ({error}).") from None
    if not isinstance(found, list):
        raise RunError(f"{path} is damaged: it holds a {type(found).__name__}, expected a list of pictures.")
    return tuple(
        _Reader(folder, f"{path} is damaged: picture {n}", classes).read(e) for n, e in enumerate(found[:_MOST])
    )


class _Reader:
    """Reads one entry; ``where`` begins the sentence on what is wrong with it."""

    def __init__(self, folder: Path, where: str, classes: Sequence[str]) -> None:
        self.folder, self.where, self.classes = folder, where, classes

    def read(self, entry: Any) -> Seen:
        if not isinstance(entry, dict):
            raise RunError(f"{self.where} is a {type(entry).__name__}, expected its file and what is in it.")
        image = self._opened(entry.get("file")).convert("RGB")
        size = self._size(entry.get("size", list(image.size)))
        image.thumbnail((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
        name = _plain(str(entry.get("name") or Path(str(entry["file"])).name))
        who = [one for one in _WHO if entry.get(one) is not None]
        if any(isinstance(entry[one], str) for one in who):
            masks = {one: self._mask(entry[one], image.size) for one in who}
            return Seen(name, _embedded(image, "JPEG", quality=85), size, masks=masks)
        boxes = {one: self._boxes(one, entry[one], size) for one in who}
        return Seen(name, _embedded(image, "JPEG", quality=85), size, boxes)

    def _opened(self, name: Any) -> Image.Image:
        """An image of the folder's own pictures: no other file is looked at, whatever the list says."""
        if not isinstance(name, str) or not name:
            raise RunError(f"{self.where} names no file.")
        room = (self.folder / PICTURES).resolve()
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(room) and path.is_file()
        except (OSError, ValueError):  # a name that is none
            inside = False
        if not inside:
            raise RunError(f"{self.where} names {name[:80]!r}, which is no file in {PICTURES}/.")
        try:
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.width * image.height > _PIXELS:
                    raise RunError(f"{self.where}: {name} has {image.width} x {image.height} pixels, too many to show.")
                image.load()
                return image.copy()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RunError(f"{self.where}: {name} is no JPEG or PNG that can be read ({error}).") from None

    def _size(self, size: Any) -> tuple[float, float]:
        if not isinstance(size, list) or len(size) != 2 or not all(_is_number(v) and v > 0 for v in size):
            raise RunError(f"{self.where} has the size {str(size)[:60]}, expected its width and height.")
        return float(size[0]), float(size[1])

    def _boxes(self, who: str, rows: Any, size: tuple[float, float]) -> tuple[Box, ...]:
        if not isinstance(rows, list):
            raise RunError(f"{self.where}: {who} is a {type(rows).__name__}, expected a list of boxes.")
        boxes = [self._box(who, row, size) for row in rows]
        inside = [box for box in boxes if box.width > 0 and box.height > 0]
        return tuple(sorted(inside, key=lambda box: -(box.score or 0.0))[:_BOXES]) if who != "truth" else tuple(inside)

    def _box(self, who: str, row: Any, size: tuple[float, float]) -> Box:
        length = 5 if who == "truth" else 6
        fits = isinstance(row, list) and len(row) == length and all(map(_is_number, [*row[:4], *row[5:]]))
        if not fits or not (isinstance(row[4], str) or (isinstance(row[4], int) and not isinstance(row[4], bool))):
            form = "[x1, y1, x2, y2, label]" if who == "truth" else "[x1, y1, x2, y2, label, score]"
            raise RunError(f"{self.where}: {who} has the box {str(row)[:80]}, expected {form}.")
        x1, x2 = (min(max(float(x), 0.0), size[0]) for x in (row[0], row[2]))
        y1, y2 = (min(max(float(y), 0.0), size[1]) for y in (row[1], row[3]))
        score = None if who == "truth" else float(row[5])
        label = row[4] if isinstance(row[4], str) else self._called(row[4])
        return Box(x1, y1, x2 - x1, y2 - y1, _plain(label), score)

    def _mask(self, name: Any, size: tuple[int, int]) -> Mask:
        mask = self._opened(name)
        if mask.mode not in ("L", "P"):
            raise RunError(
                f"{self.where}: {name} is of the mode {mask.mode}, expected class numbers of 8 bits (L or P)."
            )
        numbers = np.asarray(mask)  # a palette's indices are the class numbers
        small = Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST)
        shown = [k for k in np.unique(np.asarray(small)).tolist() if k != _NOT_COUNTED and not self._is_background(k)]
        colours = [0] * 3 * 256
        for k in shown:
            colours[3 * k : 3 * k + 3] = bytes.fromhex(class_colour(k)[1:])
        small.putpalette(colours)
        clear = bytes(255 if k in shown else 0 for k in range(256))
        labels = {_plain(self._called(k)): class_colour(k) for k in shown}
        return Mask(_embedded(small, "PNG", optimize=True, transparency=clear), labels)

    def _called(self, number: int) -> str:
        return self.classes[number] if 0 <= number < len(self.classes) else f"class {number}"

    def _is_background(self, number: int) -> bool:
        return self._called(number).lower() in ("background", "__background__")


def _embedded(image: Image.Image, kind: str, **options: Any) -> str:
    """The image as a ``data:`` address, written anew: nothing of the file but its pixels comes along."""
    written = io.BytesIO()
    image.info.clear()
    image.save(written, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def _plain(text: str) -> str:
    """A name on one line, without control characters and halves of characters, which no file can hold."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text[:_NAME])


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < _FARTHEST  # which NaN and infinity are not
