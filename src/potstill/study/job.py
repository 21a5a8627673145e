"""One job of a study, done in the process that calls it: a run, or a teacher's store."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process
from pathlib import Path
from signal import SIGTERM
from typing import TypeVar

from rich.console import Console

from potstill.config import Recipe
from potstill.errors import PotstillError
from potstill.procedures.run import distill
from potstill.procedures.store_build import build_store
from potstill.recipe import parse_recipe
from potstill.store import Store
from potstill.store.manifest import MANIFEST_FILE
from potstill.training.distributed import joined
from potstill.training.folder import Busy, RunFolder, is_held
from potstill.training.interrupts import Interrupt, watching
from potstill.training.progress import progress_on
from potstill.training.settings import Stopped

__all__ = ["do_job", "is_done", "stop_with_parent", "writing_to"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_SECONDS = 0.5


def is_done(kind: str, folder: Path) -> bool:
    """Whether a job has left what it should: a run's result, or a store with every record.

    Raises:
        RunError: what it left is damaged.
    """
    if kind == "run":
        return RunFolder(folder).result() is not None
    if not (folder / MANIFEST_FILE).exists():
        return False
    store = Store.open(folder)
    return len(store) == store.samples * store.views


def do_job(kind: str, recipe: dict[str, object], folder: str) -> str | None:
    """Do one job, or go on with it; what it says goes to stdout and stderr as plain lines.

    Where another process is at work in the folder, which a killed study left behind or another study started, it waits
    for that one, and goes on from there.

    Args:
        kind: ``run`` or ``store``.
        recipe: as plain values.
        folder: the run's, or the store's.

    Returns:
        Why it could not be done, in a sentence; None where it was.

    Raises:
        Stopped: told to stop; the same job goes on from there.
    """
    console = Console(force_terminal=False, width=200, stderr=True, highlight=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        parsed = parse_recipe(recipe)
        with _called_like(parsed, folder), joined(parsed.device) as processes, watching() as interrupt:

            def work() -> None:
                if kind == "store":
                    build_store(parsed, processes, interrupt, lambda done, of: None)
                    return
                with progress_on(console, parsed.batch_size) as reporter:
                    distill(parsed.model_copy(update={"run": folder}), processes, interrupt, reporter)

            _when_free(work, interrupt)
    except Stopped:
        raise
    except PotstillError as error:
        return str(error)
    return None


def _when_free(work: Callable[[], T], interrupt: Interrupt) -> T:
    """Do something again until no other process is at work there."""
    while True:
        try:
            return work()
        except Busy as busy:
            log.info("%s Waiting for it.", busy)
            while is_held(busy.lock):
                if interrupt:
                    raise Stopped("Stopped while it waited for another process.") from None
                time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _called_like(recipe: Recipe, folder: str) -> Iterator[None]:
    """Let the run's own files name a command that does this run alone, and not the whole study."""
    before = sys.argv
    sys.argv = ["potstill", "distill" if recipe.teacher else "train", str(Path(folder) / "recipe.yaml")]
    try:
        yield
    finally:
        sys.argv = before


def stop_with_parent() -> None:
    """Stop this process, as SIGTERM does, when the one that started it is gone: a killed study leaves none behind."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def writing_to(log: Path) -> Iterator[None]:
    """Everything that the process says, of whatever kind, at the end of a file.

    Raises:
        OSError: the file cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
