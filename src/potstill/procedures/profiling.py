"""Where the time of a recipe's run goes, and which of its settings would save some of it."""

import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from potstill.batch import Batch
from potstill.config import NetworkConfig, Recipe
from potstill.errors import RunError
from potstill.procedures.advice import STEP_PARTS, Advice, Exchange, StepTimes, advise, conclude, too_small
from potstill.procedures.assistants import chain
from potstill.procedures.candidates import taught_live, with_value
from potstill.procedures.comparing import FEWEST
from potstill.procedures.data import AnyLoader, describe_data, prepare_data
from potstill.procedures.opening import open_split
from potstill.procedures.prepared import prepare_teaching
from potstill.procedures.rehearsal import Continued, Rehearsal, Round
from potstill.procedures.run import resolve_with
from potstill.procedures.single import SingleRun
from potstill.procedures.store_key import views_of
from potstill.procedures.students import students_of
from potstill.procedures.trials import Bench
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder

__all__ = ["Profile", "profile"]

log = logging.getLogger(__name__)

_WARM_UP = 3  # steps: kernels are chosen and memory is laid out in the first ones
_ROUNDS = 20  # that the steps are divided into
_JUDGED = 2  # steps of an evaluation that are timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the time of a recipe's run goes.

    Attributes:
        student: the network that learns.
        teacher: the one it learns from; None for a run without.
        phase: of the run, whose steps were timed.
        device: where it computes.
        threads: that PyTorch computes with on the host.
        batch_size: images of a step.
        steps: how many were timed.
        step: where a step's time goes.
        wall_ms: a step's milliseconds by a watch that knows of no parts.
        graph_ms: a step's milliseconds as one CUDA graph, where the recipe has it so; None elsewhere.
        epochs: of the whole run.
        epoch_steps: steps of an epoch.
        evaluation_seconds: of one evaluation; 0 where nothing is evaluated.
        once_seconds: of the teacher's one pass over the validation images, and of the student's last one.
        hours: of the whole run, with its evaluations.
        tried: what each setting that was tried would bring, the best first.
        twice: an image's time in batches of twice the size, timed beside what it is; None where that was not tried.
        sentences: what follows from all this.
        notes: what was timed, and what was not tried and why.
    """

    student: str
    teacher: str | None
    phase: str
    device: str
    threads: int
    batch_size: int
    steps: int
    step: StepTimes
    wall_ms: float
    graph_ms: float | None
    epochs: int
    epoch_steps: int
    evaluation_seconds: float
    once_seconds: float
    hours: float
    tried: tuple[Advice, ...]
    twice: Exchange | None
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def images_per_second(self) -> float:
        """While it trains."""
        return 1000 * self.step.images / (self.graph_ms or self.step.ms)


def profile(
    recipe: Recipe, processes: Processes, steps: int = 200, seconds: float = 60.0, compiled: bool = False
) -> Profile:
    """Time the steps of a recipe's run, and what other settings would make of them.

    Everything is built as for the run, in a temporary folder: the recipe's own is neither read nor written. The steps
    are those of the run's last phase, by its own loop. Each alternative is then timed as a loop of its own beside that
    of the recipe as it is, on the same batches, a few steps of each in turn.

    Args:
        recipe: with or without a teacher.
        processes: this one.
        steps: to time, at most; at least five are.
        seconds: to time them for, at most. Each comparison of alternatives, of which there are up to five, begins no
            further round after a quarter of that.
        compiled: also try what takes minutes to compile.

    Raises:
        PotstillError: as a run of the recipe; for less than five steps; for several processes.
    """
    if processes.world > 1:
        raise RunError("A profile is of one process; start it without torchrun.")
    if steps < FEWEST:
        raise RunError(f"{steps} steps are too few to tell a time from its noise; give {FEWEST} or more.")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise RunError(f"{seconds} seconds are no time to measure in; give 0 (the fewest rounds) or more, such as 60.")
    split = open_split(recipe)
    part, notes = _one_network(resolve_with(recipe, split, processes))
    graphed, part = part.graph is True, with_value(part, "graph", False)
    if graphed:
        notes.append(
            "The run takes its steps as CUDA graphs (graph=true), in which no parts can be told apart: the parts, and "
            "what is predicted of them, are of the same steps without it."
        )
    facts = describe_data(part, split)
    with tempfile.TemporaryDirectory(prefix="potstill-profile-") as folder:
        scratch = Path(folder)
        run = SingleRun(part, facts, RunFolder(scratch / "run"), processes)
        log.info("Timing up to %d steps, then other settings beside them; this takes a minute or a few.", steps)
        data = prepare_data(with_value(part, "data.views", views_of(part)), split, processes)
        prepared = prepare_teaching(part, run.teacher, run.needs, data, processes)
        phase, begin = run.phases[-1], sum(one.epochs for one in run.phases[:-1])
        if begin:
            notes.append(
                f"Timed is the last of {len(run.phases)} phases, {phase.name}; the hours count every epoch like its."
            )
        loader = Continued(prepared.loader, begin, phase.epochs, least=_WARM_UP + 2 * steps)
        judged = _FewSteps(prepared.data.val) if prepared.data.val is not None and phase.judged else None
        rehearsal = Rehearsal(run, replace(prepared, data=replace(data, val=judged)), loader)  # type: ignore[arg-type]
        rounds, taken = _timed(rehearsal, steps, seconds)
        stored = run.teacher is not None and not taught_live(part)
        middle = _middle(rounds)
        step = _step_times(rounds, middle, stored, processes.device)
        evaluation = _evaluation(rehearsal, judged) if judged else 0.0
        once = evaluation + _taught(run, judged) if judged and facts.labelled else 0.0
        bench = Bench(run, prepared, split, list(loader.recent), step, scratch, seconds / 4, compiled)
        epochs = sum(one.epochs for one in run.phases)
        trials = bench.trials()
        graph = bench.as_a_graph()
        graph_ms = advise(step, [graph], 1, 1)[0].step_ms if graph is not None and graphed else None
        if graph is not None and not graphed:
            trials.append(graph)
        advice = advise(step, trials, epochs, prepared.loader.steps)
        twice = bench.twice()
        evaluations = math.ceil(sum(one.epochs for one in run.phases if one.judged) / part.log.evaluate)
        return Profile(
            student=_called(part.student),
            teacher=_called(part.teacher) if part.teacher else None,
            phase=phase.name,
            device=_device(processes.device),
            threads=torch.get_num_threads(),
            batch_size=part.batch_size,
            steps=taken,
            step=step,
            wall_ms=statistics.fmean(one.wall for one in middle),
            epochs=epochs,
            epoch_steps=prepared.loader.steps,
            evaluation_seconds=evaluation,
            once_seconds=once,
            graph_ms=graph_ms,
            hours=(epochs * prepared.loader.steps * (graph_ms or step.ms) / 1000 + evaluations * evaluation + once)
            / 3600,
            tried=tuple(advice),
            twice=twice,
            sentences=(*conclude(step, advice), *too_small(part.batch_size, twice)),
            notes=(*notes, *bench.notes),
        )


def _one_network(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe of one student's run, with what there is to say of the choice."""
    notes = []
    if recipe.control:
        notes.append("control=true trains the same student once more, without the teacher; the hours leave that out.")
    nowhere = Path("runs")
    if recipe.students:
        parts = students_of(recipe, nowhere)
        title, recipe = next(iter(parts.items()))
        notes.append(
            f"Timed is the first of {len(parts)} students, {title}, by itself; side by side they share the batches and "
            "the teacher's pass."
        )
    if recipe.procedure.name == "assistants":
        title, recipe = next(chain(recipe, nowhere))
        notes.append(f"Timed is {title}, the first of the chain, as the teachers of the others are not there yet.")
    if recipe.teacher is not None and recipe.teacher.store is not None and recipe.store.fill:
        recipe = with_value(with_value(recipe, "teacher.store", None), "store.fill", False)
        notes.append(
            "Timed is the live teacher, as in the epochs that fill the store (store.fill=true); nothing is written to "
            "the store."
        )
    return recipe, notes


