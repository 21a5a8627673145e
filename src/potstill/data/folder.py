"""A folder of images: one sub-folder a class, or flat and then without labels."""

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.data.decode import decode
from potstill.data.source import IMAGENET, Source, Statistics, fingerprint
from potstill.errors import DataError

__all__ = ["EXTENSIONS", "FolderSource", "find_parts"]

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
VALIDATION = ("val", "valid", "validation", "test")  # the first that is there is used


class FolderSource(Source):
    """The images of a folder, in the order of their paths.

    With sub-folders, each is a class: its name is the folder's, and its images lie in it or below it. Without
    sub-folders, the images have no labels. Hidden files are passed over, other files that are no images too, and a
    log line tells how many. A link to a file is followed inside ``root`` only, a link to a folder never.

    Args:
        path: the folder.
        name: what messages call the set.
        classes: of the training set, for a validation set, which may lack some but have no others.
        root: the folder that no link may leave; ``path`` by default.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: no images; images beside folders; a class without images; only one class; a class that is not among
            ``classes``; a link that leaves ``root``.

    ``identity`` is a hash of each file's path in the folder and its size, and of the classes' names. The content is
    not read for it: an image replaced by another of the same size in bytes goes unnoticed.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        classes: Sequence[str] = (),
        root: Path | None = None,
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.path = path
        self.name = name or str(path)
        self.statistics = statistics
        scan = Scan(path, root or path)
        folders, flat = scan.top()
        if folders and flat:
            raise DataError(
                f"{path} has images ({flat[0].name}) beside folders ({folders[0].name}). Put every image into the "
                "folder of its class; or, for images without labels, all of them side by side without folders."
            )
        if not folders and not flat:
            raise DataError(f"{path} has no images. Give a folder with one sub-folder of images for each class.")
        if folders:
            files, self.labels, self.classes = by_class(path, folders, scan, classes)
        else:
            files = flat
        scan.report()
        self._files = [file.relative_to(path).as_posix() for file in files]  # a third of the memory of paths
        self._identity = fingerprint([(file, size_of(path / file)) for file in self._files], self.classes)

    @property
    def identity(self) -> str:
        """A hash of the files' paths and sizes and of the classes' names; not of the files' content."""
        return self._identity

    def __len__(self) -> int:
        return len(self._files)

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> Path:
        """The file's path."""
        return self.path / self._files[index]

    def describe(self, index: int) -> str:
        """The file's path, as text."""
        return str(self.encoded(index))


def by_class(
    path: Path, folders: Sequence[Path], scan: "Scan", classes: Sequence[str]
) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Files, labels and class names of a folder with one sub-folder a class."""
    names = tuple(classes) or tuple(folder.name for folder in folders)
    strangers = [folder.name for folder in folders if folder.name not in names]
    if strangers:
        many = "a class" if len(strangers) == 1 else f"{len(strangers)} classes"
        raise DataError(
            f"{path} has {many} that the training set lacks: {', '.join(strangers[:5])}. "
            "Both need the same class folders."
        )
    files: list[Path] = []
    labels: list[int] = []
    empty = []
    for folder in folders:
        found = scan.below(folder)
        if not found:
            empty.append(folder.name)
        files += found
        labels += [names.index(folder.name)] * len(found)
    if not files:
        raise DataError(f"{path} has {len(folders)} folders but no images in them.")
    # A validation set may lack a class, so an empty folder in one is no mistake.
    if empty and not classes:
        raise DataError(f"{path}: no images in the class folder {', '.join(empty[:5])}. Add some or remove the folder.")
    if len(names) < 2:
        raise DataError(
            f"{path} has one class only ({names[0]}); a labelled set needs at least two classes. For images without "
            "labels put them side by side into one folder, without sub-folders."
        )
    return files, np.array(labels, dtype=np.int64), names


class Scan:
    """Lists images, and remembers what it passed over."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root.resolve()
        self.ignored: list[Path] = []

    def top(self) -> tuple[list[Path], list[Path]]:
        """The visible folders and the images that lie directly in the folder."""
        entries = visible(self.path)
        folders = [entry for entry in entries if entry.is_dir()]
        for folder in folders:
            refuse_link(folder)
        return folders, [entry for entry in entries if not entry.is_dir() and self.is_image(entry)]

    def below(self, folder: Path) -> list[Path]:
        """Every image in a folder and its sub-folders, in the order of their paths."""
        images = []
        for parent, folders, files in os.walk(folder):
            folders[:] = [one for one in folders if not one.startswith(".")]
            for one in folders:
                refuse_link(Path(parent, one))
            images += [
                Path(parent, one) for one in files if not one.startswith(".") and self.is_image(Path(parent, one))
            ]
        return sorted(images)

    def is_image(self, file: Path) -> bool:
        """Whether a file is an image by its extension; links are checked, other files remembered."""
        if file.suffix.lower() not in EXTENSIONS:
            self.ignored.append(file)
            return False
        if file.is_symlink():
            target = Path(os.path.realpath(file))  # resolve() would raise on links in a circle
            if not target.is_relative_to(self.root):
                raise DataError(
                    f"{file} is a link that leaves {self.root}, and is not followed. Copy the file instead."
                )
            if not target.is_file():
                raise DataError(f"{file} is a link to a file that is not there. Remove it.")
        return True

    def report(self) -> None:
        """Tell how many files were passed over."""
        if self.ignored:
            some = ", ".join(str(file.relative_to(self.path)) for file in self.ignored[:3])
            more = ", ..." if len(self.ignored) > 3 else ""
            log.warning("%s: passed over %d files that are no images: %s%s", self.path, len(self.ignored), some, more)


def visible(path: Path) -> list[Path]:
    """What lies in a folder, in order, without hidden files."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read the folder {path}: {error.strerror}.") from error


def size_of(file: Path) -> int:
    """A file's size in bytes; a ``DataError`` where it is no regular file, because reading a pipe would never end."""
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        raise DataError(f"{file} has an image's name but is no regular file. Remove it.")
    return info.st_size


def refuse_link(folder: Path) -> None:
    """Raise where a folder is a link: it could leave the data, lead in a circle or count images twice."""
    if folder.is_symlink():
        raise DataError(f"{folder} is a link to a folder, and is not followed. Put the folder itself there.")


def find_parts(path: Path) -> tuple[Path, Path | None, list[str]]:
    """The training folder, the validation folder where there is one, and the names of what is beside them, unused.

    A folder with a sub-folder ``train`` has its parts in sub-folders: ``train``, and the first there is of ``val``,
    ``valid``, ``validation`` and ``test``. Every other folder is the training set itself.

    Raises:
        DataError: a validation folder, and only such, without ``train``.
    """
    entries = visible(path)
    folders = {entry.name.lower(): entry for entry in entries if entry.is_dir()}
    present = [name for name in VALIDATION if name in folders]
    if "train" not in folders:
        if present and len(present) == len(folders):
            raise DataError(
                f"{path} has a folder {present[0]!r} but no folder 'train'. Add it, or give the folder with the "
                "class folders in it."
            )
        return path, None, []
    unused = [entry.name for name, entry in folders.items() if name != "train" and name not in present[:1]]
    stray = [entry.name for entry in entries if entry.suffix.lower() in EXTENSIONS and not entry.is_dir()]
    if stray:
        unused.append(f"{len(stray)} images beside these folders ({stray[0]})")
    val = folders[present[0]] if present else None
    for folder in (folders["train"], val):
        if folder is not None:
            refuse_link(folder)
    return folders["train"], val, unused
