"""IJB-A in the layout in which it was published: a folder for each split, comma-separated files with a header.

.. code-block:: text

    IJB-A_11_sets/split1/verify_metadata_1.csv      TEMPLATE_ID,SUBJECT_ID,FILE,MEDIA_ID,SIGHTING_ID,FRAME,FACE_X,..
    IJB-A_11_sets/split1/verify_comparisons_1.csv   two templates a line, without a header
    IJB-A_1N_sets/split1/search_gallery_1.csv       the columns of the metadata
    IJB-A_1N_sets/split1/search_probe_1.csv         the columns of the metadata
    images/img/1.jpg, images/frame/2_00001.png      one or several faces a file

The two folders of sets may also be one, or stand for ``folder`` itself. ``train_1.csv``, whom a split trains on, is
not read: it is no part of the evaluation.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from potstill.data.protocol import ListedPairs, Protocol
from potstill.data.protocol_files import check_images, line_of, numbers_of, read_rows, read_table
from potstill.errors import DataError

__all__ = ["is_ijba", "read_ijba"]

_NEEDED = ("TEMPLATE_ID", "SUBJECT_ID", "FILE", "MEDIA_ID")
_BOX = ("FACE_X", "FACE_Y", "FACE_WIDTH", "FACE_HEIGHT")
_SPLIT = re.compile(r"split([0-9]{1,3})")


def is_ijba(folder: Path) -> bool:
    """Whether a folder has splits in IJB-A's layout."""
    return bool(_splits(folder))


