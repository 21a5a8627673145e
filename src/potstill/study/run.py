"""Running a study: every job when those before it are done, as many at once as there are workers."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from potstill.errors import RunError
from potstill.study.job import is_done
from potstill.study.plan import Job, Plan
from potstill.study.workers import Workers
from potstill.training.folder import held
from potstill.training.interrupts import Interrupt

__all__ = ["State", "Status", "run_study"]

State = Literal["waiting", "running", "done", "failed"]
_LOOK_SECONDS = 0.5


@dataclass
class Status:
    """Where each job of a study is.

    Attributes:
        states: by the job's name.
        reasons: why a job failed, by its name.
        tries: how often a job's process was lost, by its name.
        workers: how many jobs run at once.
    """

    states: dict[str, State]
    reasons: dict[str, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    workers: int = 1

    def count(self, *states: State) -> int:
        """How many jobs are in one of these states."""
        return sum(state in states for state in self.states.values())


def run_study(
    plan: Plan, workers: Callable[[], Workers], interrupt: Interrupt, watch: Callable[[Status], None]
) -> Status:
    """Run what is not done yet of a study; what is done stays as it is.

    A job that fails takes those that need it with it, and no others. One whose process was killed is started again,
    ``plan.file.retries`` times; it goes on from its last checkpoint. A teacher or a store whose runs are all done is
    not made again where somebody has deleted it.

    Args:
        plan: of the study.
        workers: makes what runs the jobs; not asked where nothing is left to run.
        interrupt: raised when told to stop; what runs is saved.
        watch: is told where everything is, twice a second.

    Returns:
        Where everything is; after an interrupt nothing is running any more.

    Raises:
        RunError: another process runs the same study, or its folder cannot be written to.
    """
    with _owned(plan):
        status = _begun(plan)
        watch(status)
        if status.count("waiting"):
            running = workers()
            status.workers = running.capacity
            try:
                while not interrupt and _go_on(plan, status, running):
                    watch(status)
                    for ended in running.ended(_LOOK_SECONDS):
                        _note(plan, status, ended.name, ended.reason, ended.killed)
            finally:
                running.close()
                _settle(plan, status)
        watch(status)
    return status


def _begun(plan: Plan) -> Status:
    """What is done already; and what nothing that is left to do needs."""
    needed: set[str] = set()
    left = [cell.job for cell in plan.cells]
    states: dict[str, State] = {}
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            states[name] = "done" if _is_done(plan.jobs[name]) else "waiting"
            # What a run learns from has to be there, if only to be looked at, also where the store is done.
            left += plan.jobs[name].after if states[name] == "waiting" else ()
    return Status({name: states.get(name, "done") for name in plan.jobs})


def _is_done(job: Job) -> bool:
    """Whether nothing is left to do; a damaged result is looked at by the job itself, which says what is wrong."""
    try:
        return is_done(job.kind, job.folder)
    except RunError:
        return False


def _go_on(plan: Plan, status: Status, workers: Workers) -> bool:
    """Start what can start; whether anything is left to wait for."""
    running = status.count("running")
    for name, job in plan.jobs.items():
        if status.states[name] != "waiting":
            continue
        lost = next((other for other in job.after if status.states[other] == "failed"), None)
        if lost is not None:
            _note(plan, status, name, f"{lost} failed: {status.reasons[lost]}", False)
        elif running < workers.capacity and all(status.states[other] == "done" for other in job.after):
            workers.start(job, plan.folder / "logs" / f"{job.folder.name}.log")
            status.states[name] = "running"
            running += 1
    return running > 0


def _note(plan: Plan, status: Status, name: str, reason: str | None, killed: bool) -> None:
    if killed:
        status.tries[name] = status.tries.get(name, 0) + 1
        if status.tries[name] <= plan.file.retries:
            status.states[name] = "waiting"
            return
    status.states[name] = "done" if reason is None else "failed"
    if reason is not None:
        status.reasons[name] = reason


def _settle(plan: Plan, status: Status) -> None:
    """What ran when the workers were closed is done, or waits to go on."""
    for name, state in status.states.items():
        if state == "running":
            status.states[name] = "done" if _is_done(plan.jobs[name]) else "waiting"


@contextlib.contextmanager
def _owned(plan: Plan) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
            busy = f"Another process runs the study in {plan.folder}; wait for it, or stop it."
            stack.enter_context(held(plan.folder / ".lock", busy))
        except OSError as error:
            raise RunError(f"The study's folder {plan.folder} cannot be written to: {error.strerror}.") from None
        yield
