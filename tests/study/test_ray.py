"""A study on a Ray cluster: the same cells as on this machine, whatever is killed or stopped on the way."""

import contextlib
import csv
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from potstill.errors import RunError
from potstill.study import (
    LocalWorkers,
    Plan,
    Status,
    Workers,
    load_study,
    local_places,
    plan_study,
    read_table,
    run_study,
)
from potstill.study import on_ray as module
from potstill.study.on_ray import RayWorkers, divided
from potstill.training.interrupts import Interrupt

EPOCHS = 6
RUN = "alone-seed 7"
STUDY = f"""
recipe:
  data: {{source: digits, val_fraction: 0.5}}
  student: {{model: resnet8}}
  epochs: {EPOCHS}
  batch_size: 64
teachers:
  big: {{student.model: resnet8x4, epochs: 1}}
grid:
  method:
    alone: {{objective: {{ce: 1}}}}
    KD: {{teacher: big, objective: {{ce: 0.1, kd: {{weight: 0.9, temperature: 4}}}}}}
    nowhere: {{data: {{source: folder, path: no/such/images}}}}
control: {{method: alone}}
seeds: [7]
"""
# A study of one run, by a process of its own, as the command makes it.
ELSEWHERE = """
import sys
from pathlib import Path
from potstill.study import load_study, plan_study, run_study
from potstill.study.on_ray import RayWorkers
from potstill.training.interrupts import watching
file = Path("study.yaml")
with watching() as interrupt:
    plan = plan_study(file, load_study(file))
    print(run_study(plan, lambda: RayWorkers(sys.argv[1], 2), interrupt, lambda status: None).states)
"""


def planned(folder: Path, *methods: str) -> Plan:
    """The study, or some of its levels, with the relative paths of somebody who is in its folder."""
    raw = yaml.safe_load(STUDY)
    if methods:
        raw["grid"]["method"] = {name: raw["grid"]["method"][name] for name in methods}
        raw["teachers"] = raw["teachers"] if "KD" in methods else {}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return plan_study(Path("study.yaml"), load_study(Path("study.yaml")))


def run(plan: Plan, workers: Workers, watch: Callable[[Status], None] = lambda status: None) -> Status:
    return run_study(plan, lambda: workers, Interrupt(), watch)


def cells(plan: Plan, status: Status) -> dict[str, Any]:
    runs = {entry.levels["method"]: entry.runs[0] for entry in read_table(plan, status).entries}
    return {name: (one.state, one.last, one.best, one.epoch, one.reason) for name, one in runs.items()}


def weights(folder: Path, plan: Plan, job: str) -> bytes:
    return (folder / plan.jobs[job].folder / "student.safetensors").read_bytes()


def epochs_done(folder: Path, plan: Plan) -> int:
    with contextlib.suppress(FileNotFoundError), open(folder / plan.jobs[RUN].folder / "metrics.csv") as file:
        return len(list(csv.DictReader(file)))
    return 0


def log_of(folder: Path, plan: Plan) -> str:
    return (folder / plan.folder / "logs" / f"{plan.jobs[RUN].folder.name}.log").read_text()


def processes(named: str) -> dict[int, bytes]:
    """The commands of the processes in whose environment a text stands, but for this one and its own helpers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if named.encode() in (folder / "environ").read_bytes() and b"multiprocessing" not in command:
                found[int(folder.name)] = command
    return {process: command for process, command in found.items() if process != os.getpid()}


def at_work_in(folder: Path) -> list[int]:
    """The Ray worker processes that do a job of the study in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").resolve() == folder and (process / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(int(process.name))
    return found


