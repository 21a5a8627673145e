"""What lies at a path: which of the readers is to open it."""

import logging
import os
from pathlib import Path

from potstill.data.cifar import CIFAR, find_cifar
from potstill.data.folder import EXTENSIONS
from potstill.data.patterns import is_pattern, matching
from potstill.data.remote import is_remote, is_remote_folder, remote_kinds
from potstill.errors import DataError

__all__ = ["recognise"]

log = logging.getLogger(__name__)

# The kinds of data by the ends of their files' names.
KINDS = {
    "parquet": (".parquet",),
    "tar": (".tar",),
    "folder": EXTENSIONS,
    "compressed": (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"),
}
DEPTH = 3  # a split's folder in a configuration's folder; the whole tree may be a million images


def recognise(source: str, path: str | Path | None) -> str:
    """The reader to use: ``digits``, ``cifar10``, ``cifar100``, ``parquet``, ``tar`` or ``folder``.

    Raises:
        DataError: nothing there, or what the source cannot be; several kinds of data in one place.
    """
    if source == "digits" or (source == "auto" and path is None):
        if path is not None:
            raise DataError(f"The digits come with scikit-learn and need no path, got {path}. Leave data.path out.")
        return "digits"
    if path is None:
        raise DataError(f"The data source {source!r} needs data.path, the file or folder where the data are.")
    if kind_of(str(path)) == "compressed" and source in ("auto", "tar"):
        raise compressed(str(path))
    if is_remote(path) or is_pattern(path):
        return among_shards(source, str(path))
    place = Path(path)
    if not place.exists():
        raise DataError(f"There is no {path}; data.path must be an existing file or folder.{hint(path)}")
    if source in ("parquet", "tar"):
        return source
    if place.is_file():
        kind = kind_of(place.name)
        if source == "folder" or kind not in ("parquet", "tar") or (source in CIFAR and kind == "tar"):
            raise DataError(
                f"{path} is a file, which the data source {source!r} cannot read. Give a folder, a .parquet file or "
                ".tar shards in the layout of webdataset; else an archive must be unpacked first."
            )
        return kind
    return source if source == "folder" else in_folder(source, place)


def kind_of(name: str) -> str:
    """The kind of data that a file is by its name, or an empty string."""
    return next((kind for kind, ends in KINDS.items() if name.lower().endswith(ends)), "")


def compressed(path: str) -> DataError:
    """Why what is in a compressed archive is not read."""
    return DataError(
        f"{path} is or holds a compressed archive, in which nothing can be read by its position. Such an archive must "
        "be unpacked first: shards in the layout of webdataset to plain .tar files, others to a folder."
    )


def hint(path: str | Path) -> str:
    """What a path that is not there may have been meant to be."""
    head = str(path).partition(":/")[0]
    if isinstance(path, Path) and head != str(path) and len(head) > 1 and head.isalnum():
        return " An address is given as text: a Path loses one of its slashes."
    return ""


def among_shards(source: str, path: str) -> str:
    """The reader of remote data, or of the files that a pattern names: Parquet or tar shards."""
    if source in ("parquet", "tar"):
        return source
    if source == "folder":
        raise DataError(unpacked(path))
    if is_pattern(path):
        found = {kind_of(file.name) for file in matching(path)}
    elif kind_of(path) or not is_remote_folder(path):
        found = {kind_of(path)}
    else:
        found = remote_kinds(path, KINDS)
    if "folder" in found and not found & {"parquet", "tar"}:
        raise DataError(unpacked(path))
    if found == {"compressed"}:
        raise compressed(path)
    if source in CIFAR:
        found &= {"parquet"}
    found &= {"parquet", "tar"}
    if not found:
        raise DataError(
            f"{path} names no .tar and no .parquet files that {source!r} can read. Where their names end otherwise, "
            "name their kind with data.source."
        )
    return only(found, path)


def unpacked(path: str) -> str:
    """Why loose images are not read from there."""
    where = "leave file:// out" if path.startswith("file:") else "or copy the folder to this machine"
    return (
        f"{path}: loose images are read from a local folder only, since each would be a request of its own. Pack them "
        f"into tar shards in the layout of webdataset, {where}."
    )


def in_folder(source: str, path: Path) -> str:
    """The reader of a local folder's data."""
    found, kinds = find_cifar(path), kinds_in(path)
    shards = kinds & {"parquet", "tar"}
    if source in CIFAR:
        if source not in found and "parquet" not in shards:
            raise DataError(
                f"{path} holds no {source}: neither {CIFAR[source].folder} with its pickles nor a Parquet file."
            )
        return source if source in found else "parquet"
    if "tar" in shards and "compressed" in kinds:
        log.warning("%s: passed over compressed archives beside the .tar files; unpack those that are shards.", path)
    if "tar" in shards and "folder" in kinds:  # an archive is often left beside the images that were unpacked from it
        shards.add("folder")
    if not shards and not found and kinds == {"compressed"}:
        raise compressed(str(path))
    if shards:
        return only(shards, str(path))
    if len(found) > 1:
        raise DataError(f"{path} holds {' and '.join(found)}. Name one with data.source.")
    return next(iter(found), "folder")


def only(kinds: set[str], path: str) -> str:
    """The one kind of data there is; an error where there are several."""
    if len(kinds) > 1:
        names = {"parquet": ".parquet files", "tar": ".tar files", "folder": "images"}
        listed = " and ".join(names[kind] for kind in names if kind in kinds)
        raise DataError(f"{path} holds {listed}. Name the one to use with data.source: {', '.join(sorted(kinds))}.")
    return next(iter(kinds))


def kinds_in(path: Path) -> set[str]:
    """The kinds of data in a folder, by its files' names, as deep as shards lie."""
    found = set()
    for parent, folders, files in os.walk(path):
        found |= {kind_of(name) for name in files if not name.startswith(".")}
        deepest = len(Path(parent).relative_to(path).parts) >= DEPTH - 1
        folders[:] = [] if deepest else [one for one in folders if not one.startswith(".")]
    return found - {""}