def read_ijba(folder: Path, images: Path | None = None) -> tuple[Protocol, ...]:
    """One protocol for each split, in their order, all over the same images: a face, that is a file and a box.

    Templates of the comparisons and of the search are apart, even where their ids are equal. Two templates are of one
    person where their subjects are equal.

    Args:
        folder: with ``split1`` and so on, or with folders that have them.
        images: where the images are; by default ``images`` in ``folder`` where that is there, else ``folder``.

    Raises:
        DataError: a file that is missing or cannot be read; names that leave the folder of the images or are not
            there; a template that is compared but has no images, or that two persons own.
    """
    root = images if images is not None else folder / "images" if (folder / "images").is_dir() else folder
    faces = _Faces()
    splits = [_Split(number, folders).read(faces) for number, folders in sorted(_splits(folder).items())]
    check_images(root, sorted({file for file, *_ in faces.numbers}), folder)
    names = tuple(file for file, *_ in faces.numbers)
    boxes = np.array([box for _, *box in faces.numbers], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return tuple(split.protocol(folder, root, names, boxes) for split in splits)


def _splits(folder: Path) -> dict[int, list[Path]]:
    """The folders of each split, by its number."""
    found: dict[int, list[Path]] = {}
    for parent in (folder, folder / "IJB-A_11_sets", folder / "IJB-A_1N_sets"):
        if not parent.is_dir():
            continue
        for name in sorted(os.listdir(parent)):
            match = _SPLIT.fullmatch(name)
            if match and (parent / name).is_dir():
                found.setdefault(int(match[1]), []).append(parent / name)
    return found


class _Faces:
    """Numbers faces, which are files and boxes, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, float, float, float, float], int] = {}

    def number(self, file: str, box: tuple[float, float, float, float]) -> int:
        return self.numbers.setdefault((file, *box), len(self.numbers))


@dataclass
class _Split:
    """What the files of a split say."""

    split: int
    folders: list[Path]
    members: list[tuple[int, int, int]] = field(default_factory=list)  # face, template, media
    ids: list[int] = field(default_factory=list)
    subjects: list[int] = field(default_factory=list)
    pairs: ListedPairs | None = None
    galleries: dict[str, np.ndarray] = field(default_factory=dict)
    probes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def read(self, faces: _Faces) -> "_Split":
        metadata, compared = self.file("verify_metadata"), self.file("verify_comparisons")
        gallery, probe = self.file("search_gallery"), self.file("search_probe")
        together = ((metadata, compared), (gallery, probe))
        for one, other in (*together, *((b, a) for a, b in together)):
            if one is not None and other is None:
                raise DataError(f"{one} is there, but what goes with it is not. A split has both files or neither.")
        if metadata is not None and compared is not None:
            self.pairs = self.compare(compared, self.templates(metadata, faces))
        if gallery is not None and probe is not None:
            self.galleries = {"gallery": np.array(list(self.templates(gallery, faces).values()), np.int32)}
            self.probes = np.array(list(self.templates(probe, faces).values()), np.int32)
        if not self.members:
            raise DataError(
                f"{self.folders[0]} has neither verify_metadata_{self.split}.csv nor search_gallery_{self.split}.csv."
            )
        return self

    def file(self, name: str) -> Path | None:
        found = [folder / f"{name}_{self.split}.csv" for folder in self.folders]
        return next((path for path in found if path.is_file()), None)

    def templates(self, path: Path, faces: _Faces) -> dict[int, int]:
        """Add a file's templates; the number of each by its id."""
        numbers: dict[int, int] = {}
        for line, row in read_rows(path, _NEEDED, _BOX):
            template, subject, media = (
                _value(path, line, row, name, int) for name in ("TEMPLATE_ID", "SUBJECT_ID", "MEDIA_ID")
            )
            box = [_value(path, line, row, name, float) if row.get(name) else _NO_NUMBER for name in _BOX]
            number = numbers.setdefault(int(template), len(self.ids))
            if number == len(self.ids):
                self.ids.append(int(template))
                self.subjects.append(int(subject))
            if subject != self.subjects[number] or subject < 0:
                raise DataError(
                    f"{path}, line {line}: the template {template} is of subject {subject}, and elsewhere of "
                    f"{self.subjects[number]}. A template is of one person, whose number is not below 0."
                )
            face = faces.number(row["FILE"], (box[0], box[1], box[2], box[3]))
            self.members.append((face, number, int(media)))
        if not numbers:
            raise DataError(f"{path} has a header but no templates.")
        return numbers

    def compare(self, path: Path, numbers: dict[int, int]) -> ListedPairs:
        columns = read_table(path, {"first template": "id", "second template": "id"}, ",")
        known = np.array(sorted(numbers), np.int64)
        order = np.array([numbers[one] for one in known.tolist()], np.int32)
        sides = []
        for column in columns.values():
            ids = column.to_numpy()
            places, strange = numbers_of(ids, known)
            if strange is not None:
                raise DataError(
                    f"{path}, line {line_of(path, strange)}: the template {ids[strange]} has no images in "
                    f"verify_metadata_{self.split}.csv."
                )
            sides.append(order[places])
        subjects = np.array(self.subjects, np.int64)
        return ListedPairs(sides[0], sides[1], subjects[sides[0]] == subjects[sides[1]])

    def protocol(self, folder: Path, root: Path, names: tuple[str, ...], boxes: np.ndarray) -> Protocol:
        image, template, media = np.array(self.members, np.int64).T
        return Protocol(
            name=f"{folder.name} (split {self.split})",
            root=root,
            images=names,
            image_of=image.astype(np.int32),
            template_of=template.astype(np.int32),
            media_of=np.unique(media, return_inverse=True)[1].astype(np.int32),
            template_ids=np.array(self.ids, np.int64),
            subject_of=np.array(self.subjects, np.int64),
            pairs=self.pairs,
            galleries=self.galleries,
            probes=self.probes,
            boxes=boxes,
        )


_NO_NUMBER = float("nan")  # this one object: equal to itself where a tuple is looked up


def _value(path: Path, line: int, row: dict[str, str], name: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(row[name])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise DataError(f"{path}, line {line}: the {name} is {row[name]!r}, where {what} is expected.") from None
