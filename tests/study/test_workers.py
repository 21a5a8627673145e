import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.procedures.store_build import build_store
from potstill.study import Ended, Job, LocalWorkers, Place, Plan, local_places
from potstill.study.job import do_job, is_done
from potstill.training.distributed import Processes
from potstill.training.folder import Busy, RunFolder, held, is_held
from potstill.training.interrupts import Interrupt

Planned = Callable[..., Plan]

ODD = """
import os
import signal

from potstill.methods.base import Method, Needs


class _Odd(Method):
    needs = Needs(student=frozenset({"logits"}))

    def __init__(self, setting):
        super().__init__()
        self.act()

    def forward(self, student, teacher, batch):
        return student.logits.sum()


class Leaves(_Odd):
    def act(self):
        os._exit(7)


class Killed(_Odd):
    def act(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Full(_Odd):
    def act(self):
        raise MemoryError


class Bug(_Odd):
    def act(self):
        raise KeyError("a line\\nand another")


class Looks(_Odd):
    def act(self):
        import torch
        raise KeyError(f"{torch.get_num_threads()} {sorted(os.sched_getaffinity(0))} {os.environ['OMP_NUM_THREADS']}")
"""


@pytest.fixture
def odd_job(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """A job whose objective does something when it is made."""
    (tmp_path / "odd_methods.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str) -> Job:
        plan = planned(
            grid={"method": {name: {"objective": {f"odd_methods:{name}": 1}}}}, teachers={}, control={}, seeds=[1]
        )
        return plan.jobs[f"{name}-seed 1"]

    return make


def ended(workers: LocalWorkers, count: int = 1) -> list[Ended]:
    found: list[Ended] = []
    until = time.monotonic() + 120
    while len(found) < count and time.monotonic() < until:
        found += workers.ended(5.0)
    return sorted(found, key=lambda one: one.name)


def test_a_machine_is_divided_into_equal_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {8, 3, 5, 1, 2}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert local_places() == [Place((core,), "cpu") for core in (1, 2, 3, 5, 8)]
    assert local_places(2) == [Place((1, 2), "cpu"), Place((3, 5), "cpu")]
    assert local_places(1) == [Place((1, 2, 3, 5, 8), "cpu")]
    assert [place.cores for place in local_places(7)] == [(1,), (2,), (3,), (5,), (8,), (1,), (2,)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_places() == [Place((1, 2), "cuda:0"), Place((3, 5), "cuda:1")]
    assert [place.device for place in local_places(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_machine_without_affinity_is_divided_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert local_places() == [Place((0, 1, 2, 3), "mps")]
    assert local_places(2) == [Place((0, 1), "mps"), Place((2, 3), "mps")]


def test_however_a_job_ends_it_is_told_and_its_place_is_free_again(odd_job: Callable[[str], Job], tmp_path: Path):
    workers = LocalWorkers(local_places(1))
    found = {}
    for name in ("Leaves", "Killed", "Full", "Bug", "Leaves"):
        workers.start(odd_job(name), tmp_path / "logs" / f"{name}.log")
        (found[name],) = ended(workers)
    workers.close()
    assert {name: (one.reason, one.killed) for name, one in found.items()} == {
        "Leaves": ("its process ended by exit code 7", True),
        "Killed": ("its process was ended by the signal SIGKILL, perhaps for lack of memory", True),
        "Full": ("MemoryError: no more is known", False),
        "Bug": ("KeyError: 'a line\\nand another'", False),
    }
    assert "Traceback" in (tmp_path / "logs" / "Bug.log").read_text()
    assert "odd_methods.py" in (tmp_path / "logs" / "Bug.log").read_text()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
@pytest.mark.parametrize("count", [1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1])
def test_a_job_is_held_to_its_cores_and_computes_in_as_many_threads(
    odd_job: Callable[[str], Job], tmp_path: Path, count: int
):
    place = local_places(count)[-1]
    workers = LocalWorkers([place])
    threads, script = os.environ.get("OMP_NUM_THREADS"), sys.modules["__main__"]
    workers.start(odd_job("Looks"), tmp_path / "log")
    assert (os.environ.get("OMP_NUM_THREADS"), sys.modules["__main__"]) == (threads, script)
    (found,) = ended(workers)
    assert found.reason is not None
    assert found.reason.startswith(f"KeyError: '{len(place.cores)} {sorted(place.cores)}")


def test_jobs_run_side_by_side_and_leave_their_results(planned: Planned, tmp_path: Path):
    plan = planned(store=False)
    alone = [plan.jobs[f"alone-seed {seed}"] for seed in (1, 2)]
    workers = LocalWorkers(local_places(2))
    for job in alone:
        workers.start(job, tmp_path / f"{job.name}.log")
    found = ended(workers, 2)
    assert found == [Ended("alone-seed 1"), Ended("alone-seed 2")]
    for job in alone:
        assert is_done("run", job.folder)
        head = (job.folder / "recipe.yaml").read_text().splitlines()[1]
        assert head == f"# potstill train {job.folder}/recipe.yaml", "a command that does this run alone"
    assert workers.ended(0.0) == []


def test_a_log_that_cannot_be_written_is_the_jobs_reason(planned: Planned, tmp_path: Path):
    (tmp_path / "file").write_text("")
    workers = LocalWorkers(local_places(1))
    job = planned(store=False).jobs["alone-seed 1"]
    workers.start(job, tmp_path / "file" / "log")
    (found,) = ended(workers)
    assert found == Ended(job.name, f"{tmp_path}/file: File exists")


def test_closing_saves_what_runs_and_leaves_nothing(planned: Planned, tmp_path: Path):
    job = planned("epochs=2000", "log.evaluate=2000", store=False).jobs["alone-seed 1"]
    workers = LocalWorkers(local_places(1))
    workers.start(job, tmp_path / "log")
    steps = job.folder / "steps.jsonl"
    until = time.monotonic() + 60
    while not (steps.exists() and steps.stat().st_size):
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.02)
    (process,) = [one.process for one in workers._running.values()]
    pid = process.pid
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not is_held(job.folder / ".lock")
    assert RunFolder(job.folder).begun
    assert not is_done("run", job.folder)


SCRIPT = """
import sys, time
from pathlib import Path
from potstill.config import Recipe
from potstill.study import Job, LocalWorkers, local_places

print("the script")
workers = LocalWorkers(local_places(1))
for number in range(2):
    began = time.monotonic()
    recipe = Recipe(student={"model": "nothing"}, device="cpu")
    workers.start(Job("j", "run", recipe, Path(sys.argv[1])), Path(sys.argv[2]))
    (found,) = workers.ended(100)
print(found.reason)
print(time.monotonic() - began)
"""


@pytest.mark.long
def test_a_script_needs_no_guard_and_its_jobs_start_at_once(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run"), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    script, reason, seconds = done.stdout.splitlines()
    assert script == "the script"
    assert "nothing" in reason
    assert float(seconds) < 5, "the second job loads nothing again"


def _own(lock: str, ready: Any, release: Any) -> None:
    with held(Path(lock), ""):
        ready.set()
        release.wait(60)


@pytest.fixture
def other_process() -> Any:
    """Another process that holds a lock until it is told to let go."""
    context = multiprocessing.get_context("fork")
    started: list[tuple[ForkServerProcess, Any]] = []

    def hold(lock: Path) -> Any:
        ready, release = context.Event(), context.Event()
        process = context.Process(target=_own, args=(str(lock), ready, release))
        process.start()
        started.append((process, release))
        assert ready.wait(30)
        return release

    yield hold
    for process, release in started:
        release.set()
        process.join()


@pytest.fixture
def let_go_when_waited_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Path]]:
    """Let the other process go when a job has seen that it is there; the locks that jobs waited for."""

    def prepare(release: Any) -> list[Path]:
        seen: list[Path] = []

        def look(lock: Path) -> bool:
            found = is_held(lock)
            seen.extend([lock] if found else [])
            release.set()
            return found

        monkeypatch.setattr("potstill.study.job.is_held", look)
        return seen

    return prepare


def test_a_job_waits_for_another_process_in_its_folder_and_goes_on_from_there(
    planned: Planned, other_process: Any, let_go_when_waited_for: Any, capfd: pytest.CaptureFixture[str]
):
    job = planned(store=False).jobs["alone-seed 1"]
    job.folder.mkdir(parents=True)
    seen = let_go_when_waited_for(other_process(job.folder / ".lock"))
    assert do_job("run", job.recipe.model_dump(mode="json"), str(job.folder)) is None
    assert seen[0] == job.folder / ".lock"
    assert is_done("run", job.folder)
    assert f"Another process is at work in {job.folder}" in capfd.readouterr().err


def test_two_processes_do_not_build_one_store(planned: Planned, other_process: Any, let_go_when_waited_for: Any):
    plan = planned("epochs=1", teachers={"large": {"student.model": "resnet8"}}, seeds=[1])
    teacher, store, *_ = plan.jobs.values()
    assert do_job("run", teacher.recipe.model_dump(mode="json"), str(teacher.folder)) is None
    told = Interrupt()
    processes = Processes(torch.device("cpu"))

    def stop(done: int, of: int) -> None:
        told.signal = 15  # type: ignore[assignment]

    with pytest.raises(Exception, match="Stopped"):
        build_store(store.recipe, processes, told, stop)
    release = other_process(store.folder / "done.bin")
    with pytest.raises(Busy, match=r"Another process builds the store in .*; wait for it, or give another folder\."):
        build_store(store.recipe, processes, Interrupt(), lambda done, of: None)
    seen = let_go_when_waited_for(release)
    assert do_job("store", store.recipe.model_dump(mode="json"), str(store.folder)) is None
    assert seen[0] == store.folder / "done.bin"
    assert is_done("store", store.folder)
