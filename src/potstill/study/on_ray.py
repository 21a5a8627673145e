"""A Ray cluster as what runs a study's jobs: Ray finds each a place, and starts again what was lost with a machine."""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from potstill.errors import RunError
from potstill.study.job import do_job, writing_to
from potstill.study.plan import Job
from potstill.study.workers import Ended
from potstill.training.settings import Stopped

__all__ = ["RayWorkers", "divided"]

_STOP_SECONDS = 30.0
_KNOCK_SECONDS = 10.0
_OBJECT_STORE = 80 * 1024**2  # bytes; about the least that Ray takes: nothing large goes through it
_UNLESS_SET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray is about to do by itself, and tells each process until then
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # no copy of the folder, with its data and runs: the machines share it
}


class RayWorkers:
    """Ray tasks, each in a process of its own that ends with it; a lost process or machine costs a retry.

    The folder that the study is started in, the study's folder and its pool lie on a file system that every machine
    of the cluster sees under the same path, as data and networks' files do; a job that lands where they are not fails
    with a sentence. Nothing but recipes and reasons goes through Ray.

    Args:
        address: of the cluster, ``host:port``; ``local`` for a new one of this machine; None for the one of
            ``RAY_ADDRESS``, else the one that ``ray start`` made on this machine, else a new one that ends with this.
        workers: jobs at once; None for one a GPU, or one a CPU where the cluster has no GPU.
        retries: how often Ray starts a job again whose process was lost; one that refuses is not tried again.

    Raises:
        RunError: Ray is not installed, there is no cluster at the address, or it has nothing to compute with.
    """

    def __init__(self, address: str | None, workers: int | None, retries: int = 2) -> None:
        self._ray = ray = _ray(retries)
        self._running: dict[Any, str] = {}
        self._refused: list[Ended] = []
        self._retries = retries
        self._times = "once" if not retries else f"{retries + 1} times"
        self._ours = not ray.is_initialized()  # somebody's own connection is used, and left as it was
        if self._ours:
            with _signals_kept():
                _connect(ray, address)
        elif address not in (None, here := ray.get_runtime_context().gcs_address):
            raise RunError(f"This process is in the Ray cluster at {here} already, so it cannot join {address}.")
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        try:
            self.capacity, self._cpus, self._gpus = divided(
                [(machine.get("CPU", 0.0), machine.get("GPU", 0.0)) for machine in machines], workers
            )
        except RunError:
            self.close()
            raise
        # max_calls=1: a process does one job; none finds what another left, and its peak of memory is its own.
        self._task = ray.remote(max_calls=1)(_work)

    def start(self, job: Job, log: Path) -> None:
        """Hand a job to Ray, with the folder that this process is in and where it finds modules."""
        mark = secrets.token_hex(8)
        try:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{job.name}: handed to Ray as {mark}.\n")
        except OSError as error:
            self._refused.append(Ended(job.name, f"{error.filename or log} cannot be written to: {error.strerror}."))
            return
        task = self._task.options(
            name=job.name,
            num_cpus=self._cpus,
            num_gpus=0 if job.recipe.device == "cpu" else self._gpus,
            max_retries=self._retries,
            retry_exceptions=[Stopped],  # told to stop by somebody else than this study: saved, to go on elsewhere
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([*_module_folders(), "${PYTHONPATH}"])}},
        )
        recipe = job.recipe.model_dump(mode="json")
        threads = max(1, math.floor(self._cpus))
        reference = task.remote(job.kind, recipe, str(job.folder), str(log), mark, os.getcwd(), threads)
        self._running[reference] = job.name

    def ended(self, seconds: float) -> list[Ended]:
        """What has ended; Ray has done the retries already, so nothing is said to have been killed."""
        if self._refused:
            ended, self._refused = self._refused, []
            return ended
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [Ended(self._running.pop(reference), self._reason(reference)) for reference in ready]

    def _reason(self, reference: Any) -> str | None:
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, TaskCancelledError, WorkerCrashedError

        try:
            reason: str | None = self._ray.get(reference)
        except (WorkerCrashedError, NodeDiedError):
            return f"its Ray worker was lost {self._times} (killed, or gone with its machine)"
        except OutOfMemoryError:
            return f"Ray ended it {self._times}, as its machine ran out of memory; fewer study.workers= need less"
        except TaskCancelledError:
            return "it was cancelled in Ray"
        except RayError as error:
            return _sentence(getattr(error, "cause", None) or error)
        return reason

    def close(self) -> None:
        """Tell every job to save and stop; end those that do not within half a minute, and a cluster of one's own."""
        left = list(self._running)
        try:
            for reference in left:  # what the first Ctrl-C does in a terminal: see training/interrupts.py
                self._ray.cancel(reference)
            if left:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=_STOP_SECONDS)
        finally:  # also where somebody loses patience: nothing is left running
            for reference in left:
                self._ray.cancel(reference, force=True)
            self._running.clear()
            if self._ours:
                self._ray.shutdown()


