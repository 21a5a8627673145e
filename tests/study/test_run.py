import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import RunError
from potstill.study import Ended, Job, Plan, Status, Table, read_record, run_study
from potstill.training.folder import RunFolder, held, is_held
from potstill.training.interrupts import Interrupt

Planned = Callable[..., Plan]
InProcess = Callable[..., ForkServerProcess]
RESULT = {"rows": {"student": {"top1": 50.0}}}


@dataclass
class Scripted:
    """Workers that end each job as they are told, all of them at the next look; what is not told goes well."""

    capacity: int = 2
    script: dict[str, list[tuple[str | None, bool]]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    most: int = 0
    closed: bool = False

    def start(self, job: Job, log: Path) -> None:
        assert len(self.running) < self.capacity
        self.started.append(job.name)
        self.running.append(job)
        self.most = max(self.most, len(self.running))

    def ended(self, seconds: float) -> list[Ended]:
        ended = []
        for job in self.running:
            reason, killed = (self.script.get(job.name) or [(None, False)]).pop(0)
            if reason is None and job.kind == "run":
                RunFolder(job.folder).write_result(RESULT)
            ended.append(Ended(job.name, reason, killed))
        self.running = []
        return ended

    def close(self) -> None:
        self.closed = True


def run(plan: Plan, workers: Scripted, interrupt: Interrupt | None = None, watch: Any = lambda status: None) -> Status:
    interrupt = Interrupt() if interrupt is None else interrupt  # one that is not raised is false
    status = run_study(plan, lambda: workers, interrupt, watch)
    assert workers.closed
    return status


def test_every_job_runs_after_those_that_it_needs_and_no_more_at_once_than_there_are_workers(planned: Planned):
    plan, workers = planned(), Scripted()
    status = run(plan, workers)
    assert set(status.states.values()) == {"done"}
    assert sorted(workers.started) == sorted(plan.jobs)
    assert workers.most == 2
    places = {name: number for number, name in enumerate(workers.started)}
    assert all(places[other] < places[name] for name, job in plan.jobs.items() for other in job.after)


def test_what_is_done_is_not_run_again_and_workers_are_not_asked_for(planned: Planned):
    plan = planned(store=False)
    run(plan, Scripted())
    status = run_study(plan, pytest.fail, Interrupt(), lambda status: None)
    assert set(status.states.values()) == {"done"}


def test_a_teacher_and_a_store_that_nothing_left_needs_are_not_made_again(planned: Planned):
    plan = planned(store=False)
    run(plan, Scripted())
    (plan.jobs["teacher large"].folder / "result.json").unlink()
    assert set(run_study(plan, pytest.fail, Interrupt(), lambda status: None).states.values()) == {"done"}
    (plan.jobs["KD-seed 2"].folder / "result.json").unlink()
    workers = Scripted()
    run(plan, workers)
    assert workers.started == ["teacher large", "KD-seed 2"]


def test_a_failed_teacher_takes_its_students_along_and_no_others(planned: Planned):
    plan = planned()
    status = run(plan, Scripted(script={"teacher large": [("it diverged", False)]}))
    store = next(name for name, job in plan.jobs.items() if job.kind == "store")
    assert status.states["alone-seed 1"] == status.states["alone-seed 2"] == "done"
    assert {name for name, state in status.states.items() if state == "failed"} == {
        "teacher large", store, "KD-seed 1", "KD-seed 2",
    }  # fmt: skip
    assert status.reasons["KD-seed 1"] == "teacher large failed: it diverged"
    again = Scripted()
    assert set(run(plan, again).states.values()) == {"done"}, "what failed is tried again"
    assert "alone-seed 1" not in again.started


def test_a_lost_process_is_tried_again_as_often_as_the_study_says(planned: Planned):
    lost = ("its process was ended by the signal SIGKILL", True)
    plan = planned(retries=2)
    workers = Scripted(script={"alone-seed 1": [lost] * 2, "alone-seed 2": [lost] * 3})
    status = run(plan, workers)
    assert (workers.started.count("alone-seed 1"), workers.started.count("alone-seed 2")) == (3, 3)
    assert (status.states["alone-seed 1"], status.states["alone-seed 2"]) == ("done", "failed")
    assert status.reasons == {"alone-seed 2": lost[0]}
    assert status.tries == {"alone-seed 1": 2, "alone-seed 2": 3}


def test_an_interrupt_leaves_nothing_running(planned: Planned):
    plan, interrupt = planned(), Interrupt()

    def watch(status: Status) -> None:
        if status.count("done") == 1:
            interrupt.signal = signal.SIGTERM

    workers = Scripted(capacity=1)
    status = run(plan, workers, interrupt, watch)
    assert status.count("running") == 0
    assert status.count("done") < len(plan.jobs)


def test_workers_are_closed_also_where_the_one_that_watches_fails(planned: Planned):
    workers = Scripted()

    def watch(status: Status) -> None:
        if status.count("running"):
            raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        run_study(planned(), lambda: workers, Interrupt(), watch)
    assert workers.closed


def test_a_damaged_result_is_the_jobs_to_complain_about(planned: Planned):
    plan = planned(store=False)
    run(plan, Scripted())
    (plan.jobs["alone-seed 1"].folder / "result.json").write_text("{")
    workers = Scripted(script={"alone-seed 1": [("result.json is damaged", False)]})
    assert run(plan, workers).reasons == {"alone-seed 1": "result.json is damaged"}


def test_a_study_that_runs_already_is_refused(planned: Planned):
    plan = planned()
    plan.folder.mkdir()
    with held(plan.folder / ".lock", ""), pytest.raises(RunError, match="Another process runs the study in"):
        run_study(plan, pytest.fail, Interrupt(), pytest.fail)


def test_a_folder_that_cannot_be_written_to_is_a_sentence(planned: Planned, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to: Not a directory\."):
        run_study(planned(run=str(tmp_path / "file" / "study")), pytest.fail, Interrupt(), pytest.fail)


def results(table: Table) -> list[Any]:
    """What does not depend on when and where it was measured."""
    return [
        (entry.levels, run.seed, run.state, run.last, run.best, run.epoch)
        for entry in table.entries
        for run in entry.runs
    ]


def left_running(folder: Path) -> list[int]:
    """The processes that name a folder, or have a file of it open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                found += [int(process.name) for fd in (process / "fd").iterdir() if str(folder) in os.readlink(fd)]
            except OSError:
                continue
    return found


def written(path: Path) -> int:
    """When a file was written; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def until(done: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


SMALL = ("study.workers=2", "epochs=3")


@pytest.fixture
def undisturbed(study_file: Callable[..., Path], in_process: InProcess, tmp_path: Path) -> tuple[Path, Table]:
    path = study_file()
    process = in_process(path, *SMALL, f"run={tmp_path / 'whole'}")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    return path, read_record(tmp_path / "whole").table


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_a_study_that_is_killed_five_times_ends_with_the_same_table(
    undisturbed: tuple[Path, Table], in_process: InProcess, tmp_path: Path
):
    path, expected = undisturbed
    folder, moments = tmp_path / "killed", random.Random(5)
    for _ in range(5):
        begun = written(folder / "study.json")
        process = in_process(path, *SMALL, f"run={folder}")
        until(lambda begun=begun: written(folder / "study.json") != begun)
        time.sleep(moments.uniform(0.0, 2.0))
        process.kill()
        process.join()
        until(lambda: not is_held(folder / ".lock"))  # its jobs, forked off it, stop by themselves
    process = in_process(path, *SMALL, f"run={folder}")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert results(read_record(folder).table) == results(expected)
    assert all(state == "done" for _, _, state, *_ in results(expected))
    until(lambda: not left_running(folder))


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_a_study_that_is_told_to_stop_saves_its_jobs_and_leaves_none(
    study_file: Callable[..., Path], in_process: InProcess, tmp_path: Path, number: signal.Signals, code: int
):
    folder = tmp_path / "study"
    path = study_file(store=False, seeds=[1], grid={"method": {"alone": {"objective": {"ce": 1}}}}, teachers={})
    process = in_process(path, "study.workers=1", "epochs=2000", "log.evaluate=2000")
    steps = lambda: list(folder.glob("runs/*/steps.jsonl"))  # noqa: E731
    until(lambda: steps() and steps()[0].stat().st_size)
    (run_folder,) = folder.glob("runs/*")
    assert is_held(run_folder / ".lock")
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code, (tmp_path / "output.txt").read_text()
    assert not left_running(folder)
    assert not is_held(run_folder / ".lock")
    assert RunFolder(run_folder).begun, "its state is saved"
    assert "Stopped: 0 of 1 jobs are done. The same command goes on." in (tmp_path / "output.txt").read_text()
    assert [run.state for run in read_record(folder).table.entries[0].runs] == ["waiting"]
