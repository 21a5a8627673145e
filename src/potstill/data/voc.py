"""Detection data in Pascal VOC's layout: an XML file with the boxes of each image."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from potstill.data.boxes import BoxSource, Category, ImageRow, ObjectRow
from potstill.data.folder import EXTENSIONS, visible
from potstill.data.source import IMAGENET, Statistics
from potstill.errors import DataError

__all__ = ["VocSource", "files_by_stem", "parse_xml", "read_list"]

_MOST_BYTES = 1 << 26  # of one XML file


class VocSource(BoxSource):
    """Images of ``JPEGImages`` and their boxes from ``Annotations``; image numbers count from 1.

    VOC's boxes count pixels from 1 and include their last one; here they are made to begin at 0 and to end after it:
    x1 and y1 less 1. An object marked ``difficult`` is a crowd region: it is not learnt from, and a detection of it
    counts neither right nor wrong. Parts of objects (``part``) are not read.

    Args:
        root: the folder with ``JPEGImages`` and ``Annotations``.
        stems: the images' names without their extension, in the order of the source.
        classes: the classes' names in the order of their numbers; by default those that occur, in alphabetical order.
        name: what messages call the set.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: an image or an XML file that is not there; XML that cannot be read or declares entities; an object
            without a box of finite numbers, or of a class that is not among ``classes``.
    """

    def __init__(
        self,
        root: Path,
        stems: Sequence[str],
        *,
        classes: Sequence[str] = (),
        name: str | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        files = files_by_stem(root / "JPEGImages", EXTENSIONS)
        pages = [_Page.read(root / "Annotations" / f"{stem}.xml") for stem in stems]
        found = {found.name: page for page in pages for found in page.objects}
        names = tuple(classes) or tuple(sorted(found))
        if not names:
            raise DataError(f"{name or root} has no objects in its {len(pages)} XML files, so nothing can be learnt.")
        for stranger in found.keys() - set(names):
            raise DataError(
                f"{found[stranger].path} has an object of class {stranger!r}, which is not among the training set's "
                f"classes: {', '.join(names)}. Name all classes in a file classes.txt in {root}, one a line."
            )
        number_of = {one: number for number, one in enumerate(names, start=1)}
        rows: list[ImageRow] = []
        objects: list[ObjectRow] = []
        for number, (stem, page) in enumerate(zip(stems, pages, strict=True), start=1):
            if stem not in files:
                raise DataError(f"{root / 'JPEGImages'} has no image {stem}, which {page.path} is of.")
            rows.append(ImageRow(number, files[stem], page.height, page.width))
            for one in page.objects:
                area = max(one.box[2], 0) * max(one.box[3], 0)
                objects.append(ObjectRow(len(objects) + 1, number, number_of[one.name], one.box, area, one.difficult))
        super().__init__(
            root / "JPEGImages",
            rows,
            objects,
            [Category(number, one) for one, number in number_of.items()],
            name=name or str(root),
            root=root,
            statistics=statistics,
        )


class _Found(NamedTuple):
    """An object on a page: its box as x, y, width, height, from 0."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Page(NamedTuple):
    """What one XML file says."""

    path: Path
    height: int
    width: int
    objects: list[_Found]

    @classmethod
    def read(cls, path: Path) -> "_Page":
        tree = parse_xml(path)
        height, width = (_number(tree, f"size/{side}", path) for side in ("height", "width"))
        if min(height, width) < 1 or height % 1 or width % 1:
            raise DataError(f"{path}: the image's size should be whole pixels, got {height:g} high and {width:g} wide.")
        return cls(path, int(height), int(width), list(_objects(tree, path)))


def _objects(tree: ElementTree.Element, path: Path) -> Iterator[_Found]:
    for position, entry in enumerate(tree.findall("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {position} has no name of its class.")
        left, top, right, bottom = (
            _number(entry, f"bndbox/{side}", path, f"object {position} ({name}), ")
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (entry.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise DataError(f"{path}: object {position} ({name}), difficult should be 0 or 1, got {difficult!r}.")
        box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
        yield _Found(name, box, difficult == "1")


def _number(entry: ElementTree.Element, place: str, path: Path, of: str = "") -> float:
    text = entry.findtext(place)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) < 1 << 31:
        raise DataError(f"{path}: {of}{place} should be a number, got {text!r}.")
    return value


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of a small XML file without a document type: one could declare entities that unfold without end.

    Raises:
        DataError: a file that is not there, is no XML, or has a document type declaration.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has more than {_MOST_BYTES:,} bytes, which no image's annotations have.")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read the annotations {path}: {error.strerror}.") from error

    def refuse(*_: object) -> None:
        raise DataError(f"{path} has a document type declaration, which annotations do not need. Take it out.")

    # Found by the parser and not by looking for its letters, which another encoding writes in other bytes.
    looking = expat.ParserCreate()
    looking.StartDoctypeDeclHandler = refuse
    try:
        looking.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no XML that can be read: {error}.") from error


def files_by_stem(folder: Path, extensions: Sequence[str]) -> dict[str, str]:
    """The files of a folder, by their name without extension.

    Raises:
        DataError: a folder that cannot be read; two files that differ in their extension only.
    """
    files: dict[str, str] = {}
    for path in visible(folder):
        if path.suffix.lower() in extensions and not path.is_dir():
            if path.stem in files:
                raise DataError(f"{folder} has {files[path.stem]} and {path.name}, so {path.stem} could be either.")
            files[path.stem] = path.name
    return files


def read_list(path: Path) -> list[str]:
    """The names of an ``ImageSets`` file, one a line, in its order.

    Raises:
        DataError: a file that cannot be read or has no names; a line that is no single name; a name that comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read the list of images {path}: {error}.") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 1:
            raise DataError(f"{path}, line {number}: expected one image's name, got {line.strip()[:80]!r}.")
        if words[0] in names:
            raise DataError(f"{path}, line {number}: {words[0]!r} stands in line {names[words[0]]} already.")
        names[words[0]] = number
    if not names:
        raise DataError(f"{path} names no images.")
    return list(names)
