"""One network trained into one folder: its networks, its phases, and what it leaves."""

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

import torch

from potstill.analysis.cost import measure_cost
from potstill.config import Recipe
from potstill.headline import is_accuracy
from potstill.methods.base import Known, Needs
from potstill.methods.pretraining import opened
from potstill.networks.card import WEIGHTS_FILE
from potstill.networks.peers import Peers
from potstill.networks.ship import ship_student
from potstill.networks.teacher import Teacher
from potstill.procedures.class_means import keep_class_means
from potstill.procedures.data import Data, DataFacts, all_skipped
from potstill.procedures.ending import look_again
from potstill.procedures.identity import must_be_the_same, recipe_with_head
from potstill.procedures.networks import (
    build_objective,
    build_setting,
    build_student,
    build_teacher,
    student_card,
)
from potstill.procedures.outcome import now, outcome, peak_memory
from potstill.procedures.phases import Phase, plan_phases
from potstill.procedures.prepared import Prepared
from potstill.procedures.stored import find_store
from potstill.procedures.tasks import judge_of, must_fit, step_of
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
        teacher: the recipe's, where it is built already because other students learn from it too.

    Raises:
        PotstillError: for whatever does not fit together, and for a folder of another run.
    """

    def __init__(
        self, recipe: Recipe, facts: DataFacts, folder: RunFolder, processes: Processes, teacher: Teacher | None = None
    ) -> None:
        self.recipe, self.facts, self.folder, self.processes = recipe, facts, folder, processes
        self.teacher = (teacher or build_teacher(recipe, facts, processes)) if recipe.teacher else None
        self.student = build_student(recipe, facts, self.teacher)
        must_fit(recipe, self.student)
        torch.manual_seed(recipe.seed)  # the projectors' draws do not depend on how many the student took
        setting = build_setting(recipe, self.student, self.teacher, facts, processes)
        self.phases = plan_phases(recipe, self.student, setting, lambda part: build_objective(part, setting, facts))
        if self.teacher and recipe.teacher and recipe.teacher.store and not recipe.store.fill:
            find_store(recipe, self.needs)
        self.trainable = {name for name, p in self.student.network.named_parameters() if p.requires_grad}
        self.identity = {"data": facts.identity, "teacher": self.teacher.identity if self.teacher else None}
        self.begun: str | None = None
        processes.on_main(lambda: must_be_the_same(recipe, folder, self.identity))

    @property
    def needs(self) -> Needs:
        """What the methods of all its phases read."""
        return functools.reduce(operator.or_, (phase.objective.needs for phase in self.phases))

    def train(
        self,
        prepare: Callable[[], Prepared],
        interrupt: Interrupt,
        reporter: Callable[[str, RunFolder], Reporter],
        title: str,
    ) -> Generator[int, None, Rows]:
        """Train, or go on training, or find it done; yields at each step, returns the rows of student and teacher.

        Args:
            prepare: decodes the data and opens the teacher's store, or gives them where that is done.
            interrupt: raised when the run is told to stop.
            reporter: makes the one that is told how a phase goes, from its title and folder.
            title: the network that trains, as people call it.

        Raises:
            PotstillError: for whatever a user can mend; nothing half-written stays behind.
        """
        if any(self.processes.gathered(self.folder.result() is not None)):
            log.info("%s is finished; its result is shown again. Give another run= to train anew.", self.folder.path)
            return (self.folder.result() or {"rows": {"student": {}}})["rows"]
        prepared = prepare()
        data = prepared.data
        self.identity["data in use"] = data.in_use
        with contextlib.ExitStack() as stack:
            self.processes.on_main(lambda: self._begin(stack))
            self.student.to(self.processes.device).to(memory_format=_memory(self.recipe))
            average = WeightAverage(self.student, self.recipe.ema) if self.recipe.ema else None
            known = self._known(prepared)
            begin = 0
            for phase in self.phases:
                phase.objective.to(self.processes.device).prepare(known)
                name = title if len(self.phases) == 1 else f"{title}, {phase.name}"
                with opened(phase.objective):
                    loop = self.loop(phase, begin, prepared, average, interrupt, reporter(name, self.folder))
                    yield from loop.stepwise()
                begin += phase.epochs
            return self._finish(average.network if average else self.student, data, loop)

    def _begin(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self.folder.owned())
        # Once more: another process may have worked here between the first look and the lock.
        must_be_the_same(self.recipe, self.folder, self.identity)
        if self.folder.begun:
            self.begun = self.folder.identity().get("begun")
        else:
            self.begun = now()
            self.folder.write_identity({**self.identity, "begun": self.begun})
            self.folder.write_text("recipe.yaml", recipe_with_head(self.recipe))

    def _known(self, prepared: Prepared) -> Known:
        if self.teacher is None or not self.needs.class_means:
            return Known(prepared.data.labels)
        made_of = {"teacher": self.teacher.identity, "data": prepared.data.in_use}
        means = keep_class_means(prepared.class_means, made_of, self.recipe, self.folder, self.processes)
        return Known(prepared.data.labels, means)

    def loop(
        self,
        phase: Phase,
        begin: int,
        prepared: Prepared,
        average: WeightAverage | None,
        interrupt: Interrupt,
        reporter: Reporter,
    ) -> Loop:
        """One phase, from the state that the one before it left."""
        for name, parameter in self.student.network.named_parameters():
            parameter.requires_grad_(name in self.trainable and (phase.trains is None or name in phase.trains))
        recipe, data = self.recipe, prepared.data
        if recipe.compile and begin:
            torch.compiler.reset()  # phases train other parameters: few graphs are kept for one network
        step = step_of(recipe, self.student, phase, self.teacher)
        judged = average.network if average else self.student
        judge = judge_of(recipe, judged, self.student, self.teacher, data, self.processes)
        parameters = [self.student, phase.objective]
        optimizer = make_optimizer(parameters, **recipe.optimizer.model_dump(), recorded=recipe.graph is True)
        return Loop(
            step, prepared.teaching, prepared.loader, lambda: judge.values(phase.objective) if phase.judged else {},
            optimizer, _settings(recipe, phase, begin), Checkpoints(self.folder.checkpoints, recipe.checkpoint.keep),
            self.processes, reporter, interrupt, average, data.skipped,
        )  # fmt: skip

    def _finish(self, judged: Any, data: Data, loop: Loop) -> Rows:
        recipe, processes = self.recipe, self.processes
        loop.clock.start()
        ending = look_again(recipe, judged, self.teacher, data, processes)
        loop.clock.lap("evaluation")
        rows: Rows = {}
        if self.teacher is not None:
            self.teacher.verify()
            rows["teacher"] = ending.teacher
        skipped = all_skipped(processes.gathered(data.skipped))
        memory = peak_memory(processes)
        rows["student"] = {name: value for name, value in loop.history[-1].items() if _judged(name)}

        def ship() -> None:
            shown = judged.first if isinstance(judged, Peers) else judged
            ship_student(self.folder.path, shown, student_card(recipe, self.student, data))
            cost = measure_cost(shown, data.input_size, weights=self.folder.path / WEIGHTS_FILE)
            rows["student"] |= asdict(cost)
            ending.write(self.folder.path)
            ended = outcome(
                rows, recipe, data, loop, skipped, teacher=self.identity["teacher"], begun=self.begun, memory=memory
            )
            self.folder.write_result({**ended, **ending.result})

        processes.on_main(ship)
        return rows


def _judged(name: str) -> bool:
    return is_accuracy(name) or name.startswith("val_")


def _memory(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def _settings(recipe: Recipe, phase: Phase, begin: int) -> Settings:
    return Settings(
        epochs=begin + phase.epochs, begin=begin, phase=phase.name, takes_objective=phase.goes_on,
        seed=recipe.seed, lr=recipe.optimizer.lr,
        schedule=Schedule(**recipe.schedule.model_dump()), clip=recipe.clip, fp16=recipe.precision == "fp16",
        log_every=recipe.log.every, shares_every=recipe.log.shares, evaluate_every=recipe.log.evaluate,
        checkpoint_epochs=recipe.checkpoint.every_epochs, checkpoint_steps=recipe.checkpoint.every_steps,
        graph=recipe.graph is True,
    )  # fmt: skip
