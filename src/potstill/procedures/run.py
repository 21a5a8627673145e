"""A recipe's runs: the control where one is asked for, then the student."""

import functools
import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import ProcedureConfig, Recipe, StoreConfig
from potstill.data.source import Split
from potstill.errors import RecipeError, RunError
from potstill.procedures.assistants import chain
from potstill.procedures.data import Data, DataFacts, describe_data, prepare_data
from potstill.procedures.identity import begun_with, run_name
from potstill.procedures.networks import build_teacher
from potstill.procedures.opening import open_split, resolve_data
from potstill.procedures.prepared import Prepared, prepare_teaching, shared
from potstill.procedures.single import SingleRun
from potstill.procedures.speed import resolve_speed
from potstill.procedures.students import students_of
from potstill.procedures.tasks import terms_of, untaught
from potstill.procedures.together import side_by_side
from potstill.training.distributed import Processes, choose_device
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.reporting import Reporter

__all__ = ["Outcome", "distill", "resolve", "resolve_with"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with: a row for each network, as ``result.json`` holds them.

    Attributes:
        folder: the run's folder.
        rows: ``teacher``, ``control`` and ``student``, as far as there are; each has the accuracies and the cost.
    """

    folder: Path
    rows: dict[str, dict[str, Any]]


def distill(
    recipe: Recipe,
    processes: Processes,
    interrupt: Interrupt,
    reporter: Callable[[str, RunFolder], Reporter],
    must_resume: bool = False,
) -> Outcome:
    """Run a recipe: the control first where one is asked for, then the student; or resume, or find it finished.

    Args:
        recipe: with or without a teacher.
        processes: this process and the others.
        interrupt: raised when the run is told to stop.
        reporter: makes the one that is told how a run goes, from its title and folder.
        must_resume: refuse to start from nothing.

    Raises:
        PotstillError: for whatever a user can mend; nothing half-written stays behind.
    """
    split = open_split(recipe)
    recipe = _with_objective(recipe)
    folder = RunFolder(recipe.run or "runs/" + run_name(recipe))
    recipe = _resolved(recipe, split, processes, begun_with(folder))
    facts = describe_data(recipe, split)
    if must_resume and not _anything_begun(folder, recipe):
        raise RunError(f"There is no run to go on with in {folder.path}; leave --resume out to start one.")
    data = functools.cache(lambda: prepare_data(recipe, split, processes))  # decoded when the first run needs them
    if recipe.students:
        return _side_by_side(recipe, facts, data, folder, processes, interrupt, reporter)
    runs = {
        title: functools.partial(SingleRun, part, facts, RunFolder(str(part.run or folder.path)), processes)
        for title, part in chain(recipe, folder.path)
    }
    if recipe.control:
        control = RunFolder(folder.path / "control")
        runs = {"control": functools.partial(SingleRun, _alone(recipe, facts), facts, control, processes), **runs}
    # Made before any of them trains, so that a mistake is found first; an assistant's student has to wait for it.
    made = {title: make() for title, make in runs.items() if recipe.procedure.name != "assistants"}
    _say(facts, processes)
    rows: dict[str, dict[str, Any]] = {}
    for title, make in runs.items():
        run = made[title] if title in made else make()
        prepare = functools.partial(_prepared, run, data, processes)
        ended = side_by_side({title: functools.partial(run.train, prepare, interrupt, reporter, title)})[title]
        rows[title] = ended["student"]
        if "teacher" in ended:  # of a chain the first one's: the teachers after it are the assistants
            rows.setdefault("teacher", ended["teacher"])
    order = ["teacher", *(title for title in runs if title.startswith("assistant")), "control", "student"]
    return Outcome(folder.path, {name: rows[name] for name in order if name in rows})


def _side_by_side(
    recipe: Recipe, facts: DataFacts, data: Callable[[], Data], folder: RunFolder, processes: Processes,
    interrupt: Interrupt, reporter: Callable[[str, RunFolder], Reporter],
) -> Outcome:  # fmt: skip
    """Several students of one teacher: each in a folder of its own, a step of each in turn."""
    teacher = build_teacher(recipe, facts, processes)
    parts = students_of(recipe, folder.path)
    runs = {
        title: SingleRun(part, facts, RunFolder(str(part.run)), processes, teacher) for title, part in parts.items()
    }
    _say(facts, processes)
    needs = functools.reduce(operator.or_, (run.needs for run in runs.values()))
    prepare = functools.cache(lambda: shared(prepare_teaching(recipe, teacher, needs, data(), processes), needs))
    ended = side_by_side(
        {title: functools.partial(run.train, prepare, interrupt, reporter, title) for title, run in runs.items()}
    )
    taught = next((rows["teacher"] for rows in ended.values() if "teacher" in rows), None)
    rows = {} if taught is None else {"teacher": taught}
    return Outcome(folder.path, rows | {title: found["student"] for title, found in ended.items()})


def _prepared(run: SingleRun, data: Callable[[], Data], processes: Processes) -> Prepared:
    return prepare_teaching(run.recipe, run.teacher, run.needs, data(), processes)


def _say(facts: DataFacts, processes: Processes) -> None:
    if processes.main:
        for note in facts.notes:
            log.info(note)


def _anything_begun(folder: RunFolder, recipe: Recipe) -> bool:
    names = [".", "control", *(students_of(recipe, folder.path) if recipe.students else ())]
    return any((folder.path / name / "recipe.yaml").exists() for name in names)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that was left to "auto" said. Looks at the data, decodes none of them."""
    return resolve_with(recipe, open_split(recipe), Processes(choose_device(recipe.device)))


def resolve_with(recipe: Recipe, split: Split, processes: Processes) -> Recipe:
    """The same for data that are open and a device that is chosen."""
    return _resolved(_with_objective(recipe), split, processes)


def _with_objective(recipe: Recipe) -> Recipe:
    taught = recipe.teacher is not None and recipe.procedure.name == "joint"
    return recipe.model_copy(update={"objective": dict(recipe.objective) or terms_of(recipe.task, taught)})


def _resolved(recipe: Recipe, split: Split, processes: Processes, begun: Mapping[str, Any] | None = None) -> Recipe:
    data = resolve_data(recipe, split.train)
    stored = recipe.teacher is not None and recipe.teacher.store is not None
    seeds = {
        "order_seed": recipe.seed if data.order_seed is None else data.order_seed,
        "view_seed": (0 if stored else recipe.seed) if data.view_seed is None else data.view_seed,
    }
    recipe = recipe.model_copy(update={"data": data.model_copy(update=seeds)})
    return resolve_speed(recipe, processes, len(split.train), begun)


def _alone(recipe: Recipe, facts: DataFacts) -> Recipe:
    """The control: the same student, data and schedule, on labels alone."""
    if not facts.labelled or recipe.teacher is None:
        raise RecipeError("control=true trains the student on labels without a teacher; it needs labels and a teacher.")
    return recipe.model_copy(
        update={
            "teacher": None,
            "store": StoreConfig(),
            "objective": untaught(recipe),  # with the objective's own label smoothing
            "control": False,
            "procedure": ProcedureConfig(),
        }
    )
