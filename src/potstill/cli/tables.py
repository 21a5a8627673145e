"""Tables for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from potstill.headline import HEADLINES, headline_of
from potstill.quantities import bytes_of, scaled

__all__ = ["gain", "plain_table", "results_table"]


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[str]], title: str | None = None) -> Table:
    """A table with a line under its head; a column whose name starts with ``>`` is set to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def results_table(rows: Mapping[str, Mapping[str, Any]], models: Mapping[str, str]) -> Table:
    """What a run ended with: each part's network, its accuracies and its cost on this machine."""
    # Folders that hold runs of several tasks have several headlines.
    there = [one for one in HEADLINES.values() if any(one.key in row for row in rows.values())]
    accuracies = {
        key: f">{one.name(key)} {one.unit}"
        for one in there or [headline_of(rows)]
        for key in (one.key, *one.further(rows.values()))
    }
    columns = ["", "network", *accuracies.values(), ">parameters", ">MACs", ">latency", ">size"]
    return plain_table(columns, [[part, models.get(part, ""), *_cells(row, accuracies)] for part, row in rows.items()])


def gain(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The student's headline value less the control's, in points; None where one of the two is not known.

    Example:
        >>> gain({"control": {"top1": 70.0}, "student": {"top1": 71.5}})
        1.5
    """
    key = headline_of(rows).key
    control, student = (rows.get(name, {}).get(key) for name in ("control", "student"))
    return None if control is None or student is None else student - control


def _cells(row: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [
        *(_number(row.get(key), "{:.2f}") for key in keys),
        _number(row.get("parameters"), "{:,}"),
        scaled(row.get("macs")),
        _number(row.get("latency_ms"), "{:.2f} ms"),
        bytes_of(row.get("bytes")),
    ]


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
