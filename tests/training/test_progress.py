import io
import json
import logging

import pytest
from rich.console import Console

from potstill.training.folder import RunFolder
from potstill.training.progress import Bar, Lines, progress_on
from potstill.training.reporting import Silent


def row(step: int, epoch: int = 0, **values: float) -> dict[str, float]:
    return {"step": step, "epoch": epoch, "lr": 0.05, "ce": 2.0, "pefd": 0.5, "total": 14.5, **values}


def epoch_row(epoch: int, **values: float) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.05, "total": 14.5, "seconds": 30.0, **values}


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def lines_on(screen: io.StringIO, folder: RunFolder) -> Lines:
    reporter = Lines(Console(file=screen, width=1000), "student", folder, batch_size=64)
    reporter.started(0, 0, 10, 3, 0)
    return reporter


def test_a_logged_row_is_a_line_and_a_row(screen, folder):
    lines_on(screen, folder).logged(row(4, steps_per_second=12.5))
    assert screen.getvalue() == ("student  epoch 1/3  step 4/10  loss 14.5  ce 2  pefd 0.5  lr 0.05  800 images/s\n")
    assert json.loads((folder.path / "steps.jsonl").read_text())["steps_per_second"] == 12.5


def test_an_epoch_is_a_line_with_accuracies_and_time_left(screen, folder):
    reporter = lines_on(screen, folder)
    first = epoch_row(1, top1=45.0, top5=80.125)
    reporter.finished_epoch(first, [first])
    assert screen.getvalue() == (
        "student  epoch 1/3  done  loss 14.5  top-1 45.00 %  top-5 80.12 %  30.0 s  about 1:00 min left\n"
    )
    assert (folder.path / "metrics.csv").read_text().splitlines()[1] == "1,10,0.05,14.5,30.0,45.0,80.125"


def test_an_epoch_without_labels_is_a_line_with_the_terms(screen, folder):
    reporter = lines_on(screen, folder)
    first = epoch_row(1, val_pefd=0.051234, val_kd=2.0, val_total=3.28)
    reporter.finished_epoch(first, [first])
    assert "  loss 14.5  val_total 3.28  val_pefd 0.05123  val_kd 2  30.0 s" in screen.getvalue()
    second = epoch_row(2, val_loss=1.5, top1=45.0)
    reporter.finished_epoch(second, [first, second])
    assert "  loss 14.5  top-1 45.00 %  30.0 s" in screen.getvalue()


def test_a_resumed_run_forgets_the_rows_of_steps_that_it_takes_again(screen, folder, caplog):
    for step in (5, 10, 15):
        folder.append_step(row(step))
    with caplog.at_level(logging.INFO):
        Lines(Console(file=screen), "student", folder, batch_size=64).started(1, 2, 10, 3, 0)
    steps = [json.loads(line)["step"] for line in (folder.path / "steps.jsonl").read_text().splitlines()]
    assert steps == [5, 10]
    assert "student: going on after epoch 2, step 2 of 3." in caplog.messages


def test_each_warning_is_said_once(screen, folder, caplog):
    reporter = lines_on(screen, folder)
    for share in (0.995, 0.997):
        reporter.logged(row(5, steps_per_second=1.0, share_ce=1 - share, share_pefd=share))
    assert [message.split()[0] for message in caplog.messages] == ["ce", "pefd"]
    reporter.logged(row(9, steps_per_second=1.0, share_ce=0.995, share_pefd=0.005))
    assert [message.split()[0] for message in caplog.messages] == ["ce", "pefd", "ce", "pefd"]


def test_a_terminal_gets_a_bar_with_everything(screen, folder):
    console = Console(file=screen, width=140, force_terminal=True, color_system=None, legacy_windows=False)
    reporter = Bar(console, "student", folder, batch_size=64)
    reporter.started(0, 0, 10, 2, 0)
    for step in range(10):
        reporter.advanced(0, step + 1)
    reporter.logged(row(10, steps_per_second=2.0))
    first = epoch_row(1, top1=45.0)
    reporter.finished_epoch(first, [first])
    reporter._progress.refresh()
    last = screen.getvalue().rsplit("student", maxsplit=1)[1]
    assert all(part in last for part in ("epoch 2/2", "loss 14.5", "top-1 45.00 %", "128 images/s", " left"))
    second = epoch_row(2, top1=50.0)
    reporter.finished_epoch(second, [first, second])
    assert not reporter._progress.live.is_started


def test_a_stopped_run_leaves_no_bar_behind(screen, folder):
    console = Console(file=screen, width=140, force_terminal=True)
    with progress_on(console, 64) as make:
        reporter = make("student", folder)
        reporter.started(0, 0, 10, 2, 0)
        assert reporter._progress.live.is_started
    assert isinstance(reporter, Bar)
    assert not reporter._progress.live.is_started


def test_other_processes_are_silent(screen, folder):
    with progress_on(Console(file=screen), 64, talks=False) as make:
        assert isinstance(make("student", folder), Silent)


def test_the_values_of_another_task_are_named_as_its_people_do(screen, folder):
    reporter = lines_on(screen, folder)
    first = epoch_row(1, ap=31.0, ap50=55.5, ap_small=float("nan"))
    reporter.finished_epoch(first, [first])
    assert "  loss 14.5  AP 31.00 %  AP50 55.50 %  30.0 s" in screen.getvalue()
    second = epoch_row(2, tar=71.0, **{"tar_1e-3": 71.0, "accuracy": 93.0})
    reporter.finished_epoch(second, [first, second])
    assert "  TAR 71.00 %  accuracy 93.00 %  TAR at 1e-3 71.00 %" in screen.getvalue()


def test_the_bar_keeps_the_last_value_of_the_task(screen, folder):
    console = Console(file=screen, width=140, force_terminal=True, color_system=None, legacy_windows=False)
    reporter = Bar(console, "student", folder, batch_size=64)
    reporter.started(0, 0, 10, 3, 0)
    first, second = epoch_row(1, miou=61.5), epoch_row(2)
    reporter.finished_epoch(first, [first])
    reporter.finished_epoch(second, [first, second])
    reporter._progress.refresh()
    assert "mIoU 61.50 %" in screen.getvalue().rsplit("student", maxsplit=1)[1]
    reporter.close()
