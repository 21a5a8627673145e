import json
import os
from pathlib import Path

import pytest

from potstill.errors import RunError
from potstill.training.folder import RunFolder


def test_one_process_owns_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.owned(), pytest.raises(RunError, match=r"Another process is at work in .*run"), folder.owned():
        pass
    with folder.owned():  # free again
        pass


def test_steps_that_are_taken_again_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        folder.append_step({"step": step, "ce": 1.0})
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": 40, "c')  # a kill inside a line
    folder.forget_steps_after(20)
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to play a full disk")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"steps\.jsonl could not be written: No space left on device"):
        RunFolder(tmp_path).append_step({"step": 10})


def test_metrics_hold_a_row_an_epoch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_metrics([{"epoch": 1, "ce": 2.5}, {"epoch": 2, "ce": 1.5, "top1": 50.0}])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,ce,top1\n1,2.5,\n2,1.5,50.0\n"


def test_the_result_says_that_a_run_is_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.result() is None
    folder.write_result({"rows": {"student": {"top1": 50.0, "val_loss": float("nan")}}})
    assert folder.result() == {"rows": {"student": {"top1": 50.0, "val_loss": None}}}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made: Not a directory"):
        RunFolder(tmp_path / "file" / "run").make()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is no valid JSON \("),
        ("\xff", r"is no valid JSON \("),
        ("[]", "holds a list, not an object"),
        ("{}", "has no rows of results"),
        ('{"rows": {"student": 1}}', "has no rows of results"),
        ('{"rows": {"teacher": {}}}', "has no row of the student"),
    ],
)
def test_a_damaged_result_is_no_finished_run(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "result.json").write_text(content, encoding="latin1")
    with pytest.raises(
        RunError, match=rf"result\.json is damaged: it {message}.* Delete it, and the same command goes on"
    ):
        RunFolder(tmp_path).result()


def test_an_identity_that_is_damaged_or_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"identity\.json is missing: .* Put it back, or give another run="):
        folder.identity()
    folder.write_identity({"data": "0123"})
    assert folder.identity() == {"data": "0123"}
    (tmp_path / "identity.json").write_text("null")
    with pytest.raises(RunError, match=r"identity\.json is damaged: it holds a NoneType, not an object\. Put it back"):
        folder.identity()


def test_a_place_where_no_folder_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mk.py").write_text("")
    RunFolder(tmp_path / "new" / "run").check_place()
    with pytest.raises(RunError, match=r"^.*/mk\.py is a file; give another run=\.$"):
        RunFolder(tmp_path / "mk.py").check_place()
    with pytest.raises(
        RunError, match=r"/mk\.py is a file, so there can be no folder .*/mk\.py/a/b; give another run="
    ):
        RunFolder(tmp_path / "mk.py" / "a" / "b").check_place()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RunError, match=rf"run cannot be made in {tmp_path}: permission denied"):
        RunFolder(tmp_path / "run").check_place()
    with pytest.raises(RunError, match="cannot be written to: permission denied"):
        RunFolder(tmp_path).check_place()
    (tmp_path / "result.json").touch()
    RunFolder(tmp_path).check_place()  # only to be shown again
    assert not (tmp_path / "run").exists()
