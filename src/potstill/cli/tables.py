"""Tables for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

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
    columns = ["", "network", ">top-1 %", ">top-5 %", ">parameters", ">MACs", ">latency", ">size"]
    return plain_table(columns, [[part, models.get(part, ""), *_cells(row)] for part, row in rows.items()])


def gain(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The student's top-1 accuracy less the control's, in points; None where one of the two is not known.

    Example:
        >>> gain({"control": {"top1": 70.0}, "student": {"top1": 71.5}})
        1.5
    """
    control, student = (rows.get(name, {}).get("top1") for name in ("control", "student"))
    return None if control is None or student is None else student - control


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        _number(row.get("top1"), "{:.2f}"),
        _number(row.get("top5"), "{:.2f}"),
        _number(row.get("parameters"), "{:,}"),
        _scaled(row.get("macs"), 1000, ("", "k", "M", "G", "T")),
        _number(row.get("latency_ms"), "{:.2f} ms"),
        _scaled(row.get("bytes"), 1024, ("B", "KiB", "MiB", "GiB")),
    ]


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _scaled(value: float | None, base: int, units: tuple[str, ...]) -> str:
    """A number with the unit that leaves one to four digits before the point.

    Example:
        >>> _scaled(41_300_000, 1000, ("", "k", "M")), _scaled(512, 1024, ("B", "KiB")), _scaled(None, 1000, ())
        ('41.3 M', '512 B', '-')
    """
    if value is None:
        return "-"
    unit = 0
    while value >= base and unit + 1 < len(units):
        value, unit = value / base, unit + 1
    return f"{value:.0f} {units[0]}".strip() if unit == 0 else f"{value:.1f} {units[unit]}"
