import fcntl
import json
import os
import subprocess
import sys

import pytest
import yaml

from potstill.training.folder import RunFolder
from potstill.training.following import Follower

RECIPE = {"epochs": 4, "batch_size": 64, "student": {"model": "resnet8"}, "teacher": None}


def row(step: int, **values) -> dict:
    return {
        "step": step,
        "epoch": (step - 1) // 10,
        "lr": 0.1,
        "ce": 2.0,
        "total": 2.0,
        "steps_per_second": 5.0,
    } | values


def epoch_row(epoch: int, **values) -> dict:
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "ce": 2.0, "total": 2.0, "seconds": 20.0} | values


def begun(path, recipe=RECIPE) -> RunFolder:
    folder = RunFolder(path)
    folder.write_text("recipe.yaml", f"# potstill\n{yaml.safe_dump(recipe)}")
    return folder


@pytest.fixture
def folder(tmp_path):
    return begun(tmp_path / "run")


def steps(view) -> list[int]:
    return [found["step"] for found in view.steps]


def test_a_run_that_is_not_there_yet_has_not_begun(tmp_path):
    follower = Follower(tmp_path / "run")
    assert not follower.look().begun
    folder = begun(tmp_path / "run")
    assert follower.look().begun
    folder.append_step(row(5))
    assert steps(follower.look()) == [5]


def test_rows_come_as_they_are_written(folder):
    follower = Follower(folder.path)
    for step in (2, 4, 6):
        folder.append_step(row(step))
        assert steps(follower.look())[-1] == step
    view = follower.look()
    assert steps(view) == [2, 4, 6]
    assert (view.position, view.images_per_second, view.epochs_wanted) == (6, 320.0, 4)


def test_the_half_of_a_line_is_waited_for(folder):
    follower = Follower(folder.path)
    folder.append_step(row(2))
    line = json.dumps(row(4)) + "\n"
    with open(folder.path / "steps.jsonl", "a") as file:
        file.write(line[:20])
        file.flush()
        assert steps(follower.look()) == [2]
        file.write(line[20:])
    assert steps(follower.look()) == [2, 4]


def test_a_run_that_goes_on_writes_its_rows_anew(folder):
    follower = Follower(folder.path)
    for step in (2, 4, 6, 8):
        folder.append_step(row(step))
    assert steps(follower.look()) == [2, 4, 6, 8]
    with open(folder.path / "steps.jsonl", "a") as file:
        file.write('{"step": 10, "epo')  # cut short by the kill
    assert steps(follower.look()) == [2, 4, 6, 8]
    folder.forget_steps_after(4)
    for step in (5, 6, 7):
        folder.append_step(row(step))
    assert steps(follower.look()) == [2, 4, 5, 6, 7]


def test_a_file_that_was_cut_is_read_anew(folder):
    follower = Follower(folder.path)
    for step in (2, 4, 6):
        folder.append_step(row(step))
    follower.look()
    path = folder.path / "steps.jsonl"
    os.truncate(path, len(path.read_bytes().splitlines(keepends=True)[0]))
    assert steps(follower.look()) == [2]


@pytest.mark.parametrize(
    "line", ["", "null", "[1]", '{"step": 3}', '{"step": 3, "epo{"step": 4, "epoch": 0}', "\x00\x00"]
)
def test_a_damaged_line_hides_no_other(folder, line):
    folder.append_step(row(2))
    with open(folder.path / "steps.jsonl", "a") as file:
        file.write(line + "\n")
    folder.append_step(row(6))
    assert steps(Follower(folder.path).look()) == [2, 6]


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.csv", "result.json"])
@pytest.mark.parametrize("content", [b"", b"{[", b"\xff\xfe", b"5"])
def test_a_damaged_file_stops_nothing(folder, name, content):
    (folder.path / name).write_bytes(content)
    view = Follower(folder.path).look()
    assert view.result is None
    assert not view.epochs


def test_the_time_left_is_that_of_the_epochs_so_far(folder):
    follower = Follower(folder.path)
    folder.append_step(row(5))
    assert follower.look().seconds_left() is None
    folder.write_metrics([epoch_row(1)])
    assert follower.look().seconds_left() == pytest.approx(60.0)
    folder.append_step(row(15))
    view = follower.look()
    assert view.epoch_steps == 10
    assert view.seconds_left() == pytest.approx(50.0)


