"""Files that are listed by data, in a JSON file or a list of names, and looked up in a folder."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from potstill.data.folder import size_of
from potstill.errors import DataError

__all__ = ["file_sizes", "inside", "positions"]


def inside(file: str) -> bool:
    """Whether a file's name, as data give it, is a path that stays inside the folder that it is looked up in.

    Example:
        >>> inside("a/b.jpg"), inside("../b.jpg"), inside("/etc/b.jpg"), inside("C:/b.jpg"), inside("a/./b.jpg")
        (True, False, False, False, True)
    """
    if not file or "\0" in file or "\\" in file:
        return False
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not PureWindowsPath(file).drive


def file_sizes(folder: Path, files: Sequence[str], root: Path, name: str) -> list[int]:
    """Each file's size in bytes, once it is known that all are there and that no link leads outside ``root``.

    Raises:
        DataError: missing files, by the first and how many; a link that leaves ``root``; what is no regular file.
    """
    real_root = Path(os.path.realpath(root))
    parents: set[Path] = set()
    sizes, missing = [], []
    for file in files:
        path = folder / file
        if path.parent not in parents or path.is_symlink():
            # A link in a circle resolves to itself, and is missing then.
            for one in (path.parent, path):
                if not Path(os.path.realpath(one)).is_relative_to(real_root):
                    raise DataError(f"{one} is a link that leaves {root}, and is not followed. Put the files there.")
            parents.add(path.parent)
        try:
            sizes.append(size_of(path))
        except OSError:
            missing.append(path)
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(files)} images are not there, the first is {missing[0]}. Add them, or "
            "take them out of the annotations."
        )
    return sizes


def positions(indices: np.ndarray | Sequence[int], length: int, name: str) -> np.ndarray:
    """Positions of a part of a source as int64, each at most once; or a ``DataError``."""
    chosen = np.asarray(indices, dtype=np.int64)
    if chosen.ndim != 1 or (chosen.size and (chosen.min() < 0 or chosen.max() >= length)):
        raise DataError(f"{name}: a part's positions must lie between 0 and {length - 1}.")
    if len(np.unique(chosen)) != len(chosen):
        raise DataError(f"{name}: a part has each image at most once, but some positions come twice.")
    return chosen
