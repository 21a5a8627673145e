"""The folder layouts of detection and segmentation data: what is where, and which parts there are."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from potstill.data.boxes import BoxSource
from potstill.data.class_names import parse_class_names
from potstill.data.coco import CocoSource
from potstill.data.folder import EXTENSIONS, refuse_link, visible
from potstill.data.masks import MaskSource, find_classes
from potstill.data.stored import LocalFile
from potstill.data.voc import VocSource, files_by_stem, read_list
from potstill.errors import DataError, nearest

__all__ = ["LAYOUTS", "Layout", "find_layout"]

LAYOUTS = {"detection": ("coco", "voc"), "segmentation": ("masks",)}
PARTS = ("train", "val", "trainval", "test")
_INSTANCES = re.compile(r"instances_(train|val|test)(\d{4})?\.json")


class Layout(ABC):
    """A folder in one of the layouts.

    Attributes:
        kind: the layout's name.
        path: the folder.
        parts: the names of the parts that there are.
        notes: what to say of the data beside their numbers.
    """

    kind: str

    def __init__(self, path: Path, parts: list[str]) -> None:
        self.path = path
        self.parts = parts
        self.notes: list[str] = []

    def learnt(self, judged: str | None) -> str:
        """The part to train on, when judged by another part; a ``DataError`` where there is none."""
        # trainval holds val, so it is trained on only where that is not judged by.
        wanted = ("trainval", "train") if judged == "test" else ("train",) if judged == "val" else ("train", "trainval")
        found = next((one for one in wanted if one in self.parts), None)
        if found is None:
            raise DataError(f"{self.path} has {', '.join(self.parts)} but no part {' or '.join(wanted)} to train on.")
        return found

    @abstractmethod
    def open(self, learnt: str, judged: str | None) -> tuple[BoxSource | MaskSource, BoxSource | MaskSource | None]:
        """The training and the validation source."""

    def name(self, part: str) -> str:
        """What messages call a part."""
        return f"{self.path} ({part})"

    def classes(self) -> tuple[str, ...]:
        """The names in ``classes.txt``, empty where there is no such file."""
        file = self.path / "classes.txt"
        if not file.is_file():
            return ()
        names = parse_class_names(LocalFile(str(file)))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{file} has the name {twice!r} twice, and no result could tell the two classes apart.")
        return names


class Coco(Layout):
    """``annotations/instances_PART.json`` beside folders of images."""

    kind = "coco"

    def __init__(self, path: Path) -> None:
        self.files: dict[str, tuple[Path, str]] = {}  # of each part the annotations and the folder's name
        for file in visible(path / "annotations"):
            if (match := _INSTANCES.fullmatch(file.name)) is None:
                continue
            part, year = match.groups()
            if part in self.files:
                raise DataError(
                    f"{path} has two annotations of {part}: {self.files[part][0].name} and {file.name}. Keep the one "
                    "that is to be used."
                )
            self.files[part] = (file, part + (year or ""))
        super().__init__(path, [part for part in PARTS if part in self.files])

    def open(self, learnt: str, judged: str | None) -> tuple[BoxSource, BoxSource | None]:
        """The training and the validation source, which must have the same categories."""
        train = self._source(learnt)
        if judged is None:
            return train, None
        val = self._source(judged)
        ours, theirs = (dict(zip(one.category_ids, one.classes, strict=True)) for one in (train, val))
        if ours != theirs:
            differ = sorted(ours.items() ^ theirs.items())
            raise DataError(
                f"{self.files[judged][0]} has other categories than {self.files[learnt][0]}: they differ in "
                f"{', '.join(f'{number} ({name})' for number, name in differ[:6])}. Both need the same."
            )
        return train, val

    def _source(self, part: str) -> CocoSource:
        file, folder = self.files[part]
        places = [self.path / folder, self.path / "images" / folder]
        if folder != part:
            places += [self.path / part, self.path / "images" / part]
        found = [place for place in places if place.is_dir()]
        if len(found) != 1:
            what = " and ".join(str(one) for one in found) or "none of them"
            raise DataError(
                f"The images of {file} should lie in one of {', '.join(str(one) for one in places)}; there is {what}."
            )
        refuse_link(found[0])
        return CocoSource(found[0], file, name=self.name(part), root=self.path)


class Voc(Layout):
    """``JPEGImages``, ``Annotations`` and the lists in ``ImageSets/Main``."""

    kind = "voc"

    def __init__(self, path: Path) -> None:
        lists = path / "ImageSets" / "Main"
        self.lists = {part: lists / f"{part}.txt" for part in PARTS if (lists / f"{part}.txt").is_file()}
        super().__init__(path, list(self.lists) or ["train"])
        self.notes.append(
            "Boxes count pixels from 1 and include the last one there; they are made to begin at 0 and end after it."
        )
        if not self.lists:
            self.notes.append("There are no lists in ImageSets/Main, so all images with an XML file are taken.")

    def open(self, learnt: str, judged: str | None) -> tuple[BoxSource, BoxSource | None]:
        """The training and the validation source; the classes are the training set's."""
        train = VocSource(self.path, self._stems(learnt), classes=self.classes(), name=self.name(learnt))
        if judged is None:
            return train, None
        return train, VocSource(self.path, self._stems(judged), classes=train.classes, name=self.name(judged))

    def _stems(self, part: str) -> list[str]:
        if self.lists:
            return read_list(self.lists[part])
        return sorted(files_by_stem(self.path / "Annotations", (".xml",)))


