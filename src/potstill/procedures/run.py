"""One run: data, networks, objective, the loop, and what it leaves in its folder."""

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.analysis.cost import measure_cost
from potstill.config import Recipe
from potstill.data.source import Split
from potstill.errors import RecipeError, RunError
from potstill.methods.objective import default_objective
from potstill.networks.card import WEIGHTS_FILE
from potstill.networks.ship import ship_student
from potstill.networks.tap import Tapped
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data, DataFacts, all_skipped, describe_data, open_split, prepare_data, resolve_data
from potstill.procedures.identity import must_be_the_same, recipe_with_head, run_name, versions
from potstill.procedures.networks import (
    DTYPES,
    build_objective,
    build_student,
    build_teacher,
    student_card,
)  # fmt: skip
from potstill.tasks.classification import evaluate
from potstill.tasks.transfer import evaluate_transfer
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.ema import WeightAverage
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Reporter
from potstill.training.schedules import Schedule
from potstill.training.settings import Settings
from potstill.training.step import TrainingStep

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
    main = _Run(recipe, facts, folder, processes)
    runs = {"student": main}
    if recipe.control:
        alone = _Run(_alone(recipe, facts), facts, RunFolder(folder.path / "control"), processes)
        runs = {"control": alone, "student": main}
    if processes.main:
        for note in facts.notes:
            log.info(note)
    data = functools.cache(lambda: prepare_data(recipe, split, processes))  # decoded when the first run needs them
    rows: dict[str, dict[str, Any]] = {}
    for title, run in runs.items():
        ended = run.train(data, interrupt, reporter, title)
        rows |= {name: row for name, row in ended.items() if name != "student"} | {title: ended["student"]}
    return Outcome(folder.path, {name: rows[name] for name in ("teacher", "control", "student") if name in rows})


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that was left to "auto" said. Looks at the data, decodes none of them."""
    return _resolved(recipe, open_split(recipe.data))


class _Run:
    """One network to train into one folder.

    Everything that can be wrong with its recipe is found when it is made: before an image is decoded, before the folder
    is touched, and before any other network trains.
    """

    def __init__(self, recipe: Recipe, facts: DataFacts, folder: RunFolder, processes: Processes) -> None:
        self.recipe, self.facts, self.folder, self.processes = recipe, facts, folder, processes
        self.teacher = build_teacher(recipe, facts, processes)
        self.student = build_student(recipe, facts, self.teacher)
        torch.manual_seed(recipe.seed)  # the projectors' draws do not depend on how many the student took
        self.objective = build_objective(recipe, self.student, self.teacher, facts)
        self.identity = {"data": facts.identity, "teacher": self.teacher.identity if self.teacher else None}
        processes.on_main(lambda: must_be_the_same(recipe, folder, self.identity))

    def train(
        self,
        prepare: Callable[[], Data],
        interrupt: Interrupt,
        reporter: Callable[[str, RunFolder], Reporter],
        title: str,
    ) -> dict[str, dict[str, Any]]:
        """Train, or go on training, or find it done; return the rows of the student and the teacher."""
        if any(self.processes.gathered(self.folder.result() is not None)):
            log.info("%s is finished; its result is shown again. Give another run= to train anew.", self.folder.path)
            return (self.folder.result() or {"rows": {"student": {}}})["rows"]
        data = prepare()
        self.identity["data in use"] = data.in_use
        with contextlib.ExitStack() as stack:
            self.processes.on_main(lambda: self._begin(stack))
            step, average = self._step()
            judged: Tapped = average.network if average else self.student  # type: ignore[assignment]
            autocast = _autocast(self.recipe)

            def judge() -> dict[str, float]:
                if data.val is None:
                    return {}
                self.processes.align(judged)
                if not data.labelled:
                    whole = TrainingStep(judged, self.objective, autocast=autocast)
                    return evaluate_transfer(whole, self.teacher, data.val.epoch(0), self.processes)
                return evaluate(judged, data.val.epoch(0), self.processes, autocast=autocast)

            history = Loop(
                step, self.teacher, data.train, judge,
                make_optimizer([self.student, self.objective], **self.recipe.optimizer.model_dump()),
                _settings(self.recipe), Checkpoints(self.folder.checkpoints, self.recipe.checkpoint.keep),
                self.processes, reporter(title, self.folder), interrupt, average, data.skipped,
            ).run()  # fmt: skip
            return self._finish(judged, data, history)

    def _begin(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self.folder.owned())
        # Once more: another process may have worked here between the first look and the lock.
        must_be_the_same(self.recipe, self.folder, self.identity)
        if not self.folder.begun:
            self.folder.write_identity(self.identity)
            self.folder.write_text("recipe.yaml", recipe_with_head(self.recipe))

    def _step(self) -> tuple[TrainingStep, WeightAverage | None]:
        memory = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        self.student.to(self.processes.device).to(memory_format=memory)
        self.objective.to(self.processes.device)
        step = TrainingStep(
            self.student, self.objective, autocast=_autocast(self.recipe), compiled=self.recipe.compile,
            channels_last=self.recipe.channels_last,
        )  # fmt: skip
        return step, WeightAverage(self.student, self.recipe.ema) if self.recipe.ema else None

    def _finish(self, judged: Tapped, data: Data, history: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        if self.teacher is not None:
            self.teacher.verify()
            rows["teacher"] = _teacher_row(self.teacher, data, self.processes)
        skipped = all_skipped(self.processes.gathered(data.skipped))
        rows["student"] = {name: value for name, value in history[-1].items() if name.startswith(("top", "val_"))}

        def ship() -> None:
            ship_student(self.folder.path, judged, student_card(self.recipe, self.student, data))
            cost = measure_cost(judged, (3, data.size, data.size), weights=self.folder.path / WEIGHTS_FILE)
            rows["student"] |= asdict(cost)
            self.folder.write_result(_result(rows, self.recipe, data, self.identity, history, skipped))

        self.processes.on_main(ship)
        return rows


def _result(
    rows: dict[str, Any], recipe: Recipe, data: Data, identity: dict[str, Any], history: list[dict[str, Any]],
    skipped: dict[str, dict[str, str]],
) -> dict[str, Any]:  # fmt: skip
    counts = {name: found - len(skipped[name]) for name, found in zip(("train", "val"), data.found, strict=True)}
    return {
        "rows": rows,
        "epochs": recipe.epochs,
        "seconds": sum(row["seconds"] for row in history),
        "classes": list(data.classes),
        "data": {"identity": data.identity, **counts, "skipped": skipped},
        "teacher_fingerprint": identity["teacher"],
        "versions": versions(),
    }


def _resolved(recipe: Recipe, split: Split) -> Recipe:
    data = resolve_data(recipe.data, split.train)
    objective = dict(recipe.objective) or default_objective(taught=recipe.teacher is not None)
    return recipe.model_copy(update={"data": data, "objective": objective})


def _alone(recipe: Recipe, facts: DataFacts) -> Recipe:
    """The control: the same student, data and schedule, on labels alone."""
    if not facts.labelled or recipe.teacher is None:
        raise RecipeError("control=true trains the student on labels without a teacher; it needs labels and a teacher.")
    ce = recipe.objective.get("ce")
    term: Any = {**ce, "weight": 1.0} if isinstance(ce, dict) else 1.0  # with the objective's own label smoothing
    return recipe.model_copy(update={"teacher": None, "objective": {"ce": term}, "control": False})


def _autocast(recipe: Recipe) -> torch.dtype | None:
    return DTYPES[recipe.precision] if recipe.precision != "fp32" else None


def _settings(recipe: Recipe) -> Settings:
    return Settings(
        epochs=recipe.epochs, seed=recipe.seed, lr=recipe.optimizer.lr,
        schedule=Schedule(**recipe.schedule.model_dump()), clip=recipe.clip, fp16=recipe.precision == "fp16",
        log_every=recipe.log.every, shares_every=recipe.log.shares, evaluate_every=recipe.log.evaluate,
        checkpoint_epochs=recipe.checkpoint.every_epochs, checkpoint_steps=recipe.checkpoint.every_steps,
    )  # fmt: skip


def _teacher_row(teacher: Teacher, data: Data, processes: Processes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if data.val is not None and data.labelled and teacher.spec.classes == len(data.classes):
        row = evaluate(teacher, data.val.epoch(0), processes)
    if processes.main:
        row |= asdict(measure_cost(teacher.network, (3, *(teacher.input_size or (data.size, data.size)))))
    return row
