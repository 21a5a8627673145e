import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from potstill.cli.dashboard import dashboard, stale_after
from potstill.training.folder import RunFolder
from potstill.training.following import Follower

RECIPE = {
    "epochs": 4, "batch_size": 64, "student": {"model": "resnet8"}, "teacher": {"model": "wrn_16_2", "weights": "t"},
    "log": {"every": 50},
}  # fmt: skip
ROWS = {"teacher": {"top1": 60.0, "parameters": 9}, "student": {"top1": 52.25, "parameters": 5}}


def steps_to(folder: RunFolder, last: int) -> None:
    for step in range(1, last + 1):
        share = {"share_ce": 0.25, "share_pefd": 0.75} if step == 1 else {}
        folder.append_step(
            {"step": step, "epoch": (step - 1) // 10, "lr": 0.1, "ce": 3.0 / step, "pefd": 0.01, "total": 3.2 / step}
            | {**share, "steps_per_second": 10.0, "ms": {"forward": 30.0, "backward": 60.0, "data": 10.0}}
        )


def epochs_to(folder: RunFolder, last: int, best: float = 52.25) -> None:
    rows = [
        {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "total": 1.0, "seconds": 30.0, "top1": best - last + epoch}
        for epoch in range(1, last + 1)
    ]
    folder.write_metrics(rows)


def begun(path, recipe=RECIPE) -> RunFolder:
    folder = RunFolder(path)
    folder.write_text("recipe.yaml", yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def folder(tmp_path):
    run = begun(tmp_path / "small")
    steps_to(run, 25)
    epochs_to(run, 2)
    return run


def drawn(folder: RunFolder, width: int = 80, height: int = 24, now: float | None = None, **options) -> list[str]:
    console = Console(width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(dashboard(Follower(folder.path).look(), now or time.time(), width, height, **options))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_it_fits_the_terminal(folder, width, height):
    control = begun(folder.path / "control")
    epochs_to(control, 2, 50.0)
    lines = drawn(folder, width, height, below="Ctrl-C leaves; the run goes on.")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_it_says_where_the_run_is(folder):
    lines = drawn(folder)
    assert lines[0].strip() == "small  resnet8 taught by wrn_16_2  training"
    assert lines[1].strip() == "epoch 3/4  step 25/40  lr 0.1  640 images/s  about 45.0 s left"
    assert lines[2].count("━") == 50
    text = "\n".join(lines)
    assert re.search(r"loss  ce 0\.12  pefd 0\.01  total 0\.128", text)
    assert re.search(r"top-1 %  student ", text)
    assert re.search(r"pefd +█+ +75 %", text)
    assert re.search(r"backward +█+ +60 % +60\.0 ms", text)
    assert "after epoch 2: top-1 52.25 %" in text


def test_the_control_and_the_teacher_stand_beside(folder):
    control = begun(folder.path / "control", RECIPE | {"teacher": None})
    epochs_to(control, 4, 50.0)
    control.write_result({"rows": {"student": {"top1": 50.0}}})
    folder.write_result({"rows": ROWS, "seconds": 90.0})
    text = "\n".join(drawn(folder))
    assert "after epoch 2: top-1 52.25 %  control 50.00 % (48.00 there)  teacher 60.00 %" in text
    assert "top-1 %  student  control  teacher" in text
    assert "beside" not in text
    assert "finished" in text
    assert "1:30 min of training" in text


def test_a_run_that_has_just_begun_is_drawn_without_rows(tmp_path):
    text = "\n".join(drawn(begun(tmp_path / "run")))
    assert "epoch 1/4  step 0" in text
    assert "loss  after the first logged steps" in text
    assert "top-1 %  after the first evaluation" in text
    assert "Not evaluated yet." in text


def test_a_run_of_images_without_labels_is_drawn_by_its_objective(folder):
    folder.write_metrics([{"epoch": 1, "step": 10, "lr": 0.1, "total": 1.0, "seconds": 3.0, "val_total": 0.75}])
    text = "\n".join(drawn(folder))
    assert "val_total  student" in text
    assert "after epoch 1: total 0.75" in text


def test_rows_without_a_number_are_left_out(folder):
    folder.append_step({"step": 26, "epoch": 2, "lr": None, "ce": None, "total": None, "share_ce": None})
    text = "\n".join(drawn(folder))
    assert "ce 0.12" in text
    assert "step 26/40" in text


def test_only_ascii_where_nothing_else_can_be_shown(folder):
    assert "\n".join(drawn(folder, plain=True)).isascii()


def test_silence_is_said_after_five_minutes_and_later_for_slow_steps(folder):
    view = Follower(folder.path).look()
    assert stale_after(view) == 300.0
    assert "Nothing new" not in "\n".join(drawn(folder, now=view.written + 299))
    last = drawn(folder, now=view.written + 301)[-1]
    assert last.strip() == "Nothing new for 5:01 min; it may have been stopped. The same command goes on."
    folder.append_step({"step": 26, "epoch": 2, "lr": 0.1, "total": 1.0, "steps_per_second": 0.5})
    assert stale_after(Follower(folder.path).look()) == 1000.0
    folder.write_result({"rows": ROWS})
    assert "Nothing new" not in "\n".join(drawn(folder, now=view.written + 9999))


def test_names_from_files_are_shown_as_they_are(tmp_path):
    folder = begun(tmp_path / "[red]x", RECIPE | {"student": {"model": "[bold]m"}})
    assert drawn(folder)[0].startswith("[red]x  [bold]m taught by")


def test_a_pipe_gets_one_snapshot_and_the_result(potstill, folder):
    folder.write_result({"rows": ROWS})
    result = potstill("watch", str(folder.path))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].strip() == "small  resnet8 taught by wrn_16_2  finished"
    assert any(line.split()[:3] == ["student", "resnet8", "52.25"] for line in lines)
    assert any(line.split()[:3] == ["teacher", "wrn_16_2", "60.00"] for line in lines)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("name", ["", "nothing"])
def test_once_says_that_there_is_no_run(potstill, tmp_path, name):
    result = potstill("watch", str(tmp_path / name), "--once")
    assert result.exit_code == 2
    assert "holds no run that has begun" in result.stderr


def test_a_file_is_no_run(potstill, tmp_path):
    (tmp_path / "file").write_text("x")
    result = potstill("watch", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "is a file; give a run's folder" in result.stderr


class Screen:
    """The command on a terminal of 80x24, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        environment = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potstill", "watch", str(folder)], stdin=slave, stdout=slave, stderr=slave,
            env=environment,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def until(self, wanted: str, seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {self.text[-2000:]!r}"
            self.read()

    def read(self) -> None:
        if select.select([self.master], [], [], 0.2)[0]:
            try:
                self.text += os.read(self.master, 1 << 16).decode(errors="replace")
            except OSError:  # the other end is closed
                time.sleep(0.05)

    def leave(self) -> int:
        deadline = time.monotonic() + 40
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.read()
        os.close(self.master)
        return self.process.wait(timeout=1)


def test_a_terminal_follows_from_before_the_run_to_its_end(tmp_path):
    screen = Screen(tmp_path / "small")
    screen.until("Not begun yet: ")
    folder = begun(tmp_path / "small")
    steps_to(folder, 25)
    screen.until("training")
    epochs_to(folder, 2)
    screen.until("52.25")
    folder.write_result({"rows": ROWS})
    assert screen.leave() == 0
    after = screen.text.rpartition("\x1b[?1049l")[2]  # the screen as it was, then what stays
    assert "finished" in after
    assert "parameters" in after
    assert "Traceback" not in screen.text
    assert screen.text.count("\x1b[?25h") >= screen.text.count("\x1b[?25l") > 0, "the cursor is back"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_leaves_the_terminal_as_it_was(folder, number):
    screen = Screen(folder.path)
    screen.until("training")
    screen.process.send_signal(number)
    assert screen.leave() == 0
    assert screen.text.count("\x1b[?1049h") == screen.text.count("\x1b[?1049l") == 1
    assert "Traceback" not in screen.text


def test_another_task_is_drawn_by_its_own_value(tmp_path):
    recipe = RECIPE | {"task": "detection"}
    run = begun(tmp_path / "run", recipe)
    assert "AP %  after the first evaluation" in "\n".join(drawn(run))
    folders = {"control": begun(tmp_path / "run" / "control", recipe | {"teacher": None}),
               "other": begun(tmp_path / "run" / "other", recipe), "run": run}  # fmt: skip
    for (name, folder), value in zip(folders.items(), (29.5, 20.0, 31.0), strict=True):  # what is written last is shown
        row = {"epoch": 1, "step": 10, "lr": 0.1, "total": 1.0, "seconds": 30.0, "ap": value, "ap50": 2 * value}
        folder.write_metrics([row])
        teacher = {"teacher": {"ap": 40.0}} if name == "run" else {}
        folder.write_result({"rows": {**teacher, "student": {"ap": value}}, "seconds": 9.0})
    text = "\n".join(drawn(run, width=120))
    assert "after epoch 1: AP 31.00 %  control 29.50 %  teacher 40.00 %  AP50 62.00 %" in text
    assert "AP %  student  control  teacher" in text
    assert "beside: run/other 20.00 %" in text
