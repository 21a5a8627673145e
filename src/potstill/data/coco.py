"""Detection data in COCO's layout: a folder of images and one JSON file with their boxes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.data.boxes import BoxSource, Category, ImageRow, ObjectRow
from potstill.data.listed import inside
from potstill.data.source import IMAGENET, Statistics
from potstill.errors import DataError

__all__ = ["CocoSource"]

_LARGEST = 1 << 53  # of a number in pixels: beyond, floats have gaps
_LARGEST_ID = (1 << 63) - 2


class CocoSource(BoxSource):
    """Images and boxes of an ``instances_*.json``; the images' order is the file's.

    Args:
        images: the folder that the file's ``file_name`` are relative to.
        annotations: the JSON file. Of it are read: of each image ``id``, ``file_name``, ``width`` and ``height``; of
            each annotation ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``area`` and
            ``iscrowd``; of each category ``id`` and ``name``. All of these must be there; outlines are not read.
        name: what messages call the set; the images' folder by default.
        root: the folder that no link may leave; ``images`` by default.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: what cannot be read as that, each time with the file and the entry; missing images.

    Example:
        >>> CocoSource(Path("bccd/train2017"), Path("bccd/annotations/instances_train2017.json"))
        Traceback (most recent call last):
        potstill.errors.DataError: Cannot read the annotations bccd/annotations/instances_train2017.json: No such file
        or directory.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        name: str | None = None,
        root: Path | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        content = _read(annotations)
        categories = _categories(content, annotations)
        rows = _images(content, annotations)
        objects = _objects(content, annotations, {row.id for row in rows}, {one.id for one in categories})
        super().__init__(images, rows, objects, categories, name=name or str(images), root=root, statistics=statistics)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"Cannot read the annotations {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON that can be read: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold one JSON object with images, annotations and categories.")
    return content


class _Entry:
    """One entry of a list in the file, which knows what to call itself when something is wrong with it."""

    def __init__(self, content: Any, place: str, keys: tuple[str, ...]) -> None:
        self.content, self.place = content, place
        if not isinstance(content, dict):
            raise DataError(f"{place} should be a JSON object, got {_short(content)}.")
        if type(content.get("id")) is int:
            self.place = f"{place} (id {content['id']})"
        missing = [key for key in keys if key not in content]
        if missing:
            raise DataError(f"{self.place} has no {' and no '.join(missing)}; each entry there needs it.")

    def integer(self, key: str, least: int, most: int) -> int:
        value = self.content[key]
        if type(value) is not int or not least <= value <= most:
            kind = "a whole number" if least < 0 else f"a whole number of {least} or more"
            raise DataError(f"{self.place}: {key} should be {kind}, got {_short(value)}.")
        return value

    def number(self, key: str) -> float:
        value = self.content[key]
        if not _is_number(value) or value < 0:
            raise DataError(f"{self.place}: {key} should be a finite number of 0 or more, got {_short(value)}.")
        return float(value)

    def text(self, key: str) -> str:
        value = self.content[key]
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.place}: {key} should be a text, got {_short(value)}.")
        return value

    def box(self) -> tuple[float, float, float, float]:
        value = self.content["bbox"]
        if not isinstance(value, list) or len(value) != 4 or not all(_is_number(one) for one in value):
            raise DataError(
                f"{self.place}: bbox should be four finite numbers (x, y, width, height), got {_short(value)}."
            )
        x, y, width, height = map(float, value)
        return x, y, width, height


def _is_number(value: Any) -> bool:
    # As a comparison first: a whole number of JSON may have more digits than a float can be made of.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST and math.isfinite(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _entries(content: dict[str, Any], path: Path, kind: str, keys: tuple[str, ...]) -> Iterator[_Entry]:
    """The entries of one of the file's lists, with no number twice."""
    if not isinstance(content.get(kind), list):
        raise DataError(f"{path} has no list of {kind}; COCO's instances have images, annotations and categories.")
    seen: set[int] = set()
    for position, one in enumerate(content[kind]):
        entry = _Entry(one, f"{path}: {kind}[{position}]", keys)
        number = entry.integer("id", -_LARGEST_ID, _LARGEST_ID)
        if number in seen:
            raise DataError(f"{entry.place}: an entry before it has the same id. Each needs one of its own.")
        seen.add(number)
        yield entry


def _categories(content: dict[str, Any], path: Path) -> list[Category]:
    found = [
        Category(entry.content["id"], entry.text("name"))
        for entry in _entries(content, path, "categories", ("id", "name"))
    ]
    if not found:
        raise DataError(f"{path} has no categories, so there is nothing to detect.")
    names = [category.name for category in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two categories are called {twice!r}, and no result could tell them apart.")
    return sorted(found)


def _images(content: dict[str, Any], path: Path) -> list[ImageRow]:
    rows = []
    for entry in _entries(content, path, "images", ("id", "file_name", "width", "height")):
        file = entry.text("file_name")
        if not inside(file):
            raise DataError(
                f"{entry.place}: file_name {_short(file)} is no path inside the images' folder, and is not followed."
            )
        height, width = (entry.integer(side, 1, 1 << 31) for side in ("height", "width"))
        rows.append(ImageRow(entry.content["id"], file, height, width))
    if not rows:
        raise DataError(f"{path} has no images.")
    return rows


def _objects(content: dict[str, Any], path: Path, images: set[int], categories: set[int]) -> list[ObjectRow]:
    rows = []
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    for entry in _entries(content, path, "annotations", keys):
        image, category = (entry.integer(key, -_LARGEST_ID, _LARGEST_ID) for key in ("image_id", "category_id"))
        if image not in images:
            raise DataError(f"{entry.place} is of image {image}, which is not among the file's images.")
        if category not in categories:
            raise DataError(f"{entry.place} is of category {category}, which is not among the file's categories.")
        crowd = entry.content["iscrowd"]
        if crowd not in (0, 1):
            raise DataError(f"{entry.place}: iscrowd should be 0 or 1, got {_short(crowd)}.")
        rows.append(ObjectRow(entry.content["id"], image, category, entry.box(), entry.number("area"), bool(crowd)))
    return rows
