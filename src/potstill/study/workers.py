"""What runs a study's jobs: processes of this machine here, a Ray cluster in its own file; the study knows neither."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from potstill.errors import RunError
from potstill.study.plan import Job

__all__ = ["Ended", "LocalWorkers", "Place", "Workers", "local_places"]

_STOP_SECONDS = 30.0
_LOADED = ["potstill.study.job", "sklearn.datasets"]  # before the first job; the digits take a second of imports else


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended.

    Attributes:
        name: the job's.
        reason: why it could not be done; None where it was.
        killed: its process died of a signal, or of a lost machine, so that trying again may help.
    """

    name: str
    reason: str | None = None
    killed: bool = False


class Workers(Protocol):
    """Runs jobs side by side."""

    capacity: int

    def start(self, job: Job, log: Path) -> None:
        """Start a job; never called while ``capacity`` jobs are running."""

    def ended(self, seconds: float) -> list[Ended]:
        """The jobs that ended since the last call; waits so many seconds for one."""

    def close(self) -> None:
        """Stop what still runs, so that it can go on later."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one job at a time runs: some cores, and a device."""

    cores: tuple[int, ...]
    device: str


def local_places(count: int | None = None) -> list[Place]:
    """This machine divided among so many jobs: a GPU each where there are GPUs, else a core each, or a part of them.

    All have as many cores, so that a run comes to the same numbers wherever it goes on; cores that are left over idle.

    Args:
        count: None for as many as there are GPUs, or cores.

    Example:
        >>> [place.device for place in local_places(1)] in (["cpu"], ["cuda:0"], ["mps"])
        True
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    if not devices and torch.backends.mps.is_available():
        devices = ["mps"]
    count = count or len(devices) or len(cores)
    share = max(1, len(cores) // count)
    parts = [tuple(cores[(n * share + k) % len(cores)] for k in range(share)) for n in range(count)]
    return [Place(part, devices[n % len(devices)] if devices else "cpu") for n, part in enumerate(parts)]


class LocalWorkers:
    """Processes of this machine, each held to cores and a GPU of its own.

    They are forked off a process that has imported everything already, so a job of some seconds is not outweighed by
    the seconds that PyTorch takes to load; and each ends with its job, so nothing is left over from one to the next.
    They stop by themselves when this process is gone. The calling script is not imported in them, so it needs no
    ``if __name__ == "__main__":``.

    Args:
        places: where they run, see :func:`local_places`.
    """

    def __init__(self, places: list[Place]) -> None:
        self.capacity = len(places)
        self._free = list(places)
        self._running: dict[int, _Running] = {}  # by what becomes ready when the process has ended
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_LOADED)

    def start(self, job: Job, log: Path) -> None:
        """Start a job in a process of its own.

        Raises:
            RunError: the system gives no more processes.
        """
        place = self._free[0]
        ours, theirs = self._context.Pipe(duplex=False)
        recipe = job.recipe.model_dump(mode="json")
        if recipe["device"] in ("auto", place.device.partition(":")[0]):
            recipe["device"] = place.device
        arguments = (job.kind, recipe, str(job.folder), str(log), place.cores, theirs)
        process = self._context.Process(target=_work, args=arguments, name=job.name)
        with theirs, _started_with(len(place.cores)):
            try:
                process.start()
            except OSError as error:
                ours.close()
                raise RunError(f"No process could be started for {job.name}: {error.strerror or error}.") from None
        self._free.remove(place)
        self._running[process.sentinel] = _Running(job.name, process, ours, place)

    def ended(self, seconds: float) -> list[Ended]:
        """What has ended; a process that ends without a word was killed."""
        if not self._running:
            return []
        return [self._take(ready) for ready in wait(list(self._running), seconds) if isinstance(ready, int)]

    def close(self) -> None:
        """Tell every job to save and stop; end those that do not within half a minute."""
        running = list(self._running.values())
        try:
            for one in running:
                one.process.terminate()
            until = time.monotonic() + _STOP_SECONDS
            for one in running:
                one.process.join(max(0.0, until - time.monotonic()))
        finally:  # also where somebody loses patience: nothing is left running
            for one in running:
                if one.process.is_alive():
                    one.process.kill()
            for sentinel in list(self._running):
                self._take(sentinel)

    def _take(self, sentinel: int) -> Ended:
        one = self._running.pop(sentinel)
        self._free.append(one.place)
        one.process.join()
        try:
            reason, again = one.answer.recv() if one.answer.poll() else (_exit(one.process.exitcode), True)
        except EOFError:
            reason, again = _exit(one.process.exitcode), True
        one.answer.close()
        one.process.close()
        return Ended(one.name, reason, again)


@dataclass(frozen=True, slots=True)
class _Running:
    name: str
    process: ForkServerProcess
    answer: Connection
    place: Place


def _work(kind: str, recipe: dict[str, Any], folder: str, log: str, cores: tuple[int, ...], answer: Connection) -> None:
    """What a job's process does; its answer is why it could not, and whether to try again."""
    from potstill.study.job import stop_with_parent, writing_to

    os.setsid()  # Ctrl-C is the study's, which tells its jobs
    stop_with_parent()
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
        with writing_to(Path(log)):
            ended = _done(kind, recipe, folder)
    except OSError as error:
        ended = f"{error.filename or log}: {error.strerror or error}", False
    with contextlib.suppress(BrokenPipeError):  # nobody is there any more
        answer.send(ended)


def _done(kind: str, recipe: dict[str, Any], folder: str) -> tuple[str | None, bool]:
    from potstill.study.job import do_job
    from potstill.training.settings import Stopped

    try:
        return do_job(kind, recipe, folder), False
    except Stopped as stopped:
        return str(stopped), True
    except BaseException as error:  # a bug, or out of memory: the log has the traceback, the study a sentence
        traceback.print_exc()
        lines = str(error).splitlines() or ["no more is known"]
        return f"{type(error).__name__}: {lines[0]}", False


@contextlib.contextmanager
def _started_with(threads: int) -> Iterator[None]:
    """What a process that starts here takes over: so many threads for OpenMP, and nothing of the calling script.

    The number is read when PyTorch loads, in the process that the others are forked off.
    """
    threads_before, script = os.environ.get("OMP_NUM_THREADS"), sys.modules["__main__"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if threads_before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads_before


def _exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended by exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    memory = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return f"its process was ended by the signal {name}{memory}"
