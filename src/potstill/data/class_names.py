"""The classes' names, where they lie in a file of their own beside the shards."""

import json
from typing import Any

from potstill.data.stored import StoredFile
from potstill.errors import DataError

__all__ = ["CLASS_FILES", "read_class_names"]

# What is met beside tar shards: a name a line in the order of the classes' numbers, or JSON.
CLASS_FILES = ("classes.txt", "classnames.txt", "classes.json")
MOST = 1 << 26  # bytes


def read_class_names(shard: StoredFile, root: str) -> tuple[str, ...]:
    """The names in the order of the classes' numbers; empty where there is no such file.

    ``classes.txt`` (or ``classnames.txt``) has a name a line; ``classes.json`` is a list of names, names to numbers,
    or numbers to names. The file lies in the folder of the shard, or in one above it up to ``root``.

    Args:
        shard: one of the shards.
        root: the highest folder that is looked in.

    Raises:
        DataError: several such files in one folder; one that is none of these forms.
    """
    above = shard.address.removeprefix(root.rstrip("/")).strip("/").count("/")
    for up in range(above + 1):
        files = [file for name in CLASS_FILES if (file := shard.beside("../" * up + name)) is not None]
        if len(files) > 1:
            raise DataError(f"There are {' and '.join(map(str, files))}, both with names of classes. Keep one of them.")
        if files:
            return parse_class_names(files[0])
    return ()


def parse_class_names(file: StoredFile) -> tuple[str, ...]:
    """The names in one file."""
    if file.size > MOST:
        raise DataError(f"{file} has {file.size:,} bytes, which are no names of classes.")
    try:
        text = file.read(0, file.size).decode("utf-8-sig")
        names = from_json(json.loads(text)) if file.name.endswith(".json") else text.rstrip().splitlines()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as names of classes: {error}.") from error
    names = None if names is None else [name.strip() for name in names]
    if not names or not all(names):
        raise DataError(
            f"{file} should hold the classes' names in the order of their numbers: one a line, or in JSON a list of "
            "names, names to numbers, or numbers to names, from 0 on and none left out."
        )
    return tuple(names)


def from_json(content: Any) -> list[str] | None:
    """Names in order from a list or an object; None where it is of another form.

    Example:
        >>> from_json({"dog": 1, "cat": 0}), from_json({"0": "cat", "1": "dog"}), from_json({"0": "cat", "2": "dog"})
        (['cat', 'dog'], ['cat', 'dog'], None)
    """
    pairs: list[tuple[Any, Any]] = []  # number, name
    if isinstance(content, list):
        pairs = list(enumerate(content))
    elif isinstance(content, dict) and all(type(one) is int for one in content.values()):
        pairs = [(number, name) for name, number in content.items()]
    elif isinstance(content, dict) and all(key.isdecimal() for key in content):
        pairs = [(int(key), name) for key, name in content.items()]
    names = dict(pairs)
    if sorted(names) != list(range(len(pairs))) or not all(isinstance(name, str) for name in names.values()):
        return None
    return [names[number] for number in range(len(pairs))]
