"""Images with boxes, whatever file format they come from: one table that training and the judge of detections read."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.data.decode import decode
from potstill.data.listed import file_sizes, positions
from potstill.data.objects import ImageObjects
from potstill.data.source import IMAGENET, Source, Statistics, fingerprint
from potstill.errors import DataError

__all__ = ["BoxSource", "Category", "ImageRow", "ObjectRow"]


class Category(NamedTuple):
    """A class by its number in the data's files, which need not begin at 0, and its name."""

    id: int
    name: str


class ImageRow(NamedTuple):
    """An image as the annotations tell of it; ``file`` is a path inside the images' folder."""

    id: int
    file: str
    height: int
    width: int


class ObjectRow(NamedTuple):
    """An object as the annotations tell of it, unchanged; the box is x, y, width, height in pixels."""

    id: int
    image: int
    category: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool


class BoxSource(Source):
    """The images of a folder with the boxes in them.

    What the data say is kept as it is for :meth:`ground_truth`. For training, :meth:`objects` clips boxes to the image
    and leaves out those of which nothing is left.

    Args:
        folder: where the images lie.
        images: in the order of the source.
        objects: in the order of the data's file; images may have none.
        categories: the classes, in ascending order of their numbers in the file.
        name: what messages call the set.
        root: the folder that no link may leave; ``folder`` by default.
        statistics: mean and standard deviation for normalising.

    Attributes:
        category_ids: the classes' numbers in the data's files.
        image_ids: ``(N,)`` int64, the images' numbers in the data's files.
        clipped: boxes that reach outside their image in part.
        dropped: boxes without width or height, or outside their image altogether; they are not learnt from.

    Raises:
        DataError: an image that is not there, or that a link leads to outside ``root``.

    ``identity`` is a hash of the images' paths, their files' sizes in bytes, their heights and widths, of the boxes
    with their classes, areas and crowd flags, and of the classes' names. The files' content is not read for it.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[ImageRow],
        objects: Sequence[ObjectRow],
        categories: Sequence[Category],
        *,
        name: str,
        root: Path | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.folder = folder
        self.name = name
        self.statistics = statistics
        self.classes = tuple(category.name for category in categories)
        self.category_ids = tuple(category.id for category in categories)
        self._files = [image.file for image in images]
        in_bytes = file_sizes(folder, self._files, root or folder, name)
        self.image_ids = np.array([image.id for image in images], dtype=np.int64)
        self._sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2)

        number_of = {image.id: number for number, image in enumerate(images)}
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        of_image = np.array([number_of[row.image] for row in objects], dtype=np.int64)
        order = np.argsort(of_image, kind="stable")  # each image's objects lie together, in the file's order
        self._starts = np.searchsorted(of_image[order], np.arange(len(images) + 1))
        self._ids = np.array([row.id for row in objects], dtype=np.int64)[order]
        self._boxes = np.array([row.box for row in objects], dtype=np.float64).reshape(-1, 4)[order]
        self._labels = np.array([label_of[row.category] for row in objects], dtype=np.int64)[order]
        self._areas = np.array([row.area for row in objects], dtype=np.float64)[order]
        self._crowd = np.array([row.crowd for row in objects], dtype=bool)[order]
        self._identity = fingerprint(
            list(zip(self._files, in_bytes, strict=True)), self._sizes, self._starts, self._boxes, self._labels,
            self._areas, self._crowd, self.classes,
        )  # fmt: skip
        self._look()

    def _look(self) -> None:
        """Find what holds for all images: one size, and how many boxes are clipped or dropped."""
        same = len(self._sizes) > 0 and bool((self._sizes == self._sizes[0]).all())
        self.fixed_size = (int(self._sizes[0, 0]), int(self._sizes[0, 1])) if same else None
        sizes = np.repeat(self._sizes, np.diff(self._starts), axis=0)
        corners, left = _clip(self._boxes, sizes)
        self.dropped = int((~left).sum())
        self.clipped = int((left & (corners != _corners(self._boxes)).any(axis=1)).sum())

    @property
    def identity(self) -> str:
        """A hash of the images' paths and sizes, of all that is said of their boxes, and of the classes' names."""
        return self._identity

    @property
    def boxes(self) -> int:
        """How many boxes the data have, those included that are not learnt from."""
        return len(self._boxes)

    def __len__(self) -> int:
        return len(self._files)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8; a ``DataError`` too where its size is not what the annotations say."""
        pixels = decode(self.encoded(index), self.describe(index))
        if pixels.shape[:2] != self.size(index):
            (height, width), found = self.size(index), pixels.shape
            raise DataError(
                f"{self.describe(index)} is {found[0]} pixels high and {found[1]} wide, but its annotations are for "
                f"{height} high and {width} wide, so its boxes would lie elsewhere."
            )
        return pixels

    def encoded(self, index: int) -> Path:
        """The file's path."""
        return self.folder / self._files[index]

    def describe(self, index: int) -> str:
        """The file's path, as text."""
        return str(self.encoded(index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one image, as the annotations tell it."""
        return int(self._sizes[index, 0]), int(self._sizes[index, 1])

    def objects(self, index: int) -> ImageObjects:
        """One image's objects to learn from, crowd regions with them: clipped to the image, none without an area."""
        rows = slice(self._starts[index], self._starts[index + 1])
        boxes, left = _clip(self._boxes[rows], self._sizes[index : index + 1])
        return ImageObjects(
            boxes[left].astype(np.float32),
            self._labels[rows][left],
            self._crowd[rows][left],
            self._areas[rows][left].astype(np.float32),
        )

    def ground_truth(self) -> dict[str, Any]:
        """What the detections are judged by, in COCO's format: ``images``, ``annotations`` and ``categories``.

        Numbers and boxes are the file's, degenerate ones included.
        """
        owners = np.repeat(self.image_ids, np.diff(self._starts))
        return {
            "images": [
                {"id": int(number), "file_name": file, "height": int(height), "width": int(width)}
                for number, file, (height, width) in zip(self.image_ids, self._files, self._sizes, strict=True)
            ],
            "annotations": [
                {
                    "id": number, "image_id": image, "category_id": self.category_ids[label], "bbox": box,
                    "area": area, "iscrowd": int(crowd),
                }
                for number, image, label, box, area, crowd in zip(
                    self._ids.tolist(), owners.tolist(), self._labels.tolist(), self._boxes.tolist(),
                    self._areas.tolist(), self._crowd.tolist(), strict=True,
                )
            ],
            "categories": [
                {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
            ],
        }  # fmt: skip

    def select(self, indices: np.ndarray | Sequence[int]) -> "BoxSource":
        """Some of the images with their boxes, by position; another identity, the same classes.

        Raises:
            DataError: for positions that are none.
        """
        chosen = positions(indices, len(self), self.name)
        part = copy.copy(self)
        part._files = [self._files[number] for number in chosen]
        part.image_ids, part._sizes = self.image_ids[chosen], self._sizes[chosen]
        counts = np.diff(self._starts)[chosen]
        part._starts = np.concatenate(([0], np.cumsum(counts)))
        within = np.arange(part._starts[-1]) - np.repeat(part._starts[:-1], counts)
        rows = np.repeat(self._starts[chosen], counts) + within
        for column in ("_ids", "_boxes", "_labels", "_areas", "_crowd"):
            setattr(part, column, getattr(self, column)[rows])
        part._identity = fingerprint(self._identity, chosen)
        part._look()
        return part


def _corners(boxes: np.ndarray) -> np.ndarray:
    """``(n, 4)`` x1 y1 x2 y2 of x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners clipped to images of (height, width), and of which boxes something is left."""
    limits = sizes[:, [1, 0, 1, 0]]
    corners = np.clip(_corners(boxes), 0, limits)
    left = (boxes[:, 2:] > 0).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return corners, left