def divided(machines: Sequence[tuple[float, float]], workers: int | None) -> tuple[int, float, float]:
    """A cluster among jobs: how many run at once, and the CPUs and GPUs of each, as large as all of them fit.

    Args:
        machines: CPUs and GPUs of each machine.
        workers: jobs at once; None for one a GPU, or one a CPU where there is no GPU.

    Raises:
        RunError: nothing is there, and no number of workers says that something will be.

    Example:
        >>> divided([(8, 0), (4, 0)], None), divided([(8, 0), (4, 0)], 3), divided([(16, 2), (16, 2)], None)
        ((12, 1, 0.0), (3, 4, 0.0), (4, 8, 1.0))
    """
    cpus, gpus = (sum(amounts) for amounts in zip(*machines, strict=True)) if machines else (0.0, 0.0)
    count = workers or int(gpus) or int(cpus)
    if not count:
        raise RunError("The Ray cluster has no CPU and no GPU now; study.workers=N says how many to count on.")
    # More jobs than GPUs share them, the same number on each.
    gpu = _down(1 / math.ceil(count / gpus), 4) if gpus else 0.0

    def fit(share: int) -> int:
        return sum(int(min(cpu // share, has // gpu if gpu else math.inf)) for cpu, has in machines)

    largest = int(max((cpu for cpu, _ in machines), default=0))
    share = next((share for share in range(largest, 0, -1) if fit(share) >= count), None)
    # More jobs than CPUs share them, as they would on one machine; where none is there yet, each asks for one.
    return count, share or min(1.0, _down(cpus / count, 4)) or 1.0, gpu


def _down(value: float, digits: int) -> float:
    return math.floor(value * 10**digits) / 10**digits


def _ray(retries: int) -> ModuleType:
    # Read when Ray loads, and by what it starts. Without the last, a job that takes all memory is never given up.
    for key, value in {**_UNLESS_SET, "RAY_task_oom_retries": str(retries)}.items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError as error:
        raise RunError(
            f"study.on=ray needs Ray, which cannot be imported ({error}): pip install 'potstill[study]'"
        ) from error
    return ray


def _connect(ray: ModuleType, address: str | None) -> None:
    """Join a cluster, or start one of this machine's cores."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    new = {"num_cpus": cores, "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    where = address or os.environ.get("RAY_ADDRESS")
    try:
        if where and where != "local":
            _knock(where)
            ray.init(address=where, **quiet)
            return
        try:
            ray.init(address=address, **new, **quiet)
        except ValueError as error:
            if "existing cluster" not in str(error):
                raise
            ray.init(**quiet)  # what `ray start` made on this machine: it has its cores and memory already
    except Exception as error:  # Ray raises this class itself where a machine is too busy to start it
        ray.shutdown()
        what = f"There is no Ray cluster to join at {where}" if where else "Ray could not be started"
        raise RunError(f"{what}: {_first_line(error)}") from error


def _knock(address: str) -> None:
    """Find out in seconds that nobody is there; Ray itself keeps trying for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the process's own answer to SIGTERM: Ray's ends it, where a study would have its jobs save themselves."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _module_folders() -> list[str]:
    """Where this process finds modules besides what is installed: a source tree, the folder of one's own methods."""
    installed = {os.path.abspath(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    folders = [os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or os.curdir)]
    return [folder for folder in dict.fromkeys(folders) if not any(Path(folder).is_relative_to(p) for p in installed)]


def _work(
    kind: str, recipe: dict[str, Any], folder: str, log: str, mark: str, started_in: str, threads: int
) -> str | None:
    """What a job's process does, on whichever machine Ray chose; a Ray task runs in its process's main thread."""
    unseen = _unseen(folder, log, mark, started_in)
    if unseen is not None:
        return unseen
    os.chdir(started_in)
    torch.set_num_threads(threads)
    with writing_to(Path(log)):
        try:
            return do_job(kind, recipe, folder)
        except (Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # a bug, or out of memory: the log has the traceback, the study a sentence
            traceback.print_exc()
            return _sentence(error)


def _unseen(folder: str, log: str, mark: str, started_in: str) -> str | None:
    """Why this machine cannot do a job that was handed to it, where it does not share the study's folders."""
    places = [Path(started_in), Path(started_in, folder).parent]
    missing = next((place for place in places if not place.is_dir()), None)
    if missing is None:
        path = Path(started_in, log)
        if path.exists() and mark in path.read_text(encoding="utf-8", errors="replace"):
            return None
        missing = path.parent  # there may be a folder of that name, of this machine's own
    return (
        f"The Ray worker on {socket.gethostname()} does not see {missing} of the machine that runs the study. Put the "
        "study on a file system that all machines of the cluster share, or give it run= on one."
    )


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no more is known")
