"""Tables for people."""

import io

from rich.console import Console
from rich.table import Table

from potstill.cli.tables import gain, results_table


def shown(table: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]


def heads(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


COSTS = ["parameters", "MACs", "latency", "size"]


def test_a_task_has_the_columns_of_its_values():
    rows = {"teacher": {"ap": 40.0, "ap50": 60.5}, "student": {"ap": 31.25, "bytes": 2048, "macs": 4_100_000}}
    table = results_table(rows, {"student": "resnet18"})
    assert heads(table) == [
        "",
        "network",
        "AP %",
        "AP50 %",
        "AP75 %",
        "AP small %",
        "AP medium %",
        "AP large %",
        "AR %",
        *COSTS,
    ]
    assert shown(table)[2].split() == ["teacher", "40.00", "60.50", *"-" * 9]
    assert shown(table)[3].split()[:3] == ["student", "resnet18", "31.25"]
    assert shown(table)[3].split()[-5:] == ["4.1", "M", "-", "2.0", "KiB"]


def test_rows_without_any_value_have_the_columns_of_classification():
    assert heads(results_table({"student": {"bytes": 1}}, {})) == ["", "network", "top-1 %", "top-5 %", *COSTS]


def test_a_folder_of_several_tasks_shows_the_values_of_each():
    rows = {"a": {"top1": 70.0, "top5": 90.0}, "b": {"miou": 60.0}, "c": {"tar": 80.0, "tar_1e-3": 80.0}}
    table = results_table(rows, {})
    assert heads(table)[2:-4] == [
        "top-1 %",
        "top-5 %",
        "mIoU %",
        "pixel accuracy %",
        "TAR %",
        "accuracy %",
        "TAR at 1e-3 %",
    ]
    assert shown(table)[3].split() == ["b", "-", "-", "60.00", *"-" * 8]


def test_the_gain_is_of_the_tasks_value():
    assert gain({"control": {"miou": 60.0}, "student": {"miou": 61.5, "top1": None}}) == 1.5
    assert gain({"teacher": {"ap": 60.0}, "student": {"ap": 61.5}}) is None