class Masks(Layout):
    """Images and PNG masks, by the names of the files."""

    kind = "masks"

    def __init__(self, path: Path) -> None:
        self.lists: dict[str, Path] = {}
        if _is_voc_masks(path):
            self.folders = (path / "JPEGImages", path / "SegmentationClass")
            lists = path / "ImageSets" / "Segmentation"
            self.lists = {part: lists / f"{part}.txt" for part in PARTS if (lists / f"{part}.txt").is_file()}
            parts = list(self.lists)
            self.inner = False
        else:
            self.folders = (path / "images", path / "masks")
            parts = [part for part in PARTS if any((folder / part).is_dir() for folder in self.folders)]
            self.inner = bool(parts)
        super().__init__(path, parts or ["train"])
        self.notes.append("A mask's values are class numbers, and pixels of 255 do not count.")

    def open(self, learnt: str, judged: str | None) -> tuple[MaskSource, MaskSource | None]:
        """The training and the validation source; without ``classes.txt`` all masks of both are looked at."""
        used = [learnt] if judged is None else [learnt, judged]
        pairs = {part: self._pairs(part) for part in used}
        classes = self.classes()
        if not classes:
            classes = find_classes([self._folders(part)[1] / mask for part in used for _, mask in pairs[part]])
            self.notes.append(f"There is no classes.txt; the masks have {len(classes)} classes.")
        train, *val = (
            MaskSource(*self._folders(part), pairs[part], classes, name=self.name(part), root=self.path)
            for part in used
        )
        return train, val[0] if val else None

    def _folders(self, part: str) -> tuple[Path, Path]:
        images, masks = self.folders
        found = (images / part, masks / part) if self.inner else (images, masks)
        for folder in found:
            refuse_link(folder)
        return found

    def _pairs(self, part: str) -> list[tuple[str, str]]:
        """Of each image of a part its file and its mask's."""
        folders = self._folders(part)
        images, masks = files_by_stem(folders[0], EXTENSIONS), files_by_stem(folders[1], (".png",))
        stems = read_list(self.lists[part]) if self.lists else sorted(images)
        if not stems:
            raise DataError(f"{folders[0]} has no images.")
        for files, folder, other in ((images, *folders), (masks, *folders[::-1])):
            missing = [stem for stem in stems if stem not in files]
            if missing:
                raise DataError(
                    f"{folder} has nothing called {missing[0]}, and {len(missing)} in all are missing, of the "
                    f"{len(stems)} that {self.lists.get(part, other)} has. Each image needs a PNG mask of its name."
                )
        alone = sorted(masks.keys() - images.keys())
        if alone:
            self.notes.append(f"{part}: {len(alone)} masks are of no image there and are not used ({alone[0]}).")
        return [(images[stem], masks[stem]) for stem in stems]


def _is_voc_masks(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and (path / "SegmentationClass").is_dir()


_IS: dict[str, Callable[[Path], bool]] = {
    "coco": lambda path: (
        (path / "annotations").is_dir()
        and any(_INSTANCES.fullmatch(file.name) for file in visible(path / "annotations"))
    ),
    "voc": lambda path: (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir(),
    "masks": lambda path: _is_voc_masks(path) or ((path / "images").is_dir() and (path / "masks").is_dir()),
}
_HAS = {
    "coco": "annotations/instances_PART.json",
    "voc": "JPEGImages and Annotations",
    "masks": "images and masks, or JPEGImages and SegmentationClass",
}
_OPEN: dict[str, Callable[[Path], Layout]] = {"coco": Coco, "voc": Voc, "masks": Masks}


def find_layout(task: str, path: Path, source: str) -> Layout:
    """The layout that a folder is in.

    Raises:
        DataError: a folder that is not there, is in none of the task's layouts, in several, or not in ``source``.
    """
    kinds = LAYOUTS[task]
    if source != "auto" and source not in kinds:
        raise DataError(
            f"{task} has no data source {source!r}; it has auto, {', '.join(kinds)}.{nearest(source, kinds)}"
        )
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. Give the folder of the data as data.path.")
    wanted = kinds if source == "auto" else (source,)
    found = [kind for kind in wanted if _IS[kind](path)]
    if not found:
        needs = "; ".join(f"{kind} has {_HAS[kind]}" for kind in wanted)
        raise DataError(f"{path} is in no layout of {task} data that can be read: {needs}.")
    if len(found) > 1:
        raise DataError(f"{path} is in the layouts {' and '.join(found)}. Choose one with data.source.")
    return _OPEN[found[0]](path)
