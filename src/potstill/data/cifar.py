"""CIFAR-10 and CIFAR-100 in their official layout of Python pickles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data.source import IMAGENET, ArraySource, Split, Statistics
from potstill.data.unpickle import read_pickle
from potstill.errors import DataError

__all__ = ["CIFAR", "CifarLayout", "cifar", "find_cifar", "statistics_of"]


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two sets is laid out.

    Attributes:
        folder: the folder inside the official archive.
        train: the training files.
        test: the test file.
        meta: the file with the classes' names.
        labels: the key of the labels, and that of their names, for each label column; the first is the default.
        classes: how many classes each label column has.
        first: the first names of each label column's classes, by which the set is recognised in other layouts.
        statistics: mean and standard deviation over the training images.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: dict[str, tuple[str, str]]
    classes: dict[str, int]
    first: dict[str, tuple[str, ...]]
    statistics: Statistics


CIFAR = {
    "cifar10": CifarLayout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels={"label": ("labels", "label_names")},
        classes={"label": 10},
        first={"label": ("airplane", "automobile", "bird")},
        statistics=Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": CifarLayout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels={
            "fine_label": ("fine_labels", "fine_label_names"),
            "coarse_label": ("coarse_labels", "coarse_label_names"),
        },
        classes={"fine_label": 100, "coarse_label": 20},
        first={
            "fine_label": ("apple", "aquarium_fish", "baby"),
            "coarse_label": ("aquatic_mammals", "fish", "flowers"),
        },
        statistics=Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
}
PIXELS = 3 * 32 * 32


def find_cifar(path: Path) -> dict[str, Path]:
    """The official folders at a path, by set: the path itself or a folder in it."""
    found = {}
    for name, layout in CIFAR.items():
        for folder in (path, path / layout.folder):
            if all((folder / file).is_file() for file in (layout.train[0], layout.test, layout.meta)):
                found[name] = folder
                break
    return found


def cifar(name: str, path: Path, label_column: str | None = None) -> Split:
    """CIFAR-10 or CIFAR-100 from the official pickles, with the standard test set as the validation set.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: the folder of the files, or the one above it.
        label_column: ``"fine_label"`` (default) or ``"coarse_label"`` of CIFAR-100; ``"label"`` of CIFAR-10.

    Raises:
        DataError: files that are missing, damaged, truncated, of another shape, or that would run code.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    layout = CIFAR[name]
    folder = path if (path / layout.meta).is_file() else path / layout.folder
    missing = [file for file in (*layout.train, layout.test, layout.meta) if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)} of {name}. Unpack the official archive there.")
    column = label_column or next(iter(layout.labels))
    if column not in layout.labels:
        raise DataError(f"{name} has no labels {column!r}. It has: {', '.join(layout.labels)}.")
    label_key, name_key = layout.labels[column]
    names = read_dictionary(folder / layout.meta).get(name_key)
    if not isinstance(names, list) or len(names) != layout.classes[column]:
        raise DataError(f"{folder / layout.meta} should hold {layout.classes[column]} names under {name_key!r}.")
    classes = tuple(one.decode() if isinstance(one, bytes) else str(one) for one in names)

    def source(files: tuple[str, ...], part: str) -> ArraySource:
        batches = [read_batch(folder / file, label_key, len(classes)) for file in files]
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        return ArraySource(images, labels, name=f"{name} {part}", classes=classes, statistics=layout.statistics)

    train, test = source(layout.train, "train"), source((layout.test,), "test")
    return Split(train, test, f"Validation is the standard test set of {name}: {len(test):,} images.")


def read_dictionary(path: Path) -> dict[str, Any]:
    """A pickled dictionary with its keys as text."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold a dictionary, but holds a {type(content).__name__}.")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def read_batch(path: Path, label_key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """One file's images ``(N, 32, 32, 3)`` uint8 and labels ``(N,)`` int64."""
    content = read_dictionary(path)
    data, labels = content.get("data"), content.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        shape = f"{tuple(data.shape)} of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: 'data' should be an array (N, {PIXELS}) of uint8, got {shape}.")
    if not isinstance(labels, list | np.ndarray) or len(labels) != len(data):
        raise DataError(f"{path}: {label_key!r} should be a list of {len(data)} labels, one an image.")
    if not len(data):
        raise DataError(f"{path} holds no images. Fetch it again.")
    try:
        numbers = np.asarray(labels)
    except ValueError:  # lists of several lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or numbers.min() < 0 or numbers.max() >= classes:
        raise DataError(f"{path}: {label_key!r} should be whole numbers from 0 to {classes - 1}.")
    # Each row holds the red, then the green, then the blue plane.
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), numbers.astype(np.int64)


def statistics_of(classes: tuple[str, ...], size: tuple[int, int] | None) -> Statistics:
    """CIFAR's mean and standard deviation for data that are CIFAR by their classes and size, else ImageNet's."""
    for layout in CIFAR.values():
        for column, count in layout.classes.items():
            if size == (32, 32) and len(classes) == count and classes[:3] == layout.first[column]:
                return layout.statistics
    return IMAGENET
