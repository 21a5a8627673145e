"""Timing a run's alternatives: each as a loop of its own beside the run's, a few steps of each in turn."""

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.config import Recipe
from potstill.data.masks import UNCOUNTED
from potstill.data.source import Split, subset
from potstill.data.workers import decoding_workers
from potstill.errors import PotstillError
from potstill.networks.teacher import Teaches
from potstill.procedures.advice import STEP_PARTS, Exchange, StepTimes, Trial
from potstill.procedures.candidates import (
    COMPUTED,
    TEACHER,
    Candidate,
    as_a_graph,
    of_the_data,
    of_the_loop,
    of_the_networks,
    taught_live,
    with_value,
)
from potstill.procedures.comparing import FEWEST, Make, Take, interleaved, other_threads, threaded
from potstill.procedures.data import prepare_data
from potstill.procedures.prepared import Prepared
from potstill.procedures.rehearsal import Continued, Rehearsal, Replayed, Round
from potstill.procedures.single import SingleRun
from potstill.procedures.store_trial import FewRows, few_rows, store_trial
from potstill.training.folder import RunFolder
from potstill.training.settings import Loader

__all__ = ["Bench"]

Changed = tuple[tuple[str, ...], ...]  # the parts of a step that a setting changes; those timed together in one tuple
Rounds = dict[str, tuple[list[Round], list[Round]]]  # of the run as it is and of an alternative, by its setting

_SMALL = 0.03  # a part that takes less of a step is not worth trying anything for
_WARM_UP = 2  # steps
_RECORDED = 4  # steps after which they are one graph
_ROUND = 100.0  # milliseconds of steps in a round, more or less
_SELDOM = 50  # steps; a round sees all that the loop does more often than once in so many
_ENDLESS = 1 << 30  # steps, or epochs
_RATE = 1e-12
_NOW = "the recipe as it is"
_DECODED = 512  # images that the resident loader is timed on; a batch at least


