"""A face protocol: which images make up which template, which templates are compared, and who is in which gallery."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from potstill.errors import DataError

__all__ = ["UNKNOWN", "ListedPairs", "Protocol", "inside"]

UNKNOWN = -1  # the subject of a template of which no file says whose it is


@dataclass(frozen=True, slots=True, eq=False)
class ListedPairs:
    """Comparisons that a file lists, one to one.

    Attributes:
        first: ``(P,)`` int32, numbers of templates.
        second: ``(P,)`` int32, numbers of templates.
        same: ``(P,)`` bool, whether both are of one person.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True, slots=True, eq=False)
class Protocol:
    """Templates made of images, and what is done with them; numbers count from 0, whatever the files' ids are.

    A *member* is an image in a template. An image may be a member of several templates, and of none.

    Attributes:
        name: what messages call it.
        root: the folder of the images.
        images: ``N`` paths below ``root``. One path may stand twice where a photograph shows several faces.
        image_of: ``(M,)`` int32, each member's image.
        template_of: ``(M,)`` int32, each member's template, in 0..T-1.
        media_of: ``(M,)`` int32, each member's media: a photograph, or the video that it is a frame of.
        template_ids: ``(T,)`` int64, the ids in the files.
        subject_of: ``(T,)`` int64, the person of each template, or ``UNKNOWN``.
        pairs: what is compared one to one; None where no file says.
        galleries: templates (int32) of each gallery by its name; empty where there is no search.
        probes: ``(Q,)`` int32, templates that are searched for in every gallery.
        landmarks: ``(N, 5, 2)`` float32, x and y in pixels of left eye, right eye, nose, left and right corner of the
            mouth, as seen; NaN where no face was found; None where no file has them.
        scores: ``(N,)`` float32, how sure the detector was; NaN where no face was found; None where no file has them.
        boxes: ``(N, 4)`` float32, x1 y1 x2 y2 in pixels; NaN where not given; None where no file has them.
    """

    name: str
    root: Path
    images: tuple[str, ...]
    image_of: np.ndarray
    template_of: np.ndarray
    media_of: np.ndarray
    template_ids: np.ndarray
    subject_of: np.ndarray
    pairs: ListedPairs | None = None
    galleries: Mapping[str, np.ndarray] = field(default_factory=dict)
    probes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    landmarks: np.ndarray | None = None
    scores: np.ndarray | None = None
    boxes: np.ndarray | None = None

    @property
    def templates(self) -> int:
        """How many templates there are."""
        return len(self.template_ids)

    @property
    def found(self) -> np.ndarray:
        """``(N,)`` bool: whether the files know where the face is; all of them where no file has landmarks."""
        if self.landmarks is None:
            return np.ones(len(self.images), bool)
        return np.isfinite(self.landmarks).all((1, 2))

    def path(self, image: int) -> Path:
        """An image's file.

        Raises:
            DataError: a link that leaves the folder of the images.
        """
        file = self.root / self.images[image]
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(self.root)):
            raise DataError(f"{file} is a link that leaves {self.root}, and is not followed. Copy the file instead.")
        return file


def inside(name: str) -> bool:
    """Whether a path in a file stays below the folder that it is meant for: no root, no drive, no step up.

    Example:
        >>> [inside(name) for name in ("1.jpg", "img/2.png", "../1.jpg", "/etc/passwd", "img/../../1.jpg", "")]
        [True, True, False, False, False, False]
    """
    if not name or "\0" in name or "\\" in name or ":" in name or name[0] == "/":
        return False
    return ".." not in name.split("/")
