"""A race: candidates trained rung by rung, fewer at each, on one teacher's stored outputs."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from potstill.analysis.cost import Cost, measure_cost
from potstill.config import Recipe
from potstill.errors import DataError, RecipeError, RunError
from potstill.headline import HEADLINES
from potstill.procedures.data import Data, describe_data, prepare_data
from potstill.procedures.identity import versions
from potstill.procedures.networks import build_teacher
from potstill.procedures.opening import open_split
from potstill.procedures.run import resolve_with
from potstill.procedures.students import students_of
from potstill.race.candidate import Candidate, Dropped
from potstill.race.entries import STORE, Entry
from potstill.race.file import Race
from potstill.race.halving import FAILED, first_rung, halve, plan
from potstill.race.ranking import Standing, ranked
from potstill.race.record import known_costs, write_record
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder
from potstill.training.interrupts import Interrupt
from potstill.training.reporting import Reporter

__all__ = ["RACE_FILE", "Watcher", "run_race"]

log = logging.getLogger(__name__)

RACE_FILE = "race.yaml"

_KEPT = ("logits", "embedding")  # of the teacher, in a store that nobody asked for
_ONE_ROW_AN_IMAGE = ("classification", "faces")  # tasks whose teacher says one thing of an image, as a store keeps it

_TIE = 1e-6  # points of accuracy that the cheapest candidate has before another of the same accuracy


class Watcher(Protocol):
    """Who is told how a race goes."""

    def stands(self, standings: list[Standing], rungs: list[tuple[int, int]]) -> None:
        """A candidate has reached a rung, or failed: all of them, ranked, and the plan: epochs and numbers."""

    def reporter(self, title: str, folder: RunFolder) -> Reporter:
        """Who is told how a candidate's training goes."""


def run_race(race: Race, folder: Path, processes: Processes, interrupt: Interrupt, watcher: Watcher) -> dict[str, Any]:
    """Race the candidates, or go on where a race stopped; what ``race.json`` says in the end.

    Nothing of what a race decides is kept: the same command asks scikit-learn again, and a candidate that has reached a
    rung answers with its accuracy there. So a race that was killed decides as one that was not.

    Args:
        race: from :func:`potstill.race.file.load_race`.
        folder: of the race; each candidate's run is in it, by its name.
        processes: this process and the others.
        interrupt: raised when the race is told to stop.
        watcher: who is told how it goes.

    Raises:
        Stopped: told to stop; the same command goes on.
        PotstillError: for whatever a user can mend.
    """
    return _Course(race, folder, processes, interrupt, watcher).run()


