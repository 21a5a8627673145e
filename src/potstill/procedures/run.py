"""One run: data, networks, objective, the loop, and what it leaves in its folder."""

import contextlib
import logging
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from potstill.analysis.cost import measure_cost
from potstill.config import Recipe
from potstill.data.source import Split
from potstill.errors import RecipeError, RunError
from potstill.networks.ship import ship_student
from potstill.networks.tap import Tapped
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data, open_split, prepare_data, resolve_data
from potstill.procedures.networks import (
    DTYPES, build_objective, build_student, build_teacher, default_objective, student_card,
)  # fmt: skip
from potstill.recipe import dump_recipe
from potstill.tasks.classification import evaluate
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.ema import WeightAverage
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop, Settings
from potstill.training.reporting import Reporter
from potstill.training.optimizers import make_optimizer
from potstill.training.schedules import Schedule
from potstill.training.step import TrainingStep

__all__ = ["Outcome", "distill", "resolve", "run_one"]

log = logging.getLogger(__name__)

# Fields that may differ between a run and its continuation: they change no weight.
_FREE = {"run", "log", "checkpoint", "device", "control"}
_FREE_DATA = {"workers", "loader", "path"}


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
    recipe, data = _ready(recipe, processes)
    folder = RunFolder(recipe.run or "runs/" + _name(recipe))
    if must_resume and not any((folder.path / part / "recipe.yaml").exists() for part in (".", "control")):
        raise RunError(f"There is no run to go on with in {folder.path}; leave --resume out to start one.")
    rows: dict[str, dict[str, Any]] = {}
    if recipe.control:
        if not data.labelled or recipe.teacher is None:
            raise RecipeError(
                "control=true trains the student on labels without a teacher; it needs labels and a teacher."
            )
        alone = recipe.model_copy(update={"teacher": None, "objective": {"ce": 1.0}, "control": False})
        rows["control"] = run_one(
            alone, data, RunFolder(folder.path / "control"), processes, interrupt, reporter, "control"
        )["student"]
    rows = run_one(recipe, data, folder, processes, interrupt, reporter, "student") | rows
    return Outcome(folder.path, {name: rows[name] for name in ("teacher", "control", "student") if name in rows})


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that was left to "auto" said. Looks at the data, decodes none of them."""
    return _resolved(recipe, open_split(recipe.data))


def run_one(
    recipe: Recipe,
    data: Data,
    folder: RunFolder,
    processes: Processes,
    interrupt: Interrupt,
    reporter: Callable[[str, RunFolder], Reporter],
    title: str,
) -> dict[str, dict[str, Any]]:
    """Train one network into one folder; return its rows (and the teacher's)."""
    _must_be_the_same(recipe, folder)
    if result := folder.result():
        log.info("%s is finished; its result is shown again. Give another run= to train anew.", folder.path)
        return result["rows"]
    # Everything that can be wrong with a recipe is found before the folder is touched.
    teacher = build_teacher(recipe, data, processes)
    student = build_student(recipe, data, teacher)
    torch.manual_seed(recipe.seed)  # the projectors' draws do not depend on the student's number of draws
    objective = build_objective(recipe, student, teacher, data)
    memory = torch.channels_last if recipe.channels_last else torch.contiguous_format
    student = student.to(device=processes.device, memory_format=memory)
    autocast = DTYPES[recipe.precision] if recipe.precision != "fp32" else None
    step = TrainingStep(student, objective.to(processes.device), autocast=autocast, compiled=recipe.compile)
    average = WeightAverage(student, recipe.ema) if recipe.ema else None
    judged: Tapped = average.network if average else student  # type: ignore[assignment]

    def judge() -> dict[str, float]:
        if data.val is None or not data.labelled:
            return {}
        return evaluate(judged, data.val.epoch(0), processes, autocast=autocast)

    with folder.owned() if processes.main else contextlib.nullcontext():
        if processes.main and not folder.recipe.exists():
            folder.write_text("recipe.yaml", _head() + dump_recipe(recipe))
        processes.wait()
        loop = Loop(
            step, teacher, data.train, judge, _optimizer(recipe, step), _settings(recipe),
            Checkpoints(folder.checkpoints, recipe.checkpoint.keep), processes,
            reporter(title, folder), interrupt, average,
        )  # fmt: skip
        history = loop.run()
        rows: dict[str, dict[str, Any]] = {}
        if teacher is not None:
            teacher.verify()
            rows["teacher"] = _teacher_row(teacher, data, processes)
        rows["student"] = _accuracies(history[-1])
        if processes.main:
            rows["student"] |= asdict(measure_cost(judged, (3, data.size, data.size)))
            ship_student(folder.path, judged, student_card(recipe, student, data))
            folder.write_result(_result(rows, recipe, data, teacher, history))
    return rows


def _result(
    rows: dict[str, Any], recipe: Recipe, data: Data, teacher: Teacher | None, history: list[dict[str, Any]]
) -> dict[str, Any]:
    skipped = data.skipped()
    if skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
        log.warning("%d damaged images were skipped: %s%s", len(skipped), shown, " ..." if len(skipped) > 5 else "")
    return {
        "rows": rows,
        "epochs": recipe.epochs,
        "seconds": sum(row["seconds"] for row in history),
        "classes": list(data.classes),
        "data": {"identity": data.identity, "train": data.counts[0], "val": data.counts[1], "skipped": skipped},
        "teacher_fingerprint": teacher.identity if teacher else None,
        "versions": _versions(),
    }


def _ready(recipe: Recipe, processes: Processes) -> tuple[Recipe, Data]:
    split = open_split(recipe.data)
    resolved = _resolved(recipe, split)
    data = prepare_data(resolved, split, processes)
    if processes.main:
        for note in data.notes:
            log.info(note)
    return resolved, data


def _resolved(recipe: Recipe, split: Split) -> Recipe:
    data = resolve_data(recipe.data, split.train)
    return recipe.model_copy(update={"data": data, "objective": default_objective(recipe)})


def _optimizer(recipe: Recipe, step: TrainingStep) -> torch.optim.Optimizer:
    return make_optimizer([step.student, step.objective], **recipe.optimizer.model_dump())


def _settings(recipe: Recipe) -> Settings:
    return Settings(
        epochs=recipe.epochs, seed=recipe.seed, lr=recipe.optimizer.lr, schedule=Schedule(**recipe.schedule.model_dump()),
        clip=recipe.clip, fp16=recipe.precision == "fp16", log_every=recipe.log.every, shares_every=recipe.log.shares,
        evaluate_every=recipe.log.evaluate, checkpoint_epochs=recipe.checkpoint.every_epochs,
        checkpoint_steps=recipe.checkpoint.every_steps,
    )  # fmt: skip


def _teacher_row(teacher: Teacher, data: Data, processes: Processes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if data.val is not None and data.labelled and teacher.spec.classes == len(data.classes):
        row = evaluate(teacher, data.val.epoch(0), processes)
    if processes.main:
        row |= asdict(measure_cost(teacher.network, (3, *(teacher.input_size or (data.size, data.size)))))
    return row


def _accuracies(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("top1", "top5", "val_loss") if name in row}


def _must_be_the_same(recipe: Recipe, folder: RunFolder) -> None:
    """Refuse a folder that holds another recipe's run."""
    if not folder.recipe.exists():
        if folder.path.is_dir() and any(p.name not in (".lock", "control") for p in folder.path.iterdir()):
            raise RunError(f"{folder.path} holds files that are no run of Potstill; give another run=.")
        return
    before = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    now = yaml.safe_load(dump_recipe(recipe))
    differing = [
        f"{key} was {_short(old)}, now {_short(new)}"
        for key, old, new in _differences(before, now)
        if key.split(".")[0] not in _FREE and key.removeprefix("data.") not in _FREE_DATA
    ]
    if differing:
        raise RunError(
            f"{folder.path} belongs to another recipe: {'; '.join(differing)}. "
            "Give another run=, or the values that it was started with."
        )


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in {**before, **now}
            for found in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if before == now else [(key, before, now)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(recipe: Recipe) -> str:
    """A folder's name that says what the run is: student, teacher, methods, data, seed."""
    parts = [recipe.student.model or "student"]
    if recipe.teacher is not None:
        parts += ["from", recipe.teacher.model or Path(str(recipe.teacher.weights)).stem]
    parts += [*recipe.objective, Path(recipe.data.path).name if recipe.data.path else "digits", f"seed{recipe.seed}"]
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts))


def _versions() -> dict[str, str]:
    return {
        "potstill": version("potstill"), "torch": torch.__version__, "timm": version("timm"),
        "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def _head() -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace("\n", " ")
    return f"# {versions}\n# {command}\n"
