"""The files of a run's folder that a report reads, each checked: what is damaged is named."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import RunError

__all__ = ["Row", "check_result", "number", "read_metrics", "read_recipe", "read_steps", "read_text"]

Row = dict[str, Any]


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a row, or None where it has none by that name.

    Example:
        >>> number({"top1": 71}, "top1"), number({"top1": None}, "top1"), number({"top1": True}, "top1")
        (71.0, None, None)
    """
    value = row.get(name)
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real and value is not None else None


def read_recipe(path: Path) -> tuple[str, Row]:
    """A recipe's text and its plain values.

    Raises:
        RunError: where it is damaged.
    """
    text = read_text(path)
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"{path} is damaged: it is no valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(recipe, dict):
        raise RunError(f"{path} is damaged: it holds no recipe.")
    return text, recipe


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        RunError: where it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: it is no UTF-8 text ({error.reason} at byte {error.start}).") from None


def read_metrics(path: Path) -> list[Row]:
    """The rows of ``metrics.csv``: numbers, None for one that is not finite, and the phase's name; none without a file.

    Raises:
        RunError: where it is damaged.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    lines = csv.reader(read_text(path).splitlines())
    head = next(lines, [])
    if "epoch" not in head:
        raise RunError(f"{path} is damaged: its first line names no column epoch.")
    for cells in lines:
        if len(cells) != len(head):
            raise RunError(f"{path} is damaged: row {len(rows) + 1} has {len(cells)} values, expected {len(head)}.")
        row: Row = {}
        for name, cell in zip(head, cells, strict=True):
            if name == "phase":
                row[name] = cell
            elif cell:
                try:
                    value = float(cell)
                except ValueError:
                    raise RunError(
                        f"{path} is damaged: {name} is {cell[:40]!r} in row {len(rows) + 1}, expected a number."
                    ) from None
                row[name] = value if math.isfinite(value) else None
        if row.get("epoch") is None:
            raise RunError(f"{path} is damaged: row {len(rows) + 1} has no epoch.")
        rows.append(row)
    return rows


def read_steps(path: Path) -> list[Row]:
    """The rows of ``steps.jsonl``; a last one that was cut short is left out.

    Raises:
        RunError: where it is damaged.
    """
    if not path.is_file():
        return []
    rows = []
    lines = read_text(path).splitlines()
    for count, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if count == len(lines):
                break  # the row that is being written, or that a kill cut short
            raise RunError(f"{path} is damaged: line {count} is no valid JSON.") from None
        if not isinstance(row, dict) or number(row, "step") is None:
            raise RunError(f"{path} is damaged: line {count} is no row of a step.")
        rows.append(row)
    return rows


def check_result(path: Path, result: Row) -> None:
    """Look at the parts of a result that the report goes through.

    Raises:
        RunError: for one that is of another kind.
    """
    kinds: Sequence[tuple[str, Callable[[Any], bool], str]] = (
        ("classes", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v), "a list of names"),
        ("times", lambda v: isinstance(v, dict), "seconds by name"),
        ("data", lambda v: isinstance(v, dict), "facts of the data by name"),
        ("versions", lambda v: isinstance(v, dict), "versions by name"),
        ("per_class", _by_network, "values by class for each network"),
    )
    for key, fits, expected in kinds:
        if key in result and result[key] is not None and not fits(result[key]):
            raise RunError(f"{path} is damaged: {key} is a {type(result[key]).__name__}, expected {expected}.")


def _by_network(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(values, dict) for values in value.values())
