from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.errors import RunError
from potstill.study import Plan, Status, Table, read_record, read_table, write_record
from potstill.study.table import Difference, Entry, SeedRun, Spread


@pytest.fixture
def table() -> Table:
    runs = (
        SeedRun(1, "runs/a", "done", epoch=8, last=50.0, best=51.0, seconds=3.5, row={"top1": 50.0, "name": "Ä"}),
        SeedRun(2, "runs/b", "failed", "out of memory"),
    )
    control = Entry({"method": "alone"}, runs, Spread(50.0, None, 1), Spread(51.0, None, 1), True, None, 70.0, None)
    other = Entry({"method": "KD"}, runs, None, None, False, Difference(1.0, None, None), None, None)
    axes = {"method": ("alone", "KD")}
    return Table(
        "s", "S", "top1", "method", axes, (control, other), {"large": {"top1": 80.0}}, {"source": "P", "note": ""}
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path, table: Table):
    written = write_record(tmp_path, table, {"seeds": [1, 2]}, "potstill study s.yaml")
    found = read_record(tmp_path)
    assert found == written
    assert found.table == table
    assert (found.file, found.command) == ({"seeds": [1, 2]}, "potstill study s.yaml")
    assert {"potstill", "torch"} <= found.versions.keys()


def test_a_study_that_has_not_begun_can_be_recorded(tmp_path: Path, planned: Callable[..., Plan]):
    plan = planned()
    table = read_table(plan, Status(dict.fromkeys(plan.jobs, "waiting")))
    write_record(tmp_path, table, plan.file.model_dump(mode="json"), "potstill study")
    assert read_record(tmp_path).table == table


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "holds no study.json: it is no study's folder"),
        (b"{", "is damaged: it is no valid JSON"),
        (b"\xff", "is damaged: it is no valid JSON"),
        (b"[]", "is damaged"),
        (b'{"table": 3, "file": {}, "command": "", "versions": {}}', "is damaged: table: input should be"),
        (b'{"file": {}, "command": "", "versions": {}}', "is damaged: table: field required"),
    ],
)
def test_a_damaged_record_is_a_sentence(tmp_path: Path, content: bytes | None, expected: str):
    if content is not None:
        (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_record(tmp_path)
    assert expected in str(caught.value)
    assert content is None or "same `potstill study` command writes it again" in str(caught.value)


def test_a_folder_in_its_place_is_a_sentence(tmp_path: Path, table: Table):
    (tmp_path / "study.json").mkdir()
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        read_record(tmp_path)
    with pytest.raises(RunError, match="could not be written"):
        write_record(tmp_path, table, {}, "")
