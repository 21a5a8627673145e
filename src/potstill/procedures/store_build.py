"""Building a teacher's store: every view of every image through the live teacher once, by one process or several."""

import contextlib
import functools
import logging
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from potstill.analysis.class_means import ClassMeans
from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Needs
from potstill.methods.registry import find_method
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data, by_request, describe_data, prepare_data
from potstill.procedures.networks import build_teacher
from potstill.procedures.opening import open_split
from potstill.procedures.run import resolve_with
from potstill.procedures.stored import check_rows, chosen, make_store, on_demand, open_stored
from potstill.procedures.students import students_of
from potstill.store import Store
from potstill.store.creation import MARKS_FILE
from potstill.store.shards import disk
from potstill.training.distributed import Processes
from potstill.training.folder import held
from potstill.training.interrupts import Interrupt
from potstill.training.settings import Stopped

__all__ = ["Built", "build_store", "check_store"]

log = logging.getLogger(__name__)

# Of one request: each image is decoded once, for all the views of it that are missing. What a network keeps of 64
# images stays in a CPU's caches; 256 take half as long again for each.
_IMAGES, _IMAGES_ON_A_CPU = 256, 64
_COMMIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Built:
    """What building a store came to.

    Attributes:
        folder: the store's.
        records: how many it has.
        computed: how many of these were computed now.
        seconds: that took.
        bytes: the store's size.
    """

    folder: Path
    records: int
    computed: int
    seconds: float
    bytes: int


def build_store(
    recipe: Recipe,
    processes: Processes,
    interrupt: Interrupt,
    advanced: Callable[[int, int], None],
) -> Built:
    """Make the store that a recipe names, or go on with it; what is there is not computed again.

    Args:
        recipe: with a teacher and ``teacher.store``; its ``data.views`` or its epochs say how many views.
        processes: each computes its part of the images.
        interrupt: raised when told to stop; what is computed by then stays.
        advanced: is told how many records are done, of how many.

    Raises:
        Busy: another process builds this store.
        PotstillError: as a run of the recipe.
        Stopped: told to stop.
    """
    teacher, needs, data, recipe = _prepared(recipe, processes)
    processes.on_main(lambda: make_store(recipe, teacher, needs, data))
    processes.wait()
    store = Store.open(Path(str(recipe.teacher and recipe.teacher.store)), write=True)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        processes.on_main(lambda: _own(store, stack))
        computed = _fill(store, teacher, data, processes, interrupt, advanced)
        processes.wait()
    teacher.verify()
    if data.labelled and "embedding" in store.layout.taps:
        processes.on_main(lambda: _keep_means(store, data))
    processes.wait()
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    (everywhere,) = processes.sum(torch.tensor([float(computed)], device=processes.device)).tolist()
    return Built(store.folder, len(store), round(everywhere), time.perf_counter() - began, size)


def check_store(recipe: Recipe, processes: Processes) -> int:
    """Compare a store with the recipe that names it, and some of its rows with the live teacher; how many rows.

    Raises:
        RunError: the store was made of something else, or a row is not what the teacher says now.
    """
    teacher, needs, data, recipe = _prepared(recipe, processes)
    return check_rows(open_stored(recipe, teacher, needs, data, processes).store, teacher, data)


def _prepared(recipe: Recipe, processes: Processes) -> tuple[Teacher, Needs, Data, Recipe]:
    if recipe.teacher is None or recipe.teacher.store is None:
        missing = "a teacher and the store's folder, teacher.weights=RUN" if recipe.teacher is None else "its folder,"
        raise RecipeError(f"There is no store to build: name {missing} teacher.store=FOLDER.")
    split = open_split(recipe)
    recipe = resolve_with(recipe, split, processes)
    facts = describe_data(recipe, split)
    teacher = build_teacher(recipe, facts, processes)
    parts = students_of(recipe, Path()).values() if recipe.students else [recipe]
    terms = [name for part in parts if part.teacher is not None for name in part.objective]
    needs = functools.reduce(operator.or_, (find_method(name).needs for name in terms), Needs())
    if teacher is None:
        raise RecipeError("A store holds a teacher's outputs, and the recipe names no teacher.")
    return teacher, needs, prepare_data(recipe, split, processes), recipe


def _own(store: Store, stack: contextlib.ExitStack) -> None:
    """Be the one who builds, where there is something to build: a second one would only compute the same rows."""
    if len(store) < store.samples * store.views:
        marks = store.folder / MARKS_FILE
        with disk(marks):
            busy = f"Another process builds the store in {store.folder}; wait for it, or give another folder."
            stack.enter_context(held(marks, busy))


def _fill(
    store: Store,
    teacher: Teacher,
    data: Data,
    processes: Processes,
    interrupt: Interrupt,
    advanced: Callable[[int, int], None],
) -> int:
    """Compute this process's part of what is missing; how many records that were."""
    computed, committed = 0, time.perf_counter()
    total = store.samples * store.views
    done = len(store)
    for batches in by_request(data.train).requested(_requests(store, processes)):
        for batch in batches:
            missing = ~store.has(batch.index, batch.view)
            found = teacher.features(batch, **on_demand(store.layout.taps))
            store.write(batch.index[missing], batch.view[missing], chosen(found, missing))
            computed += int(missing.sum())
        if time.perf_counter() - committed > _COMMIT_SECONDS:
            store.commit()
            committed = time.perf_counter()
        advanced(min(total, done + computed * processes.world), total)
        if interrupt:
            store.commit()
            raise Stopped(f"Stopped: {store.folder} has {len(store):,} of {total:,} records. The same command goes on.")
    store.commit()
    return computed


def _requests(store: Store, processes: Processes) -> Iterator[tuple[Tensor, list[int]]]:
    """This process's blocks of images, each with the views of which a record is missing in the block."""
    size = _IMAGES_ON_A_CPU if processes.device.type == "cpu" else _IMAGES
    blocks = range(0, store.samples, size)
    for number, start in enumerate(blocks):
        if number % processes.world != processes.rank:
            continue
        index = torch.arange(start, min(start + size, store.samples))
        missing = torch.stack([~store.has(index, view) for view in range(store.views)])  # (views, images)
        # Whole blocks, though some of a block may be there: a network's rounding depends on how many images it sees.
        if missing.any():
            yield index, missing.any(1).nonzero()[:, 0].tolist()


def _keep_means(store: Store, data: Data) -> None:
    """The class means of the first view, of the numbers that are stored, beside the records."""
    if data.labels is None or len(store.missing(0)[0]):
        return
    means = ClassMeans(len(data.classes), store.read(torch.tensor([0]), 0).embedding.shape[1])
    for start in range(0, store.samples, 4096):
        index = torch.arange(start, min(start + 4096, store.samples))
        means.add(store.read(index, 0).embedding, data.labels[index])
    store.write_class_means(means.means().float(), "augmented")