def wait_until(reached: Callable[[], object], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"waited {seconds:.0f} s in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of two cores' worth, of this test process alone; none of its processes is left at the end."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'potstill[study]'")
    # In the system's own folder for temporary files: the path of a socket has room for some hundred characters.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as short:
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.delenv("RAY_ADDRESS", raising=False)
        before = signal.getsignal(signal.SIGTERM)
        workers = RayWorkers("local", 2)
        assert signal.getsignal(signal.SIGTERM) is before
        assert len(processes(short)) > 2
        yield ray
        workers.close()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not processes(short), 120)
        assert processes(short) == {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Status]:
    """The study by processes of this machine."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = planned(folder)
        return folder, plan, run(plan, LocalWorkers(local_places(2)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


@pytest.mark.long
def test_a_study_has_the_cells_that_it_has_on_this_machine(
    cluster: Any, reference: tuple[Path, Plan, Status], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, expected, local = reference
    plan = planned(folder)
    status = run(plan, RayWorkers(None, 2))
    got = cells(plan, status)
    with monkeypatch.context() as patch:
        patch.chdir(here)
        assert got == cells(expected, local)
    assert [state for state, *_ in got.values()] == ["done", "done", "failed"]
    assert "no/such/images" in got["nowhere"][-1]
    trained = [name for name, job in plan.jobs.items() if job.kind == "run" and status.states[name] == "done"]
    assert trained == ["teacher big", RUN, "KD-seed 7"]
    for job in trained:
        assert weights(folder, plan, job) == weights(here, expected, job), job
    assert "epoch 1/6  done" in log_of(folder, plan)  # what a job says is in its log


@pytest.mark.long
def test_a_killed_worker_costs_only_a_retry(cluster: Any, reference: tuple[Path, Plan, Status], folder: Path) -> None:
    killed = []

    def kill(status: Status) -> None:
        if not killed and epochs_done(folder, plan):
            killed.extend(at_work_in(folder))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    plan = planned(folder, "alone")
    status = run(plan, RayWorkers(None, 2), kill)
    assert len(killed) == 1
    assert status.states == {RUN: "done"}
    said = log_of(folder, plan)
    assert said.count("handed to Ray") == 1  # the retry is Ray's own
    assert "student: going on after epoch" in said
    assert weights(folder, plan, RUN) == weights(*reference[:2], RUN)


@pytest.mark.long
def test_a_stopped_study_leaves_nothing_running_and_goes_on(
    cluster: Any, reference: tuple[Path, Plan, Status], folder: Path
) -> None:
    plan = planned(folder, "alone")
    address = cluster.get_runtime_context().gcs_address
    study = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: epochs_done(folder, plan) or study.poll() is not None)
        study.send_signal(signal.SIGTERM)
        out, err = study.communicate(timeout=300)
    finally:
        study.kill()
    assert (study.returncode, out) == (0, f"{{'{RUN}': 'waiting'}}\n"), err
    wait_until(lambda: not at_work_in(folder))
    done = epochs_done(folder, plan)
    assert 0 < done < EPOCHS
    assert run(plan, LocalWorkers(local_places(2))).states == {RUN: "done"}  # what Ray began goes on anywhere
    assert "student: going on after epoch" in log_of(folder, plan)
    assert weights(folder, plan, RUN) == weights(*reference[:2], RUN)


@pytest.mark.long
def test_a_worker_that_is_always_lost_is_one_failed_cell(cluster: Any, folder: Path) -> None:
    plan, workers = planned(folder, "alone"), RayWorkers(None, 2, retries=1)
    workers._task = cluster.remote(max_calls=1)(lambda *job: os.kill(os.getpid(), signal.SIGKILL))
    status = run(plan, workers)
    assert status.states == {RUN: "failed"}
    assert status.reasons[RUN] == "its Ray worker was lost 2 times (killed, or gone with its machine)"


def test_a_bug_is_a_sentence_and_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*job: object) -> None:
        raise ZeroDivisionError("of what\nand more")

    monkeypatch.setattr(module, "do_job", broken)
    (folder / "log").write_text("handed to Ray as 1a2b.\n")
    with capfd.disabled():  # what goes to the process's own output is what the log gets
        assert module._work("run", {}, "runs", "log", "1a2b", str(folder), 1) == "ZeroDivisionError: of what"
    assert "in broken" in (folder / "log").read_text()


def test_a_machine_that_does_not_share_the_folders_says_so(folder: Path) -> None:
    def work(started_in: Path, run: str, log: str) -> str | None:
        return module._work("run", {}, run, log, "1a2b", str(started_in), 1)

    (folder / "runs").mkdir()
    (folder / "log").write_text("handed to Ray as another.\n")
    for missing, said in [
        (folder / "gone", work(folder / "gone", "runs/a", "log")),
        (folder / "pool", work(folder, "pool/a", "log")),
        (folder, work(folder, "runs/a", "log")),  # a folder of that name, of the machine's own
    ]:
        assert said is not None
        assert f"does not see {missing} of the machine that runs the study" in said
        assert "share" in said


@pytest.mark.long
def test_a_process_that_is_in_a_cluster_does_not_join_another(cluster: Any) -> None:
    with pytest.raises(RunError, match=r"in the Ray cluster at .* already, so it cannot join 10\.0\.0\.1:6379"):
        RayWorkers("10.0.0.1:6379", 2)
    RayWorkers(cluster.get_runtime_context().gcs_address, 2).close()
    assert cluster.is_initialized()  # whoever joined leaves it


def test_nobody_at_an_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        ray = ModuleType("ray")
        ray.is_initialized, ray.shutdown = lambda: False, lambda: None
        monkeypatch.setitem(sys.modules, "ray", ray)
        with pytest.raises(RunError, match=f"There is no Ray cluster to join at {address}: .*refused"):
            RayWorkers(address, 2)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"study\.on=ray needs Ray.*pip install 'potstill\[study\]'"):
        RayWorkers(None, None)


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([(2, 0)], 2, (2, 1, 0)),
        ([(2, 0)], 1, (1, 2, 0)),
        ([(8, 0), (8, 0), (8, 0)], 2, (2, 8, 0)),  # no job is larger than a machine
        ([(8, 0), (2, 0)], 3, (3, 2, 0)),  # 3 + 3 + 2 would leave one of them waiting: 4 of 2 fit
        ([(2, 0)], 5, (5, 0.4, 0)),  # more jobs than cores share them
        ([(16, 2), (8, 0)], None, (2, 8, 1)),  # a job a GPU; the machine without one is left out
        ([(16, 2)], 3, (3, 5, 0.5)),
        ([(1, 2)], None, (2, 0.5, 1)),
        ([(0, 0)], 4, (4, 1, 0)),  # a cluster that grows when asked
    ],
)
def test_a_cluster_is_divided_among_so_many_jobs(
    machines: list[tuple[float, float]], workers: int | None, expected: tuple[float, ...]
) -> None:
    assert divided(machines, workers) == expected


def test_a_cluster_without_anything_to_compute_with_is_refused() -> None:
    with pytest.raises(RunError, match=r"no CPU and no GPU now; study\.workers=N"):
        divided([(0, 0)], None)
