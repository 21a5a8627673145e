"""Faces turned, scaled and cut so that eyes, nose and mouth lie where a template has them."""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from potstill.data.folder import FolderSource
from potstill.data.records import FACES
from potstill.data.source import Source, Statistics, fingerprint
from potstill.errors import DataError

__all__ = ["AlignedSource", "align", "read_landmarks", "similarity", "template_points"]

log = logging.getLogger(__name__)

POINTS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
COLUMNS = ("file", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy"))

# insightface's five points in 112 x 112 pixels, (x, y), in the order of POINTS, left and right as one sees them.
ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def template_points(name: str) -> tuple[np.ndarray, int]:
    """The points of a template by its name, and the side of its images in pixels.

    Args:
        name: ``"arcface-112"``, insightface's; with another number of pixels the points are scaled to it.

    Returns:
        ``(5, 2)`` float64 with each point's x and y, the middle of the first pixel being (0, 0); and the side.

    Raises:
        DataError: another name.

    Source: the reference points that insightface aligns faces to (``face_align.py``), as in ArcFace, CVPR 2019.

    Example:
        >>> points, side = template_points("arcface-56")
        >>> points[2].tolist(), side
        ([28.0126, 35.8683], 56)
    """
    family, _, pixels = name.rpartition("-")
    if family != "arcface" or not (pixels.isascii() and pixels.isdecimal()) or not 8 <= int(pixels) <= 4096:
        raise DataError(
            f"There is no template {name!r} for faces; expected arcface-N for N x N pixels, like arcface-112."
        )
    return np.array(ARCFACE) * (int(pixels) / 112), int(pixels)


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    r"""The rotation, scale and shift that bring points closest to their targets, never a reflection.

    .. math:: \min_{s, R, t} \sum_k \lVert s R p_k + t - q_k \rVert^2, \qquad R^\top R = I, \det R = 1

    in closed form.

    Args:
        points: p, ``(K, 2)``, K of at least 2.
        target: q, ``(K, 2)``.

    Returns:
        ``(2, 3)`` float64, ``[s R | t]``.

    Raises:
        DataError: other shapes, numbers that are not finite, points that all lie in one place.

    Source: Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns", PAMI 1991.

    Example:
        >>> similarity(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[5.0, 5.0], [5.0, 7.0]])).round(6) + 0.0
        array([[ 0., -2.,  5.],
               [ 2.,  0.,  5.]])
    """
    points, target = np.asarray(points, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if points.ndim != 2 or points.shape != target.shape or points.shape[1] != 2 or len(points) < 2:
        raise DataError(f"Points to align must be (K, 2) with as many targets, got {points.shape} and {target.shape}.")
    if not (np.isfinite(points).all() and np.isfinite(target).all()):
        raise DataError("Points to align must be finite numbers.")
    centre, aim = points.mean(0), target.mean(0)
    apart, wanted = points - centre, target - aim
    spread = np.square(apart).sum()
    if spread <= 1e-12 * max(np.square(points).sum(), 1e-12):
        raise DataError("The points of a face all lie in one place, so it cannot be aligned by them.")
    # In the plane the best rotation needs no decomposition: as complex numbers, s R is one number, the mean of q p*.
    real = (apart * wanted).sum() / spread
    imaginary = (apart[:, 0] * wanted[:, 1] - apart[:, 1] * wanted[:, 0]).sum() / spread
    if real == 0 == imaginary:
        raise DataError("The points of a face lie so that no rotation brings them nearer to the template than another.")
    turn = np.array([[real, -imaginary], [imaginary, real]])
    return np.hstack([turn, (aim - turn @ centre)[:, None]])


def align(image: np.ndarray, landmarks: np.ndarray, name: str = "arcface-112") -> np.ndarray:
    """A face cut out of an image, with its five points as near as can be to a template's.

    Pixels between others are interpolated bilinearly, as the field does; a face far larger than the template is not
    smoothed before. What lies outside the image is black.

    Args:
        image: ``(H, W, 3)`` uint8.
        landmarks: ``(5, 2)``, x and y in pixels of the image, the middle of its first pixel being (0, 0): the left eye,
            the right eye, the nose, the left and the right corner of the mouth, left and right as one sees them.
        name: of the template.

    Returns:
        ``(N, N, 3)`` uint8.

    Raises:
        DataError: an unknown template, landmarks of another shape, or such that no face can have.

    Example:
        >>> points, _ = template_points("arcface-112")
        >>> image = np.zeros((112, 112, 3), dtype=np.uint8)
        >>> image[52, 38] = 255
        >>> align(image, points)[52, 38].tolist()
        [255, 255, 255]
    """
    points, side = template_points(name)
    forward = similarity(landmarks, points)
    turn = np.linalg.inv(forward[:, :2])
    shift = -turn @ forward[:, 2]
    shift += 0.5 - turn @ (0.5, 0.5)  # Pillow counts from a pixel's corner
    data = (turn[0, 0], turn[0, 1], shift[0], turn[1, 0], turn[1, 1], shift[1])
    channels = [
        # Channel by channel as floating point: of bytes Pillow cuts the fraction off, which darkens every pixel.
        Image.fromarray(image[:, :, channel].astype(np.float32)).transform(
            (side, side), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).round().astype(np.uint8)


def read_landmarks(path: str | Path) -> dict[str, np.ndarray]:
    """Five points for each image file, out of a table ``file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5``.

    Args:
        path: a CSV file with that first line; files are named by their path from the images' folder, with ``/``. The
            points are in the order that :func:`align` has.

    Returns:
        ``(5, 2)`` float64 for each file.

    Raises:
        DataError: a file that cannot be read or has other columns, a row that is no name and ten finite numbers, a file
            that comes twice, points that are mirrored in most rows (left and right are as one sees them).
    """
    path = Path(path)
    found: dict[str, np.ndarray] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            head = tuple(cell.strip() for cell in next(rows, []))
            if head != COLUMNS:
                raise DataError(f"{path} should begin with the line {','.join(COLUMNS)}, got {','.join(head)[:60]!r}.")
            for row in rows:
                if not row:
                    continue
                points = numbers(row[1:])
                if points is None or not row[0]:
                    raise DataError(f"{path}, line {rows.line_num}: expected a file's name and ten numbers.")
                if row[0] in found:
                    raise DataError(f"{path}, line {rows.line_num}: {row[0]} comes for the second time.")
                found[row[0]] = points
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no table of text ({error})"
        raise DataError(f"Cannot read {path}: {reason}.") from error
    if not found:
        raise DataError(f"{path} has no landmarks below its first line.")
    if sum(map(mirrored, found.values())) > len(found) / 2:
        raise DataError(
            f"{path}: in most rows the points lie mirrored. They are the {', '.join(POINTS)}, left and right as one "
            "sees them in the image, not as the person would say."
        )
    return found


def numbers(cells: list[str]) -> np.ndarray | None:
    """Ten cells as five points; None where they are not ten finite numbers."""
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return values.reshape(5, 2) if values.shape == (10,) and np.isfinite(values).all() else None


def mirrored(points: np.ndarray) -> bool:
    """Whether, with the eyes above the mouth, the first eye lies right of the second; however the face is turned."""
    across, down = points[1] - points[0], points[3:].mean(0) - points[:2].mean(0)
    return bool(across[0] * down[1] - across[1] * down[0] < 0)


class AlignedSource(Source):
    """A folder of images, each aligned by its five points.

    Args:
        source: the folder.
        landmarks: five points by file, as :func:`read_landmarks` gives them; those of other files are passed over.
        template: the template's name.
        statistics: mean and standard deviation for normalising.

    Attributes:
        template: as given; what a run records, since faces that are aligned in another way are judged wrongly.

    Raises:
        DataError: images without landmarks, landmarks by which a face cannot be aligned, an unknown template.

    ``identity`` is a hash of the folder's identity, of the landmarks and of the template's name.
    """

    def __init__(
        self,
        source: FolderSource,
        landmarks: Mapping[str, np.ndarray],
        template: str = "arcface-112",
        *,
        statistics: Statistics = FACES,
    ) -> None:
        self.name, self.classes, self.labels = source.name, source.classes, source.labels
        self.source, self.template, self.statistics = source, template, statistics
        files = [source.encoded(index).relative_to(source.path).as_posix() for index in range(len(source))]
        missing = [file for file in files if file not in landmarks]
        if missing:
            raise DataError(
                f"{self.name}: {len(missing):,} of {len(files):,} images have no landmarks, the first: "
                f"{', '.join(missing[:3])}. Either each has some or none has."
            )
        if len(landmarks) > len(files):
            others = len(landmarks) - len(files)
            log.warning("%s: passed over landmarks of %d files that are no images of it.", self.name, others)
        self._points = np.array([landmarks[file] for file in files], dtype=np.float64)
        target, side = template_points(template)
        for file, points in zip(files, self._points, strict=True):
            try:
                similarity(points, target)
            except DataError as error:
                raise DataError(f"The landmarks of {file} in {self.name}: {error}") from error
        self.fixed_size = (side, side)

    @property
    def identity(self) -> str:
        """A hash of the folder's identity, of the landmarks and of the template's name."""
        return fingerprint(self.source.identity, self._points, self.template)

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> np.ndarray:
        """One face, ``(N, N, 3)`` uint8."""
        return align(self.source.image(index), self._points[index], self.template)

    def describe(self, index: int) -> str:
        """The file's path, as text."""
        return self.source.describe(index)