class _Course:
    def __init__(self, race: Race, folder: Path, processes: Processes, interrupt: Interrupt, watcher: Watcher) -> None:
        self.race, self.folder, self.processes = race, folder, processes
        self.interrupt, self.watcher = interrupt, watcher
        self.recipe, self.settings = _shared(race, folder), race.settings
        self.failed: dict[str, str] = {}
        self.reached: dict[str, dict[int, float]] = {}
        self.finished = False

    def run(self) -> dict[str, Any]:
        settings, epochs = self.settings, self.recipe.epochs
        first = settings.min_epochs or first_rung(len(self.race.entries), epochs, settings.factor)
        self.plan = plan(len(self.race.entries), epochs=epochs, first=first, factor=settings.factor)
        self._prepare()
        with contextlib.ExitStack() as stack:
            self.processes.on_main(lambda: self._begin(stack))
            self._weigh()
            self._say_plan()
            halve(list(self.candidates), self._train, epochs=epochs, first=first, factor=settings.factor)
            self.finished = True
            record = self._tell()
        if not any(one["finished"] for one in record["candidates"]):
            raise RunError("No candidate came to the end: " + " ".join(f"{n}: {why}" for n, why in self.failed.items()))
        return record

    def _prepare(self) -> None:
        """Everything that can be wrong with a candidate is found here, before the folder is touched."""
        split = open_split(self.recipe)
        asked, recipe = self.recipe, resolve_with(self.recipe, split, self.processes)
        facts = describe_data(recipe, split)
        if not facts.labelled or not facts.found[1]:
            lacking = "validation images" if facts.labelled else "labels"
            raise DataError(f"A race compares accuracies on validation images, and the data have no {lacking}.")
        teacher = build_teacher(recipe, facts, self.processes)
        if teacher is None:
            raise RecipeError("A race is run with a teacher: give teacher.weights=RUN (a trained run's folder).")
        # What is "auto" of the machine's is said for each candidate: one may be recorded as a graph, another not.
        common = recipe.model_copy(
            update={
                "compile": asked.compile, "graph": asked.graph,
                "students": tuple(entry.differs for entry in self.race.entries),
            }
        )  # fmt: skip
        parts = students_of(common, self.folder, [entry.place for entry in self.race.entries])
        rungs = [epoch for epoch, _ in self.plan]
        self.candidates = {
            name: Candidate(name, resolve_with(part, split, self.processes), facts, self.processes, teacher, rungs)
            for name, part in parts.items()
        }
        for note in facts.notes if self.processes.main else ():
            log.info(note)
        self.input_size, self.images = facts.input_size, facts.found[1]
        self.data: Callable[[], Data] = functools.cache(lambda: prepare_data(recipe, split, self.processes))

    def _begin(self, stack: contextlib.ExitStack) -> None:
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if RACE_FILE not in names and (foreign := sorted(names - {".lock", f"{RACE_FILE}.part"})):
            raise RunError(f"{self.folder} holds files that are no race ({', '.join(foreign[:3])}); give another run=.")
        own = RunFolder(self.folder)
        own.check_place()
        stack.enter_context(own.owned())
        text = yaml.safe_dump(
            self.race.raw | {"run": str(self.folder)}, sort_keys=False, default_flow_style=None, width=110
        )
        own.write_text(RACE_FILE, f"# potstill race {self.folder} goes on with this\n{text}")

    def _weigh(self) -> None:
        """The cost of each network, measured one after the other, and once for candidates of one network."""
        device = self.processes.device
        self.machine = versions() | {"device": str(device), "threads": torch.get_num_threads()}
        networks = {name: _network_key(one.recipe) for name, one in self.candidates.items()}

        def weigh() -> dict[str, Cost]:
            known = known_costs(self.folder, self.machine)
            if set(networks.values()) <= known.keys():
                return known
            first = {key: name for name, key in reversed(networks.items())}
            return {
                key: measure_cost(self.candidates[name].network().to(device), self.input_size)
                for key, name in first.items()
            }

        self.costs: dict[str, Cost] = self.processes.gathered(self.processes.on_main(weigh))[0]
        self.cost_of = {name: self.costs[key] for name, key in networks.items()}
        order = sorted(self.candidates, key=lambda name: self.cost_of[name].macs)
        self.ahead = {name: _TIE * (len(order) - place) / len(order) for place, name in enumerate(order)}

    def _say_plan(self) -> None:
        self._tell()
        if not self.processes.main:
            return
        first = sum(one.before for one in self.candidates.values())  # epochs that come before the recipe's
        stages = ", ".join(f"{count} to epoch {epoch}" for epoch, count in self.plan)
        spent, full = first + _spent(self.plan), first + len(self.candidates) * self.recipe.epochs
        log.info(
            "%d candidates: %s. That is %d of the %d epochs of training them all.", len(self.candidates), stages,
            spent, full,
        )  # fmt: skip

    def _train(self, name: str, epoch: int) -> float:
        if name in self.failed:
            return FAILED
        try:
            accuracy = self.candidates[name].train(epoch, self.data, self.interrupt, self.watcher.reporter)
        except Dropped as error:
            self.failed[name] = str(error)
            log.warning("%s is out: %s", name, error)
            self._tell()
            return FAILED
        self.reached.setdefault(name, {})[epoch] = accuracy
        self._tell()
        return accuracy + self.ahead[name]

    def _tell(self) -> dict[str, Any]:
        """Write ``race.json``, and tell the watcher."""
        standings = ranked([self._standing(entry) for entry in self.race.entries])
        self.watcher.stands(standings, self.plan)
        total = {name: self.recipe.epochs + one.before for name, one in self.candidates.items()}
        spent = {one.name: one.epoch + self.candidates[one.name].before for one in standings if one.epoch}
        for name in self.failed:
            spent[name] = max(self.candidates[name].accuracies(), default=0) + self.candidates[name].before
        teacher = self._teacher() if self.finished else None
        record = self.processes.on_main(
            lambda: write_record(
                self.folder, standings, self.plan, {"spent": sum(spent.values()), "full": sum(total.values())},
                headline=HEADLINES[self.recipe.task], images=self.images, finished=self.finished,
                machine=self.machine, costs=self.costs, teacher=teacher,
            )
        )  # fmt: skip
        return dict(self.processes.gathered(record)[0])

    def _standing(self, entry: Entry) -> Standing:
        candidate, reached = self.candidates[entry.name], self.reached.get(entry.name, {})
        student = candidate.recipe.student
        return Standing(
            entry.name, str(candidate.folder.path), student.model or str(student.weights), entry.methods,
            self.cost_of[entry.name], dict(reached), self.recipe.epochs in reached, self.failed.get(entry.name),
        )  # fmt: skip

    def _teacher(self) -> dict[str, Any] | None:
        for candidate in self.candidates.values():
            result = candidate.folder.result()
            if result and "teacher" in result["rows"]:
                return dict(result["rows"]["teacher"])
        return None


def _shared(race: Race, folder: Path) -> Recipe:
    """The recipe around the candidates, with a store of the teacher's outputs in the race's folder where one can be."""
    recipe, wanted = race.recipe, race.settings.store
    teacher = recipe.teacher
    if teacher is None or teacher.store is not None or wanted is False:
        if wanted and teacher is not None:
            raise RecipeError(f"race.store=true, and teacher.store={teacher.store} names a store already; say one.")
        return recipe
    mixes = bool(recipe.data.mixup or recipe.data.cutmix)
    one_row = recipe.task in _ONE_ROW_AN_IMAGE
    if wanted is None and (mixes or not one_row or not any(entry.reads.intersection(_KEPT) for entry in race.entries)):
        return recipe
    # What the store does not keep, such as maps, the live teacher is asked for by the candidates that read it.
    store = recipe.store.model_copy(update={"fill": True, "live": True, "keep": _KEPT})
    taught = teacher.model_copy(update={"store": str(folder / STORE)})
    return recipe.model_copy(update={"teacher": taught, "store": store})


def _network_key(recipe: Recipe) -> str:
    student = recipe.student
    return json.dumps([student.model, student.args, None if student.model else student.weights], sort_keys=True)


def _spent(rungs: list[tuple[int, int]]) -> int:
    """Epochs of a plan: what trains to a rung has trained to the one before already."""
    before, spent = 0, 0
    for epoch, count in rungs:
        spent += count * (epoch - before)
        before = epoch
    return spent