def test_a_result_ends_it(folder):
    folder.write_metrics([epoch_row(epoch, top1=40.0 + epoch) for epoch in (1, 2, 3, 4)])
    follower = Follower(folder.path)
    assert not follower.look().finished
    folder.write_result({"rows": {"student": {"top1": 44.0}}})
    view = follower.look()
    assert view.finished
    assert view.seconds_left() is None
    assert view.evaluated()["top1"] == 44.0


def test_the_control_is_at_work_first_and_does_not_end_the_run(tmp_path):
    control = begun(tmp_path / "run" / "control")
    follower = Follower(tmp_path / "run")
    assert follower.look().at_work().folder == control.path
    control.write_result({"rows": {"student": {"top1": 40.0}}})
    assert not follower.look().finished, "the student is still to come"
    student = begun(tmp_path / "run")
    view = follower.look()
    assert view.at_work().folder == student.path
    assert not view.finished
    student.write_result({"rows": {"student": {"top1": 42.0}}})
    assert follower.look().finished


def test_students_side_by_side_are_parts_and_one_of_them_is_shown(tmp_path):
    folders = [begun(tmp_path / "run" / name) for name in ("large", "small")]
    follower = Follower(tmp_path / "run")
    for step in (2, 4):
        for folder in folders:
            folder.append_step(row(step))
            assert follower.look().at_work().folder == folders[0].path
    folders[0].write_result({"rows": {"student": {}}})
    assert follower.look().at_work().folder == folders[1].path
    folders[1].write_result({"rows": {"student": {}}})
    assert follower.look().finished


def test_a_run_that_stopped_long_ago_gives_way_to_one_that_writes(tmp_path):
    old, new = (begun(tmp_path / "runs" / name) for name in ("a-old", "b-new"))
    for file in old.path.iterdir():
        os.utime(file, (1, 1))
    assert Follower(tmp_path / "runs").look().at_work().folder == new.path


def test_the_teachers_accuracy_is_taken_from_its_run_where_the_data_are_the_same(tmp_path):
    teacher = begun(tmp_path / "teacher")
    result = {"rows": {"student": {"top1": 70.0}}, "data": {"identity": "abc"}}
    teacher.write_result(result)
    folder = begun(tmp_path / "run", RECIPE | {"teacher": {"weights": str(teacher.path)}})
    folder.write_identity({"data": "abc", "teacher": "x"})
    assert Follower(folder.path).look().teacher_accuracy == 70.0
    folder.write_identity({"data": "other", "teacher": "x"})
    assert Follower(folder.path).look().teacher_accuracy is None
    folder.write_result({"rows": {"student": {"top1": 60.0}, "teacher": {"top1": 69.5}}})
    assert Follower(folder.path).look().teacher_accuracy == 69.5


def test_shares_are_those_that_were_measured_last(folder):
    folder.append_step(row(1, share_ce=0.4, share_pefd=0.6))
    folder.append_step(row(2, ms={"data": 1.0, "forward": 2.0}))
    view = Follower(folder.path).look()
    assert view.shares() == {"ce": 0.4, "pefd": 0.6}
    assert view.milliseconds() == {"data": 1.0, "forward": 2.0}
    assert view.terms() == ["ce", "total"]


def test_reading_takes_no_lock_and_writes_nothing(folder):
    folder.append_step(row(2))
    before = sorted(path.name for path in folder.path.iterdir())
    with folder.owned():
        Follower(folder.path).look()
    with open(folder.path / ".lock") as lock:  # nobody holds it on
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert sorted({*before, ".lock"}) == sorted(path.name for path in folder.path.iterdir())


def test_what_has_not_changed_is_not_read_again(folder, monkeypatch):
    folder.write_metrics([epoch_row(1)])
    follower = Follower(folder.path)
    first = follower.look()
    monkeypatch.setattr("potstill.training.following._table", lambda text: pytest.fail("read again"))
    assert follower.look().epochs == first.epochs


def test_reading_a_folder_does_not_wait_for_torch():
    code = "import sys, potstill.training.following, potstill.cli.dashboard\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_another_task_is_judged_by_its_own_value(tmp_path):
    teacher = begun(tmp_path / "teacher")
    teacher.write_result({"rows": {"student": {"ap": 40.0, "top1": 3.0}}, "data": {"identity": "abc"}})
    folder = begun(tmp_path / "run", RECIPE | {"task": "detection", "teacher": {"weights": str(teacher.path)}})
    folder.write_identity({"data": "abc", "teacher": "x"})
    folder.write_metrics([epoch_row(1, ap=20.0), epoch_row(2)])
    view = Follower(folder.path).look()
    assert (view.headline.key, view.teacher_accuracy, view.evaluated()["epoch"]) == ("ap", 40.0, 1)
