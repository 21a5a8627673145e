"""Many files by one text: braces, as the shards of webdataset are named, and the wildcards of a shell."""

import glob
import re
from itertools import product
from pathlib import Path, PurePosixPath

from potstill.data.remote import RemoteFile, each, glob_remote, is_remote
from potstill.data.stored import LocalFile, StoredFile
from potstill.errors import DataError

__all__ = ["expand_braces", "fixed_part", "is_pattern", "matching"]

MOST = 100_000  # files that braces may name
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILDCARDS = frozenset("*?[")


def is_pattern(path: str | Path) -> bool:
    """Whether a path names files by braces or wildcards; a local file of just that name comes first.

    Example:
        >>> is_pattern("train-{000..146}.tar"), is_pattern("train-000.tar")
        (True, False)
    """
    text = str(path)
    special = "*" in text or bool(BRACES.search(text)) or (not is_remote(text) and bool(WILDCARDS & set(text)))
    return special and (is_remote(text) or not Path(text).exists())


def expand_braces(text: str) -> list[str]:
    """Every text that braces stand for: ``{000..146}`` counts, ``{train,val}`` lists; several go with each other.

    Raises:
        DataError: more than 100,000 texts, a range that goes down, or braces that are neither.

    Example:
        >>> expand_braces("train-{008..010}.tar")
        ['train-008.tar', 'train-009.tar', 'train-010.tar']
        >>> expand_braces("{a,b}-{0..1}")
        ['a-0', 'a-1', 'b-0', 'b-1']
    """
    pieces = BRACES.split(text)  # text, inside of braces, text, ...
    choices: list[list[str]] = []
    total = 1
    for number, piece in enumerate(pieces):
        choice = [piece] if number % 2 == 0 else _choices(piece, text)
        total *= len(choice)
        if total > MOST:
            raise DataError(f"{text} stands for more than {MOST:,} files.")
        choices.append(choice)
    if any(set("{}") & set(piece) for piece in pieces):
        raise DataError(f"{text}: braces in braces, or without their other half.")
    return ["".join(one) for one in product(*choices)]


def _choices(inside: str, text: str) -> list[str]:
    """What one pair of braces stands for."""
    match = RANGE.fullmatch(inside)
    if match:
        first, last = match.groups()
        if int(first) > int(last) or int(last) - int(first) >= MOST:
            raise DataError(f"{text}: {{{inside}}} must count upwards, and to no more than {MOST:,} files.")
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"{text}: {{{inside}}} is neither a range such as {{000..146}} nor a list such as {{train,val}}.")


def matching(pattern: str) -> list[StoredFile]:
    """The files that a pattern names, each once, in the order of the braces and of their names.

    Raises:
        DataError: no such file, or braces that name one that is not there.
    """
    remote = is_remote(pattern)
    found: list[StoredFile] = []
    texts = expand_braces(pattern)
    wild = [one for one in texts if _is_wild(one, remote)]
    plain = [one for one in texts if not _is_wild(one, remote)]
    if remote:
        found += each(RemoteFile, plain, remote) + glob_remote(wild)
    else:
        missing = [one for one in plain if not Path(one).is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(f"{pattern} names files that are not there: {', '.join(missing[:3])}{more}.")
        found += [LocalFile(one) for one in plain]
        found += [LocalFile(one) for text in wild for one in sorted(glob.glob(text)) if Path(one).is_file()]
    unique = {file.address: file for file in found}
    if not unique:
        raise DataError(f"There is no file {pattern}.")
    return list(unique.values())


def _is_wild(text: str, remote: bool) -> bool:
    # In an address, ? begins a query and brackets are a server's number.
    return "*" in text if remote else bool(WILDCARDS & set(text))


def fixed_part(pattern: str) -> str:
    """The folder that a pattern looks in: all before the first part of its path with a brace or wildcard.

    Example:
        >>> fixed_part("data/{train,val}/*.tar"), fixed_part("s3://bucket/set/train-{0..9}.tar")
        ('data', 's3://bucket/set')
    """
    head = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    folder = head.rpartition("/")[0]
    return folder if is_remote(pattern) else str(PurePosixPath(folder or "."))