class Bench:
    """Where alternatives to a run are timed: on its own batches, with students that are drawn anew for each.

    Args:
        run: the recipe's, as it is.
        prepared: what it trains on.
        split: of its data.
        batches: of a few of its steps.
        step: where their time goes.
        scratch: an empty folder.
        seconds: for each comparison, more or less.
        compiled: also try what takes minutes to compile.

    Attributes:
        notes: what was not tried, and why.
    """

    def __init__(
        self, run: SingleRun, prepared: Prepared, split: Split, batches: Sequence[list[Batch]], step: StepTimes,
        scratch: Path, seconds: float, compiled: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.processes, self.prepared, self.split = run, run.processes, prepared, split
        # Nothing is learned here: steps of any size take the same time, and these lead nowhere.
        self.recipe = with_value(run.recipe, "optimizer.lr", _RATE)
        self.batches, self.step = batches, step
        self.scratch, self.seconds, self.compiled = scratch, seconds, compiled
        self.notes: list[str] = []
        self._numbers = itertools.count()
        self._few = max(1, min(20, round(_ROUND / step.ms)))

    def trials(self) -> list[Trial]:
        """All that is worth trying."""
        found = self._of_the_networks()
        if self.step.share_of("host") > _SMALL:
            found += self._of_the_loop()
        if self.step.share_of("data") > _SMALL:
            found += self._of_the_data()
        return found

    def twice(self) -> Exchange | None:
        """An image's time as it is and in a batch of twice as many; None where that cannot be tried."""
        if len(self.batches) < 2 or self.recipe.compile is True:
            return None
        pairs = [
            [_joined(one, other) for one, other in zip(first, second, strict=True)]
            for first, second in zip(self.batches[::2], self.batches[1::2], strict=False)
        ]
        setting = f"batch_size={2 * self.recipe.batch_size}"
        larger = with_value(self.recipe, "batch_size", 2 * self.recipe.batch_size)
        rounds = self._timed(self._replaying(self.recipe), {setting: self._replaying(larger, pairs)}, self._few)
        if setting not in rounds:
            return None
        now, then = (tuple(_of(one, COMPUTED) / one.images for one in found) for found in rounds[setting])
        return Exchange(COMPUTED, now, then)

    def as_a_graph(self) -> Trial | None:
        """Each step as one CUDA graph, which makes its own batches; None where it cannot be one."""
        recipe = as_a_graph(self.recipe, self.processes)
        if recipe is None:
            return None
        trial = Trial("graph=true", ())
        # An epoch ends there as in a run, so nothing may be due at its end.
        recipe = with_value(with_value(recipe, "log.evaluate", _ENDLESS), "checkpoint.every_epochs", _ENDLESS)
        loader = self.prepared.data.train

        def make() -> Take:
            rehearsal = self._rehearsal(recipe, loader, epochs=_ENDLESS)
            rehearsal.take(_RECORDED)
            return rehearsal.take

        rounds = self._timed(self._loading(self.recipe), {trial.setting: make}, self._few)
        return next(iter(_exchanged([trial], {trial.setting: (STEP_PARTS,)}, rounds)), None)

    def _of_the_networks(self) -> list[Trial]:
        """Of the networks' own settings, of a store in the teacher's place, and of threads."""
        recipe = self.recipe
        if recipe.compile is True and not self.compiled:
            self.notes.append(
                "The networks are compiled, so their other settings would have to be compiled anew to be tried, which "
                "takes minutes: --compile does it."
            )
        makes: dict[str, Make] = {}
        trials: list[Trial] = []
        changed: dict[str, Changed] = {}
        for one in of_the_networks(recipe, self.processes, self.compiled):
            if any(self.step.shares[part] > _SMALL for parts in one.exchanges for part in parts):
                makes[one.setting] = self._replaying(one.recipe)
                trials.append(Trial(one.setting, (), one.changes))
                changed[one.setting] = one.exchanges
        if taught_live(recipe) and self.step.shares["teacher"] > _SMALL and (rows := self._few_rows()):
            trial = store_trial(recipe, self.prepared.data, self.step)
            makes[trial.setting] = self._replaying(recipe, teaching=rows)
            trials.append(trial)
            changed[trial.setting] = (TEACHER,)
        quick = recipe.compile is not True or self.compiled
        for count in other_threads() if quick and self.processes.device.type == "cpu" else ():
            setting = f"OMP_NUM_THREADS={count}"
            makes[setting] = threaded(count, self._replaying(recipe))
            trials.append(Trial(setting, ()))
            changed[setting] = (COMPUTED,)
        return _exchanged(trials, changed, self._timed(self._replaying(recipe), makes, self._few))

    def _of_the_loop(self) -> list[Trial]:
        log, recipe = self.recipe.log, self.recipe
        often = [every for every in (log.every, log.shares, recipe.checkpoint.every_steps) if every < _SELDOM]
        steps = max([self._few, *often])
        return self._compared(of_the_loop(recipe), self._replaying, steps)

    def _of_the_data(self) -> list[Trial]:
        candidates = of_the_data(self.recipe, self.split.train, self.processes.device)
        return self._compared(candidates, self._loading, max(self._few, FEWEST))

    def _compared(self, candidates: Sequence[Candidate], make: Callable[[Recipe], Make], steps: int) -> list[Trial]:
        rounds = self._timed(make(self.recipe), {one.setting: make(one.recipe) for one in candidates}, steps)
        trials = [Trial(one.setting, (), one.changes) for one in candidates]
        return _exchanged(trials, {one.setting: one.exchanges for one in candidates}, rounds)

    def _few_rows(self) -> FewRows | None:
        try:
            teacher = self.run.teacher
            if teacher is None:
                return None
            needs, data = self.run.needs, self.prepared.data
            return few_rows(self.recipe, teacher, needs, data, self.batches, self.scratch / "store")
        except PotstillError as error:
            self.notes.append(f"teacher.store was not tried: {error}")
            return None

    def _timed(self, now: Make, makes: Mapping[str, Make], steps: int) -> Rounds:
        """The rounds of each that could be made, and those of the run as it is in the same rounds."""
        found: Rounds = {}
        # PyTorch keeps a few compiled graphs of one code only, and leaves further networks as they are without a word.
        apart = self.compiled or self.recipe.compile is True
        for group in [{name: make} for name, make in makes.items()] if apart else [makes] if makes else []:
            made = {name: self._made(name, make) for name, make in {_NOW: now, **group}.items()}
            takes = {name: take for name, take in made.items() if take}
            rounds = interleaved(takes, steps, self.seconds)
            self.notes += [f"{name} was not timed: its loss is not finite." for name in takes if name not in rounds]
            if _NOW in rounds:
                found |= {name: (rounds[_NOW], rounds[name]) for name in group if name in rounds}
            del made, takes
            gc.collect()  # their memory, and their workers, before the next ones come
            if apart:
                torch.compiler.reset()
        return found

    def _made(self, name: str, make: Make) -> Take | None:
        """A contender after its first steps; None where they cannot be taken."""
        try:
            take = make()
            take(_WARM_UP)
        except torch.OutOfMemoryError:
            self.notes.append(f"{name} was not tried: the device has no memory for it beside the run.")
            return None
        except PotstillError as error:
            if name == _NOW:
                raise
            self.notes.append(f"{name} was not tried: {error}")
            return None
        return take

    def _replaying(
        self, recipe: Recipe, batches: Sequence[list[Batch]] | None = None, teaching: Teaches | None = None
    ) -> Make:
        return lambda: self._rehearsal(recipe, Replayed(batches or self.batches, _ENDLESS), teaching).take

    def _loading(self, recipe: Recipe) -> Make:
        """A contender that makes its own batches; what its workers did ahead while others had their turn is let go."""

        def make() -> Take:
            loader, config = self.prepared.data.train, recipe.data
            if config != self.recipe.data:
                train = self.split.train
                if config.loader == "resident":  # a few images tell of all
                    whole = -(-_DECODED // recipe.batch_size) * recipe.batch_size
                    train = subset(train, range(min(len(train), whole)))
                loader = prepare_data(recipe, Split(train, None, self.split.note), self.processes).train
            rehearsal = self._rehearsal(recipe, Continued(loader, 0, recipe.epochs, _ENDLESS))
            workers = decoding_workers() if config.workers is None else config.workers
            ahead = 2 * workers if config.loader == "streaming" else 0

            def take(steps: int) -> Round:
                if ahead:
                    rehearsal.take(ahead)
                return rehearsal.take(steps)

            return take

        return make

    def _rehearsal(self, recipe: Recipe, loader: Loader, teaching: Teaches | None = None, epochs: int = 1) -> Rehearsal:
        folder = RunFolder(self.scratch / str(next(self._numbers)))
        live = taught_live(recipe)
        same = not live or _of_the_teacher(recipe) == _of_the_teacher(self.recipe)
        run = SingleRun(recipe, self.run.facts, folder, self.processes, self.run.teacher if same else None)
        return Rehearsal(run, self.prepared, loader, teaching or (run.teacher if live else None), epochs)


def _of_the_teacher(recipe: Recipe) -> tuple[object, ...]:
    """What a live teacher is made by."""
    return recipe.teacher, recipe.precision, recipe.compile, recipe.channels_last


def _exchanged(trials: Sequence[Trial], changed: Mapping[str, Changed], rounds: Rounds) -> list[Trial]:
    """The trials that could be timed, with what each changes of a step."""
    found = []
    for trial in trials:
        if trial.setting in rounds:
            before, after = rounds[trial.setting]
            exchanges = (
                Exchange(parts, tuple(_of(one, parts) for one in before), tuple(_of(one, parts) for one in after))
                for parts in changed[trial.setting]
            )
            found.append(replace(trial, exchanges=tuple(exchanges)))
    return found


def _of(found: Round, parts: Sequence[str]) -> float:
    return sum(found.parts[part] for part in parts)


def _joined(one: Batch, other: Batch) -> Batch:
    """Two batches as one; of scenes, both padded to the larger of the two."""
    tall, wide = (max(one.images.shape[side], other.images.shape[side]) for side in (2, 3))

    def together(first: Tensor, second: Tensor, value: int) -> Tensor:
        both = [first, second]
        if first.ndim > 2:  # images, and the masks of segmentation
            both = [F.pad(x, (0, wide - x.shape[-1], 0, tall - x.shape[-2]), value=value) for x in both]
        return torch.cat(both)

    targets = None if one.targets is None or other.targets is None else together(one.targets, other.targets, UNCOUNTED)
    index, view = torch.cat([one.index, other.index]), torch.cat([one.view, other.view])
    objects = None if one.objects is None or other.objects is None else one.objects + other.objects
    return Batch(together(one.images, other.images, 0), targets, index, view, one.weight, objects)
