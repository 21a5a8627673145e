"""Which Parquet files belong to which split: one file, a folder of shards, or sub-folders by split."""

import re
from collections.abc import Sequence
from pathlib import Path

from potstill.errors import DataError

__all__ = ["SPLITS", "find_shards"]

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
PREFIX = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
NUMBERED = re.compile(r"-(\d{5,})-of-(\d{5,})")


def find_shards(path: Path) -> dict[str, list[Path]]:
    """Each split's Parquet files in order, under ``train``, ``validation`` and ``test`` as far as there are any.

    A file's split is that of the folder it lies in (``validation/0000.parquet``), else the word its name begins with
    (``train-00000-of-00002.parquet``). Files of which none names a split are the training set.

    Args:
        path: one Parquet file, or a folder with such files in it or below it.

    Raises:
        DataError: no Parquet file, shards that are missing, files that name no split beside files that do, or one
            split in several folders.
    """
    if path.is_file():
        return {"train": [path]}
    files = sorted(
        file
        for file in path.rglob("*.parquet")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"There is no Parquet file in {path}. Give a .parquet file or a folder that holds some.")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file, path), []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": by_split[""]}
    if "" in by_split:
        raise DataError(
            f"Some Parquet files in {path} name their split and some do not, such as {by_split[''][0].name}. "
            "Begin each file's name with train-, validation- or test-."
        )
    if "train" not in by_split:
        found = ", ".join(sorted(by_split))
        raise DataError(
            f"{path} has Parquet files for {found} but none for train. Give the one file to use by its path."
        )
    for split, members in by_split.items():
        check_shards(split, members, path)
    return by_split


def split_of(file: Path, root: Path) -> str:
    """The split that a file belongs to, or an empty string."""
    for folder in reversed(file.relative_to(root).parts[:-1]):
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    match = PREFIX.match(file.name)
    return SPLITS[match.group(1).lower()] if match else ""


def check_shards(split: str, files: Sequence[Path], root: Path) -> None:
    """Raise where a split's files are several data sets, or some of its shards are missing."""
    folders = sorted({str(file.parent.relative_to(root)) for file in files})
    if len(folders) > 1:
        raise DataError(
            f"{root} has {split} files in several folders: {', '.join(folders)}. These are several data sets: "
            "give the folder of one of them."
        )
    numbers = [NUMBERED.search(file.name) for file in files]
    totals = {int(match.group(2)) for match in numbers if match}
    if len(totals) == 1 and all(numbers):
        have = {int(match.group(1)) for match in numbers if match}
        missing = sorted(set(range(totals.pop())) - have)
        if missing:
            listed = ", ".join(str(number) for number in missing[:10])
            raise DataError(f"{root} lacks {len(missing)} of the {split} shards: number {listed}. Fetch them again.")
