"""One network trained into one folder: its networks, its phases, and what it leaves."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from potstill.analysis.cost import measure_cost
from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import mean_projector_distance
from potstill.batch import Batch
from potstill.config import Recipe
from potstill.methods.base import Known
from potstill.methods.objective import Objective
from potstill.methods.pretraining import Pretraining
from potstill.networks.card import WEIGHTS_FILE
from potstill.networks.features import Features
from potstill.networks.peers import Peers
from potstill.networks.ship import ship_student
from potstill.networks.teacher import Teacher
from potstill.procedures.class_means import collect_class_means
from potstill.procedures.data import Data, DataFacts, all_skipped
from potstill.procedures.identity import must_be_the_same, recipe_with_head, versions
from potstill.procedures.networks import (
    DTYPES,
    build_objective,
    build_setting,
    build_student,
    build_teacher,
    class_names,
    student_card,
)
from potstill.procedures.phases import Phase, plan_phases
from potstill.projectors import ProjectorEnsemble
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

__all__ = ["SingleRun"]

log = logging.getLogger(__name__)

Rows = dict[str, dict[str, Any]]


class SingleRun:
    """One network to train into one folder.

    Everything that can be wrong with its recipe is found when it is made: before an image is decoded, before the folder
    is touched, and before any other network trains.

    Args:
        recipe: resolved.
        facts: of its data.
        folder: where it goes.
        processes: this process and the others.

    Raises:
        PotstillError: for whatever does not fit together, and for a folder of another run.
    """

    def __init__(self, recipe: Recipe, facts: DataFacts, folder: RunFolder, processes: Processes) -> None:
        self.recipe, self.facts, self.folder, self.processes = recipe, facts, folder, processes
        self.teacher = build_teacher(recipe, facts, processes)
        self.student = build_student(recipe, facts, self.teacher)
        torch.manual_seed(recipe.seed)  # the projectors' draws do not depend on how many the student took
        setting = build_setting(recipe, self.student, self.teacher, facts, processes)
        self.phases = plan_phases(recipe, self.student, setting, lambda part: build_objective(part, setting, facts))
        self.trainable = {name for name, p in self.student.network.named_parameters() if p.requires_grad}
        self.identity = {"data": facts.identity, "teacher": self.teacher.identity if self.teacher else None}
        processes.on_main(lambda: must_be_the_same(recipe, folder, self.identity))

    def train(
        self,
        prepare: Callable[[], Data],
        interrupt: Interrupt,
        reporter: Callable[[str, RunFolder], Reporter],
        title: str,
    ) -> Rows:
        """Train, or go on training, or find it done; return the rows of the student and the teacher.

        Args:
            prepare: decodes the data, or gives them where that is done.
            interrupt: raised when the run is told to stop.
            reporter: makes the one that is told how a phase goes, from its title and folder.
            title: the network that trains, as people call it.

        Raises:
            PotstillError: for whatever a user can mend; nothing half-written stays behind.
        """
        if any(self.processes.gathered(self.folder.result() is not None)):
            log.info("%s is finished; its result is shown again. Give another run= to train anew.", self.folder.path)
            return (self.folder.result() or {"rows": {"student": {}}})["rows"]
        data = prepare()
        self.identity["data in use"] = data.in_use
        with contextlib.ExitStack() as stack:
            self.processes.on_main(lambda: self._begin(stack))
            self.student.to(self.processes.device).to(memory_format=_memory(self.recipe))
            average = WeightAverage(self.student, self.recipe.ema) if self.recipe.ema else None
            known = self._known(data)
            begin, history = 0, []
            for phase in self.phases:
                phase.objective.to(self.processes.device).prepare(known)
                name = title if len(self.phases) == 1 else f"{title}, {phase.name}"
                history = self._train(phase, begin, data, average, interrupt, reporter(name, self.folder))
                begin += phase.epochs
            return self._finish(average.network if average else self.student, data, history)

    def _begin(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self.folder.owned())
        # Once more: another process may have worked here between the first look and the lock.
        must_be_the_same(self.recipe, self.folder, self.identity)
        if not self.folder.begun:
            self.folder.write_identity(self.identity)
            self.folder.write_text("recipe.yaml", recipe_with_head(self.recipe))

    def _known(self, data: Data) -> Known:
        if self.teacher is None or not any(phase.objective.needs.class_means for phase in self.phases):
            return Known(data.labels)
        means = collect_class_means(self.teacher, data, self.recipe, self.folder, self.processes)
        return Known(data.labels, means)

    def _train(
        self,
        phase: Phase,
        begin: int,
        data: Data,
        average: WeightAverage | None,
        interrupt: Interrupt,
        reporter: Reporter,
    ) -> list[dict[str, Any]]:
        """One phase, from the state that the one before it left; the rows of all epochs so far."""
        for name, parameter in self.student.network.named_parameters():
            parameter.requires_grad_(name in self.trainable and (phase.trains is None or name in phase.trains))
        recipe, autocast = self.recipe, _autocast(self.recipe)
        pretraining = phase.objective if isinstance(phase.objective, Pretraining) else None
        if pretraining:
            pretraining.open(True)
        if recipe.compile and begin:
            torch.compiler.reset()  # phases train other parameters: few graphs are kept for one network
        step = TrainingStep(
            self.student, phase.objective, autocast=autocast, compiled=recipe.compile,
            channels_last=recipe.channels_last, trains=phase.trains,
        )  # fmt: skip
        judged = average.network if average else self.student

        def judge() -> dict[str, float]:
            if data.val is None or not phase.judged:
                return {}
            self.processes.align(judged)
            if not data.labelled:
                whole = TrainingStep(judged, phase.objective, autocast=autocast)  # type: ignore[arg-type]
                return evaluate_transfer(whole, self.teacher, data.val.epoch(0), self.processes)
            if not recipe.log.measures:
                return evaluate(judged, data.val.epoch(0), self.processes, autocast=autocast)
            return self._measured(judged, data, autocast) | _distances(phase.objective)

        history = Loop(
            step, self.teacher, data.train, judge,
            make_optimizer([self.student, phase.objective], **recipe.optimizer.model_dump()),
            _settings(recipe, phase, begin), Checkpoints(self.folder.checkpoints, recipe.checkpoint.keep),
            self.processes, reporter, interrupt, average, data.skipped,
        ).run()  # fmt: skip
        if pretraining:
            pretraining.open(False)
        return history

    def _measured(self, judged: Any, data: Data, autocast: torch.dtype | None) -> dict[str, float]:
        """The accuracies with the measures of the features, as ``val_norm``, ``val_m_bc`` and so on."""
        teacher, dim = self.teacher, self.student.spec.embedding_dim
        measures = FeatureMeasures(
            len(data.classes), dim, teacher.spec.embedding_dim if teacher else None, self.processes.device
        )

        def observe(features: Features, batch: Batch) -> None:
            taught = teacher(batch.images).embedding if teacher else None
            measures.add(features.embedding, batch.targets, taught)  # type: ignore[arg-type]

        steps = data.val.epoch(0) if data.val else ()
        found = evaluate(judged, steps, self.processes, autocast=autocast, observe=observe)
        measures.sum_over(self.processes.sum)
        return found | {f"val_{name}": value for name, value in measures.values().items()}

    def _finish(self, judged: Any, data: Data, history: list[dict[str, Any]]) -> Rows:
        rows: Rows = {}
        if self.teacher is not None:
            self.teacher.verify()
            names = class_names(self.recipe.teacher.weights if self.recipe.teacher else None)
            rows["teacher"] = _teacher_row(self.teacher, data, self.processes, names in (None, data.classes))
        skipped = all_skipped(self.processes.gathered(data.skipped))
        rows["student"] = {name: value for name, value in history[-1].items() if name.startswith(("top", "val_"))}

        def ship() -> None:
            shown = judged.first if isinstance(judged, Peers) else judged
            ship_student(self.folder.path, shown, student_card(self.recipe, self.student, data))
            cost = measure_cost(shown, (3, data.size, data.size), weights=self.folder.path / WEIGHTS_FILE)
            rows["student"] |= asdict(cost)
            self.folder.write_result(_result(rows, self.recipe, data, self.identity, history, skipped))

        self.processes.on_main(ship)
        return rows


def _result(
    rows: Rows, recipe: Recipe, data: Data, identity: dict[str, Any], history: list[dict[str, Any]],
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


def _distances(objective: Objective) -> dict[str, float]:
    """The mean distance of two projectors of each ensemble, plain and squared, as ``val_pefd_distance`` and so on."""
    found = {}
    for name, method in objective.methods.items():
        ensemble = getattr(method, "projector", None)
        if isinstance(ensemble, ProjectorEnsemble) and ensemble.projectors > 1:
            projectors = [ensemble.projector(k) for k in range(ensemble.projectors)]
            found[f"val_{name}_distance"] = mean_projector_distance(projectors).item()
            found[f"val_{name}_distance_squared"] = mean_projector_distance(projectors, squared=True).item()
    return found


def _memory(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def _autocast(recipe: Recipe) -> torch.dtype | None:
    return DTYPES[recipe.precision] if recipe.precision != "fp32" else None


def _settings(recipe: Recipe, phase: Phase, begin: int) -> Settings:
    return Settings(
        epochs=begin + phase.epochs, begin=begin, phase=phase.name, takes_objective=phase.goes_on,
        seed=recipe.seed, lr=recipe.optimizer.lr,
        schedule=Schedule(**recipe.schedule.model_dump()), clip=recipe.clip, fp16=recipe.precision == "fp16",
        log_every=recipe.log.every, shares_every=recipe.log.shares, evaluate_every=recipe.log.evaluate,
        checkpoint_epochs=recipe.checkpoint.every_epochs, checkpoint_steps=recipe.checkpoint.every_steps,
    )  # fmt: skip


def _teacher_row(teacher: Teacher, data: Data, processes: Processes, same_classes: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if same_classes and data.val is not None and data.labelled and teacher.spec.classes == len(data.classes):
        row = evaluate(teacher, data.val.epoch(0), processes)
    if processes.main:
        row |= asdict(measure_cost(teacher.network, (3, *(teacher.input_size or (data.size, data.size)))))
    return row
