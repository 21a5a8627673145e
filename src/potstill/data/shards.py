"""Which shards belong to which split: one file, a pattern, a folder of shards, or sub-folders by split."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from potstill.data.patterns import fixed_part, is_pattern, matching
from potstill.data.remote import find_remote, is_remote, is_remote_folder, stored
from potstill.data.stored import LocalFile, StoredFile
from potstill.errors import DataError

__all__ = ["SHARDS", "SPLITS", "find_shards", "root_of"]

# What messages call the shards of each extension.
SHARDS = {".parquet": "Parquet", ".tar": "tar"}

# Every spelling that is met, and the split that it means.
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# A word of its own, wherever in the name: train-00000-of-00002.parquet, imagenet-train-000000.tar.
WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
NUMBERED = re.compile(r"-(\d{5,})-of-(\d{5,})")


def root_of(path: str | Path) -> str:
    """The folder that a path looks in: itself, or the one that its file or its pattern's files lie below."""
    text = str(path)
    if is_pattern(path):
        return fixed_part(text)
    if is_remote(text):
        return text.rstrip("/") if is_remote_folder(text) else text.rpartition("/")[0]
    return text if Path(path).is_dir() else str(Path(path).parent)


def find_shards(path: str | Path, extension: str = ".parquet") -> dict[str, list[StoredFile]]:
    """Each split's shards in order, under ``train``, ``validation`` and ``test`` as far as there are any.

    A shard's split is that of the folder it lies in (``validation/0000.parquet``), else the first word of its name
    that is a split's (``train-00000-of-00002.parquet``, ``imagenet-train-000000.tar``). Shards of which none names a
    split are the training set; so are one file, and a pattern's files, where all are of one split.

    Args:
        path: one shard, a folder with such in it or below it, or a pattern (``train-{000..146}.tar``,
            ``{train,val}-*.tar``); also a remote one.
        extension: ``".parquet"`` or ``".tar"``.

    Raises:
        DataError: no shard, shards that are missing, shards that name no split beside some that do, or one split in
            several folders.
    """
    kind, pattern = SHARDS[extension], is_pattern(path)
    if pattern:
        files = matching(str(path))
    elif is_remote(path):
        if not is_remote_folder(str(path)):
            return {"train": [stored(path)]}
        files = list(find_remote(str(path), extension))
    elif Path(path).is_file():
        return {"train": [LocalFile(path)]}
    else:
        files = [LocalFile(one) for one in sorted(Path(path).rglob(f"*{extension}")) if one.is_file()]
    root = root_of(path)
    places = {file.address: inside(file, root) for file in files}
    files = [file for file in files if not any(part.startswith(".") for part in places[file.address].parts)]
    if not files:
        raise DataError(f"There is no {kind} file in {path}. Give a {extension} file or a folder that holds some.")
    by_split: dict[str, list[StoredFile]] = {}
    for file in files:
        by_split.setdefault(split_of(places[file.address]), []).append(file)
    if list(by_split) == [""] or (pattern and len(by_split) == 1):
        by_split = {"train": files}
    if "" in by_split:
        raise DataError(
            f"Some {kind} files in {path} name their split and some do not, such as {by_split[''][0].name}. "
            "Begin each file's name with train-, validation- or test-."
        )
    if "train" not in by_split:
        found = ", ".join(sorted(by_split))
        raise DataError(
            f"{path} has {kind} files for {found} but none for train. Give the one file to use by its path."
        )
    chosen = pattern and "{" in str(path)  # by number, so that others may be missing
    for split, members in by_split.items():
        check_shards(split, members, [places[file.address] for file in members], str(path), whole=not chosen)
    return by_split


def inside(file: StoredFile, root: str) -> PurePosixPath:
    """A file's path in the folder that is looked in."""
    if isinstance(file, LocalFile):
        return PurePosixPath(file.path.relative_to(root).as_posix())
    # Protocols write an address in more than one way (memory://a and memory:///a), so the end of it is what counts.
    address, folder = (re.sub(r"^\w+://+", "", text).strip("/") for text in (file.address, root))
    return PurePosixPath(address.removeprefix(folder).lstrip("/"))


def split_of(place: PurePosixPath) -> str:
    """The split that a file belongs to by its path, or an empty string."""
    for folder in reversed(place.parts[:-1]):
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    match = WORD.search(place.name)
    return SPLITS[match.group(1).lower()] if match else ""


def check_shards(
    split: str, files: Sequence[StoredFile], places: Sequence[PurePosixPath], root: str, whole: bool
) -> None:
    """Raise where a split's files are several data sets, or (of a ``whole`` one) some of its shards are missing."""
    folders = sorted({str(place.parent) for place in places})
    if len(folders) > 1:
        raise DataError(
            f"{root} has {split} files in several folders: {', '.join(folders)}. These are several data sets: "
            "give the folder of one of them."
        )
    numbers = [NUMBERED.search(file.name) for file in files]
    totals = {int(match.group(2)) for match in numbers if match}
    if whole and len(totals) == 1 and all(numbers):
        have = {int(match.group(1)) for match in numbers if match}
        missing = sorted(set(range(totals.pop())) - have)
        if missing:
            listed = ", ".join(str(number) for number in missing[:10])
            raise DataError(f"{root} lacks {len(missing)} of the {split} shards: number {listed}. Fetch them again.")
