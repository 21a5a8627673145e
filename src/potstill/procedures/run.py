"""A recipe's runs: the control where one is asked for, then the student."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import ProcedureConfig, Recipe
from potstill.data.source import Split
from potstill.errors import RecipeError, RunError
from potstill.methods.objective import default_objective
from potstill.procedures.assistants import chain
from potstill.procedures.data import DataFacts, describe_data, open_split, prepare_data, resolve_data
from potstill.procedures.identity import run_name
from potstill.procedures.single import SingleRun
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.reporting import Reporter

__all__ = ["Outcome", "distill", "resolve"]

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
    split = open_split(recipe.data)
    recipe = _resolved(recipe, split)
    facts = describe_data(recipe, split)
    folder = RunFolder(recipe.run or "runs/" + run_name(recipe))
    if must_resume and not any((folder.path / part / "recipe.yaml").exists() for part in (".", "control")):
        raise RunError(f"There is no run to go on with in {folder.path}; leave --resume out to start one.")
    runs = {
        title: functools.partial(SingleRun, part, facts, RunFolder(str(part.run or folder.path)), processes)
        for title, part in chain(recipe, folder.path)
    }
    if recipe.control:
        control = RunFolder(folder.path / "control")
        runs = {"control": functools.partial(SingleRun, _alone(recipe, facts), facts, control, processes), **runs}
    # Made before any of them trains, so that a mistake is found first; an assistant's student has to wait for it.
    made = {title: make() for title, make in runs.items() if recipe.procedure.name != "assistants"}
    if processes.main:
        for note in facts.notes:
            log.info(note)
    data = functools.cache(lambda: prepare_data(recipe, split, processes))  # decoded when the first run needs them
    rows: dict[str, dict[str, Any]] = {}
    for title, make in runs.items():
        ended = (made[title] if title in made else make()).train(data, interrupt, reporter, title)
        rows[title] = ended["student"]
        if "teacher" in ended:  # of a chain the first one's: the teachers after it are the assistants
            rows.setdefault("teacher", ended["teacher"])
    order = ["teacher", *(title for title in runs if title.startswith("assistant")), "control", "student"]
    return Outcome(folder.path, {name: rows[name] for name in order if name in rows})


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that was left to "auto" said. Looks at the data, decodes none of them."""
    return _resolved(recipe, open_split(recipe.data))


def _resolved(recipe: Recipe, split: Split) -> Recipe:
    data = resolve_data(recipe.data, split.train)
    objective = dict(recipe.objective) or default_objective(
        recipe.teacher is not None and recipe.procedure.name == "joint"
    )
    return recipe.model_copy(update={"data": data, "objective": objective})


def _alone(recipe: Recipe, facts: DataFacts) -> Recipe:
    """The control: the same student, data and schedule, on labels alone."""
    if not facts.labelled or recipe.teacher is None:
        raise RecipeError("control=true trains the student on labels without a teacher; it needs labels and a teacher.")
    ce = recipe.objective.get("ce")
    term: Any = {**ce, "weight": 1.0} if isinstance(ce, dict) else 1.0  # with the objective's own label smoothing
    return recipe.model_copy(
        update={"teacher": None, "objective": {"ce": term}, "control": False, "procedure": ProcedureConfig()}
    )
