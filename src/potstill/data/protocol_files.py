"""Reading the text files of face protocols: millions of rows compactly, and errors that name the file and the line."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from potstill.data.protocol import inside
from potstill.errors import DataError

__all__ = ["check_images", "line_of", "numbers_of", "read_rows", "read_table"]

_TYPES = {"name": pa.string(), "id": pa.int64(), "label": pa.int64(), "number": pa.float32()}
_WHAT = {"name": "text", "id": "a whole number", "label": "a whole number", "number": "a number"}
_BLOCK = 1 << 24  # bytes that are parsed at a time


def read_table(path: Path, columns: Mapping[str, str], delimiter: str = " ") -> dict[str, pa.ChunkedArray]:
    """The columns of a text file without a header, such as 15 million rows of two templates and a label.

    Args:
        path: the file; empty lines are passed over.
        columns: the name of each column in order, and what is in it: ``name``, ``id``, ``label`` or ``number``.
        delimiter: between the columns.

    Raises:
        DataError: a file that cannot be read or is empty; a row with more or fewer columns; a cell that is not what
            its column says. The sentence names the file and the line.
    """
    try:
        table = pacsv.read_csv(
            path,
            # no threads: they would not survive the fork into a loader's workers
            read_options=pacsv.ReadOptions(column_names=list(columns), use_threads=False, block_size=_BLOCK),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, quote_char=False, double_quote=False),
            convert_options=pacsv.ConvertOptions(
                column_types={name: _TYPES[kind] for name, kind in columns.items()}, null_values=[]
            ),
        )
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except pa.ArrowInvalid as error:
        raise DataError(_first_mistake(path, columns, delimiter) or f"{path} cannot be read: {error}") from error
    if not table.num_rows:
        raise DataError(f"{path} is empty. Put the protocol's own file there.")
    return dict(zip(columns, table.columns, strict=True))


def _first_mistake(path: Path, columns: Mapping[str, str], delimiter: str) -> str | None:
    """The sentence on the first line that cannot be read; slow, for after the fact."""
    parsers = {"name": str, "id": int, "label": int, "number": float}
    nothing = True
    for line, cells in _lines(path, delimiter):
        nothing = False
        if len(cells) != len(columns):
            names = ", ".join(columns)
            return f"{path}, line {line}: {len(cells)} columns where {len(columns)} are expected ({names})."
        for cell, (name, kind) in zip(cells, columns.items(), strict=True):
            try:
                parsers[kind](cell)
                cell.encode()
            except ValueError:
                return f"{path}, line {line}: the {name} is {cell!r}, where {_WHAT[kind]} is expected."
    return f"{path} is empty. Put the protocol's own file there." if nothing else None


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, by their numbers from 1, cut into cells."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, start=1):
            if text := line.rstrip("\n"):
                yield number, text.split(delimiter)


def line_of(path: Path, row: int) -> int:
    """The line of a file, from 1, in which a row of :func:`read_table` stands: empty lines are no rows."""
    for found, (number, _) in enumerate(_lines(path, "\n")):
        if found == row:
            return number
    raise IndexError(row)


def read_rows(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a comma-separated file with a header: the line's number, and its cells by the header's names.

    Names are compared in capitals and without spaces around them. Further columns are passed over.

    Args:
        path: the file.
        needed: columns that must be there.
        optional: columns that may be.

    Raises:
        DataError: a file that cannot be read or is empty; a header without a needed column; a row that ends before
            it. The sentence names the file and the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().upper() for name in next(reader, [])]
            absent = [name for name in needed if name not in header]
            if absent:
                raise DataError(
                    f"{path}, line 1: the header has no {', '.join(absent)}, but {', '.join(header[:8]) or 'nothing'}."
                    " The protocol's files name their columns in the first line."
                )
            places = {name: header.index(name) for name in (*needed, *optional) if name in header}
            last = max(places[name] for name in needed)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) <= last:
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(cells)} columns; {header[last]} is column {last + 1}."
                    )
                yield (
                    reader.line_num,
                    {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()},
                )
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8. Put the protocol's own file there.") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def numbers_of(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Where each id stands among known ones, and the first row whose id is not among them (None where all are).

    Args:
        ids: ``(P,)`` int64.
        known: ``(T,)`` int64, in ascending order, at least one.

    Returns:
        ``(P,)`` int32; and a row or None, with which the numbers are not to be used.

    Example:
        >>> numbers_of(np.array([7, 3]), np.array([3, 5, 7]))
        (array([2, 0], dtype=int32), None)
        >>> numbers_of(np.array([7, 4]), np.array([3, 5, 7]))[1]
        1
    """
    found = np.empty(len(ids), np.int32)
    for start in range(0, len(ids), 1 << 20):  # so that nothing as long as the file is made of int64
        found[start : start + (1 << 20)] = np.searchsorted(known, ids[start : start + (1 << 20)])
    np.minimum(found, len(known) - 1, out=found)
    strange = known[found] != ids
    return found, int(strange.argmax()) if strange.any() else None


def check_images(root: Path, names: Sequence[str], path: Path) -> None:
    """Refuse names that leave the folder of the images, and those of files that are not there.

    Args:
        root: the folder of the images.
        names: paths below it.
        path: the file that the names are from.

    Raises:
        DataError: a name with a step up, or an absolute one; images that are not there.
    """
    for name in names:
        if not inside(name):
            raise DataError(
                f"{path}: the image {name!r} is not below the folder of the images ({root}). Names have no '..', "
                "no drive and no slash at their beginning."
            )
    present = {folder: _listed(root / folder) for folder in {os.path.dirname(name) for name in names}}
    missing = [name for name in names if os.path.basename(name) not in present[os.path.dirname(name)]]
    if missing:
        raise DataError(
            f"{path} names {len(missing)} images of {len(names)} that are not in {root}, {missing[0]!r} first. "
            "Put the images there, or give the folder that has them."
        )


def _listed(folder: Path) -> set[str]:
    """The names in a folder; none where it is not there."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