def _timed(rehearsal: Rehearsal, steps: int, seconds: float) -> tuple[list[Round], int]:
    """The rounds of a run's steps, and how many steps they have."""
    rehearsal.take(_WARM_UP)
    expected = min(steps, 1000 * seconds / max(rehearsal.take(1).wall, 1e-3))
    each, taken, began = max(1, round(expected / _ROUNDS)), 0, time.perf_counter()
    rounds: list[Round] = []
    while taken < steps and (len(rounds) < FEWEST or time.perf_counter() - began < seconds):
        each = min(each, steps - taken)
        rounds.append(rehearsal.take(each))
        taken += each
    return rounds, taken


def _middle(rounds: list[Round]) -> list[Round]:
    """The middle half of the rounds by a step's time: what disturbs a few of them is left out."""
    ordered = sorted(rounds, key=lambda one: one.ms)
    return ordered[len(rounds) // 4 : len(rounds) - len(rounds) // 4]


def _step_times(rounds: list[Round], kept: list[Round], stored: bool, device: torch.device) -> StepTimes:
    """The mean of the rounds that are kept, with the quartiles of all."""
    low, _, high = statistics.quantiles([one.ms for one in rounds], n=4, method="inclusive")
    return StepTimes(
        parts={part: statistics.fmean(one.parts[part] for one in kept) for part in STEP_PARTS if part != "graph"},
        low=low,
        high=high,
        images=statistics.fmean(one.images for one in kept),
        host_busy=statistics.fmean(one.launching / one.wall for one in kept) if device.type == "cuda" else None,
        stored=stored,
    )


class _FewSteps:
    """The first steps of an evaluation's loader, which stand for all."""

    def __init__(self, loader: AnyLoader) -> None:
        self.loader, self.labels = loader, loader.labels
        self.steps = min(_JUDGED, loader.steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Some of its steps."""
        return itertools.islice(self.loader.epoch(epoch, start), self.steps)

    @property
    def parts(self) -> float:
        """How many such looks are a whole one."""
        return self.loader.steps / self.steps


def _evaluation(rehearsal: Rehearsal, few: _FewSteps) -> float:
    """Seconds of a whole evaluation, after the first: the teacher has seen the images."""
    rehearsal.loop.evaluate()  # starts the workers, chooses the kernels, and the teacher sees these images
    began = time.perf_counter()
    rehearsal.loop.evaluate()
    return (time.perf_counter() - began) * few.parts


def _taught(run: SingleRun, few: _FewSteps) -> float:
    """Seconds in which the teacher sees all validation images, as batches that are there; 0 without a teacher."""
    if run.teacher is None:
        return 0.0
    batches = [batch for step in few.epoch(0) for batch in step]
    began = time.perf_counter()
    for batch in batches:
        run.teacher(batch.images).embedding.sum().item()
    return (time.perf_counter() - began) * few.parts


def _called(network: NetworkConfig) -> str:
    return network.model or Path(str(network.weights)).name


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
