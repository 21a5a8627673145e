"""Where a run's time goes: the arithmetic of the advice, which settings are tried, and real steps with a known flaw."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from potstill.cli import app
from potstill.config import Recipe
from potstill.data.decoder import Decoder
from potstill.data.source import ArraySource
from potstill.errors import PotstillError, RunError
from potstill.networks.teacher import Teacher
from potstill.procedures import candidates, profiling, trials
from potstill.procedures.advice import Advice, Exchange, StepTimes, Trial, advise, conclude, too_small
from potstill.procedures.candidates import of_the_data, of_the_loop, of_the_networks, with_value
from potstill.procedures.comparing import interleaved
from potstill.procedures.judging import Judge
from potstill.procedures.profiling import Profile, profile
from potstill.procedures.rehearsal import Continued, Rehearsal, Round
from potstill.recipe import load_recipe
from potstill.training.distributed import Processes
from potstill.training.settings import NonFiniteLoss

CPU = Processes(torch.device("cpu"))
PARTS = {"data": 2.0, "teacher": 80.0, "forward": 20.0, "backward": 35.0, "optimizer": 2.0, "host": 1.0}
TEACHER, STUDENT, DATA, HOST = ("teacher",), ("forward", "backward"), ("data",), ("host",)


def step(**parts: float) -> StepTimes:
    """140 ms, 80 of which are the teacher's, unless told otherwise."""
    parts = PARTS | parts
    whole = sum(parts.values())
    return StepTimes(parts, low=0.98 * whole, high=1.02 * whole, images=64)


def trial(setting: str, parts: tuple[str, ...], ratio: float, spread: float = 0.01, **more: Any) -> Trial:
    """A setting that was timed to take this part of the time that it takes now, give or take."""
    now = (10.0, 11.0, 9.0, 10.0, 10.5)
    wobble = (0, spread, -spread, 2 * spread, -2 * spread)
    then = tuple(time * (ratio + off) for time, off in zip(now, wobble, strict=True))
    return Trial(setting, (Exchange(parts, now, then),), **more)


def advice(found: StepTimes, *trials: Trial, epochs: int = 240, steps: int = 782) -> list[Advice]:
    return advise(found, trials, epochs, steps)


def store(ratio: float = 0.015, seconds: float = 2040.0) -> Trial:
    return trial("teacher.store=PATH", TEACHER, ratio, 0.001, once="build once: 8 views", once_seconds=seconds)


def test_a_store_that_pays_is_advised_with_what_it_costs():
    (found,) = advice(step(), store())
    # 140 ms less 0.985 of the teacher's 80; 2040 s are earned at 78.8 ms in each of 782 steps an epoch
    assert found.step_ms == pytest.approx(61.2)
    assert found.pays_from == -(-2040 // (0.0788 * 782)) == 34
    assert found.advised
    assert conclude(step(), [found]) == [
        "The teacher's pass takes 57 % of a step.",
        "teacher.store=PATH (build once: 8 views, 34 min) would bring a step from 140 ms to 61.2 ms: 2.3 times as "
        "fast; pays from 34 epochs on.",
    ]


def test_a_store_does_not_pay_in_a_short_run():
    (found,) = advice(step(), store(), epochs=33)
    assert not found.advised
    first, second = conclude(step(), [found])
    assert first == "The teacher's pass takes 57 %; no setting tried helps by more than 3 %."
    assert second.endswith("pays from 34 epochs on, and this run has 33.")
    (found,) = advice(step(), store(), epochs=34)
    assert found.advised


def test_a_store_that_is_slower_than_the_teacher_never_pays():
    (found,) = advice(step(), store(ratio=1.2))
    assert found.pays_from is None
    assert not found.advised
    assert "it never pays" in found.sentence
    assert len(conclude(step(), [found])) == 1


def test_where_the_teacher_dominates_and_all_is_on_it_says_so():
    others = [trial("channels_last=false", STUDENT, 0.99), trial("teacher.precision=fp32", TEACHER, 2.1)]
    assert conclude(step(), advice(step(), *others)) == [
        "The teacher's pass takes 57 %; no setting tried helps by more than 3 %."
    ]
    assert conclude(step(), []) == [
        "The teacher's pass takes 57 %; there was no setting to try that helps by more than 3 %."
    ]


def test_waiting_for_batches_is_named():
    slow = step(data=400.0)
    found = advice(slow, trial("data.loader=resident", DATA, 0.01), trial("data.workers=8", DATA, 0.5))
    assert slow.bottleneck == "data"
    assert [one.trial.setting for one in found] == ["data.loader=resident", "data.workers=8"]
    assert [one.step_ms for one in found] == pytest.approx([538 - 0.99 * 400, 538 - 200])
    first, second, third = conclude(slow, found)
    assert first == "Waiting for batches takes 74 % of a step."
    assert "from 538 ms to 142 ms: 3.8 times as fast" in second
    assert "data.workers=8" in third


def test_a_loop_that_looks_at_itself_too_often_is_named():
    slow = step(host=200.0)
    assert conclude(slow, advice(slow, trial("log.shares=500", HOST, 0.05))) == [
        "The loop itself (logging, measuring, saving) takes 59 % of a step.",
        "log.shares=500 would bring a step from 339 ms to 149 ms: 2.3 times as fast.",
    ]


def test_a_gpu_that_waits_for_its_host_is_told_of():
    busy = replace(step(), host_busy=0.97)
    assert "The host is at work for 97 % of the time" in conclude(busy, [])[-1]
    assert len(conclude(replace(step(), host_busy=0.6), [])) == 1


def test_where_nothing_helps_the_students_passes_are_named():
    alone = step(teacher=0.0, forward=300.0, backward=500.0)
    found = advice(alone, trial("channels_last=false", STUDENT, 0.975))  # 2.5 % of 99 %
    assert conclude(alone, found) == ["The student's own passes take 99 %; no setting tried helps by more than 3 %."]


def test_what_lies_within_the_noise_is_not_advised():
    (noisy,) = advice(step(), trial("teacher.precision=bf16", TEACHER, 0.9, spread=0.2))
    assert noisy.step_ms == pytest.approx(132)
    assert noisy.high > 140
    assert not noisy.advised
    (clear,) = advice(step(), trial("teacher.precision=bf16", TEACHER, 0.9, spread=0.02))
    assert clear.advised


def test_a_setting_of_both_networks_exchanges_both_and_says_what_it_changes():
    now = (5.0,) * 5
    both = Trial("precision=bf16", (Exchange(STUDENT, now, (2.5,) * 5), Exchange(TEACHER, now, (1.0,) * 5)), "bfloat16")
    (found,) = advice(step(), both)
    assert found.step_ms == pytest.approx(140 - 55 / 2 - 80 * 0.8)
    assert found.sentence.endswith("times as fast. It changes what is computed: bfloat16.")


def test_a_ratio_is_that_of_the_same_round():
    """The machine slows down threefold in the course; each round compares like with like all the same."""
    now = (10.0, 14.0, 20.0, 26.0, 30.0)
    assert Exchange(TEACHER, now, tuple(time / 2 for time in now)).ratios() == (0.5, 0.5, 0.5)


def test_reading_a_store_is_not_called_a_pass():
    assert conclude(replace(step(), stored=True), [])[0].startswith("Reading the teacher's store takes 57 %")


def test_a_small_batch_is_told_of_beyond_the_noise_only():
    (said,) = too_small(16, Exchange(TEACHER, (2.0,) * 5, (1.2,) * 5))
    assert "in one of 32 an image takes 40 % less time" in said
    assert too_small(16, Exchange(TEACHER, (2.0,) * 5, (1.2, 1.2, 1.9, 2.1, 2.2))) == []
    assert too_small(16, Exchange(TEACHER, (2.0,) * 5, (1.97,) * 5)) == []
    assert too_small(16, None) == []


def resolved(*values: str, **update: Any) -> Recipe:
    said = ["precision=fp32", "compile=false", "graph=false", "student.model=resnet8", "device=cpu"]
    return load_recipe(None, [*said, *values])


TAUGHT = ("teacher.model=resnet14", "teacher.weights=somewhere")


def tried(*values: str, compiled: bool = False) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {one.setting: one.exchanges for one in of_the_networks(resolved(*values), CPU, compiled)}


def test_only_settings_that_are_not_on_are_tried(monkeypatch):
    monkeypatch.setattr(candidates, "native_bf16", lambda device: True)
    assert tried(*TAUGHT) == {
        "teacher.precision=bf16": (TEACHER,),
        "precision=bf16": (STUDENT, TEACHER),
        "channels_last=false": (STUDENT, TEACHER),
    }
    assert tried(*TAUGHT, "precision=bf16", "channels_last=false", "teacher.fold=false", "teacher.precision=fp32") == {
        "teacher.precision=bf16": (TEACHER,),
        "teacher.fold=true": (TEACHER,),
        "precision=fp32": (STUDENT,),
        "channels_last=true": (STUDENT, TEACHER),
    }
    assert tried() == {"precision=bf16": (STUDENT,), "channels_last=false": (STUDENT,)}


def test_a_processor_without_bfloat16_is_not_asked_for_it(monkeypatch):
    monkeypatch.setattr(candidates, "native_bf16", lambda device: False)
    assert list(tried(*TAUGHT)) == ["channels_last=false"]
    assert list(tried(*TAUGHT, "precision=bf16", "teacher.precision=bf16")) == [
        "teacher.precision=fp32", "precision=fp32", "channels_last=false",
    ]  # fmt: skip


def test_a_store_stays_that_of_its_teacher(monkeypatch):
    monkeypatch.setattr(candidates, "native_bf16", lambda device: True)
    found = {one.setting: one for one in of_the_networks(resolved(*TAUGHT, "teacher.store=rows"), CPU, True)}
    assert list(found) == ["precision=bf16 teacher.precision=fp32", "channels_last=false", "compile=true"]
    other = found["precision=bf16 teacher.precision=fp32"].recipe
    assert (other.precision, other.teacher.precision) == ("bf16", "fp32")
    assert found["compile=true"].exchanges == (STUDENT,)


def test_what_takes_minutes_is_tried_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(candidates, "native_bf16", lambda device: False)
    assert list(tried(*TAUGHT, compiled=True))[1:] == ["compile=true", "teacher.compile=true"]
    assert tried(*TAUGHT, "teacher.compile=false", compiled=True)["compile=true"] == (STUDENT,)
    assert tried(*TAUGHT, "compile=true", "teacher.fold=false") == {}
    assert list(tried(*TAUGHT, "compile=true", compiled=True)) == ["channels_last=false"]


def test_the_loops_settings_are_tried_where_they_are_more_often_than_usual():
    assert of_the_loop(resolved()) == []
    assert of_the_loop(resolved("log.shares=0", "log.every=100")) == []
    eager = of_the_loop(resolved("log.shares=5", "log.every=2", "checkpoint.every_steps=3"))
    assert [one.setting for one in eager] == ["log.every=50", "log.shares=500", "checkpoint.every_steps=0"]
    assert eager[2].recipe.checkpoint.every_steps == 0


def test_the_loaders_settings_are_tried_where_it_streams(monkeypatch):
    monkeypatch.setattr(candidates, "decoding_workers", lambda most=8: min(most, 16))
    source = ArraySource(np.zeros((3, 8, 8, 3), np.uint8), None, name="three")
    streaming = ("data.size=8", "data.crop=none", "data.loader=streaming")

    def settings(*values: str) -> dict[str, str]:
        return {
            one.setting: one.changes for one in of_the_data(resolved(*streaming, *values), source, torch.device("cpu"))
        }

    assert settings() == {"data.loader=resident": "", "data.workers=16": ""}
    assert settings("data.workers=16") == {"data.loader=resident": ""}
    assert list(settings("data.draft=false", "data.workers=16")) == ["data.loader=resident", "data.draft=true"]
    assert "brought to 6 x 6 once" in settings("data.size=6")["data.loader=resident"]
    assert settings(*TAUGHT, "teacher.store=rows") == {"data.workers=16": ""}  # a store is one of these very pixels
    assert of_the_data(resolved("data.size=8", "data.loader=resident"), source, torch.device("cpu")) == []
    monkeypatch.setattr(candidates, "_memory", lambda device: 3 * 8 * 8 * 7 * 4 - 1)
    assert settings() == {"data.workers=16": ""}


def test_contenders_take_turns_and_one_without_finite_losses_drops_out():
    order: list[str] = []

    def take(name: str) -> Callable[[int], Round]:
        def steps(count: int) -> Round:
            order.append(name)
            if name == "c" and order.count("c") == 2:
                raise NonFiniteLoss("inf")
            return Round({}, 1.0, 1.0, 0.0)

        return steps

    found = interleaved({name: take(name) for name in "abc"}, 1, seconds=0.0)
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 5, "b": 5}
    assert "".join(order[:6]) == "abcbca"


def test_a_continued_loader_repeats_the_phases_epochs_and_keeps_its_full_steps():
    class Epochs:
        steps = 2

        def epoch(self, epoch: int, start: int = 0):
            yield [[epoch] * 4]  # a batch is what has a length
            yield [[epoch] * 3]

    loader = Continued(Epochs(), begin=3, epochs=2, least=9)
    given = [batch[0][0] for _, batch in zip(range(9), loader.epoch(0), strict=False)]
    assert given == [3, 3, 4, 4, 3, 3, 4, 4, 3]
    assert loader.images == 4 * 5 + 3 * 4
    assert all(len(batches[0]) == 4 for batches in loader.recent)


# 179 of the digits to learn from, twelve steps an epoch.
TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "student.model=resnet8", "device=cpu",
    "batch_size=16", "schedule.name=constant", "precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    values = [*TINY, "student.model=resnet14", "epochs=1", f"run={folder}"]
    result = CliRunner().invoke(app, ["train", *values], prog_name="potstill")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def profiled(monkeypatch, tmp_path) -> Callable[..., Profile]:
    """Profile a recipe with as few rounds as there may be; no temporary folder is left."""
    monkeypatch.setattr(trials, "_ROUND", 1.0)
    monkeypatch.setattr(trials, "other_threads", list)  # where others work too, a second thread may take forever
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def call(*values: str, steps: int = 30, seconds: float = 0.0) -> Profile:
        found = profile(load_recipe(None, [*TINY, *values]), CPU, steps=steps, seconds=seconds)
        assert not list(tmp_path.iterdir())
        return found

    return call


def test_the_parts_add_up_to_the_step_and_nothing_is_left(profiled, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    found = profiled(f"teacher.weights={teacher}", "epochs=2", steps=40, seconds=20.0)
    assert found.steps == 40
    assert found.step.ms == pytest.approx(found.wall_ms, rel=0.1)
    assert sum(found.step.shares.values()) == pytest.approx(1)
    assert found.step.low <= found.step.high
    assert all(found.step.parts[part] > 0 for part in PARTS)
    assert 9 <= found.step.images <= 16  # an epoch's last step has three
    assert found.images_per_second == pytest.approx(1000 * found.step.images / found.step.ms)
    assert (found.student, found.teacher, found.phase) == ("resnet8", "teacher", "joint")
    trained = 2 * 12 * found.step.ms / 1000
    assert 3600 * found.hours == pytest.approx(trained + 2 * found.evaluation_seconds + found.once_seconds)
    assert 0 < found.evaluation_seconds < found.once_seconds  # once: another evaluation, and the teacher's pass
    assert torch.get_num_threads() == threads
    settings = {one.trial.setting for one in found.tried}
    assert {"channels_last=false", "teacher.store=PATH"} <= settings
    assert not list(tmp_path.iterdir())  # and no runs/


def test_other_numbers_of_threads_are_tried_and_put_back(profiled, monkeypatch):
    monkeypatch.setattr(trials, "other_threads", lambda: [2])
    seen: set[int] = set()
    take = Rehearsal.take

    def watched(self: Rehearsal, steps: int) -> Round:
        seen.add(torch.get_num_threads())
        return take(self, steps)

    monkeypatch.setattr(Rehearsal, "take", watched)
    assert torch.get_num_threads() == 1
    found = profiled("epochs=5")
    assert "OMP_NUM_THREADS=2" in {one.trial.setting for one in found.tried}
    assert seen == {1, 2}
    assert torch.get_num_threads() == 1


def test_a_slow_teacher_is_named_and_a_store_takes_its_time_away(profiled, teacher, monkeypatch):
    call = Teacher.__call__

    def slowly(self: Teacher, *args: Any, **reads: bool) -> Any:
        time.sleep(0.05)
        return call(self, *args, **reads)

    monkeypatch.setattr(Teacher, "__call__", slowly)
    found = profiled(f"teacher.weights={teacher}", "epochs=40")
    assert found.step.bottleneck == "teacher"
    assert found.sentences[0].startswith("The teacher's pass takes")
    best = found.tried[0]
    assert best.trial.setting == "teacher.store=PATH data.views=8"
    assert best.advised
    assert found.sentences[1] == best.sentence
    parts, (exchange,) = found.step.parts, best.trial.exchanges
    ratio = statistics.median(then / now for now, then in zip(exchange.now, exchange.then, strict=True))
    assert best.step_ms == pytest.approx(found.step.ms - (1 - ratio) * parts["teacher"])
    assert best.step_ms < found.step.ms - 45
    # Eight views, each an epoch of twelve steps of the teacher; a bit more than eight epochs earn that.
    assert best.trial.once_seconds == pytest.approx(8 * 12 * (parts["teacher"] + parts["data"]) / 1000)
    assert best.pays_from in (9, 10)


def test_a_slow_loader_is_named_and_the_resident_one_takes_its_time_away(profiled, monkeypatch):
    decode = Decoder.__getitem__

    def slowly(self: Decoder, key: Any) -> Any:
        time.sleep(0.05)
        return decode(self, key)

    monkeypatch.setattr(Decoder, "__getitem__", slowly)
    monkeypatch.setattr(trials, "of_the_networks", lambda *args: [])
    found = profiled("data.loader=streaming", "data.workers=0", "epochs=40")
    assert found.teacher is None
    assert found.step.bottleneck == "data"
    assert found.sentences[0].startswith("Waiting for batches takes")
    by_setting = {one.trial.setting: one for one in found.tried}
    best = by_setting["data.loader=resident"]
    assert best.advised
    assert best.step_ms < found.step.ms - 45
    assert best.step_ms == pytest.approx(found.step.ms - found.step.parts["data"], abs=5)
    assert by_setting[f"data.workers={len(os.sched_getaffinity(0))}"].step_ms < found.step.ms


def test_a_loop_that_saves_itself_in_each_step_is_told_not_to(profiled):
    found = profiled("checkpoint.every_steps=1", "epochs=5")
    assert found.step.share_of("host") > 0.1
    by_setting = {one.trial.setting: one for one in found.tried}
    assert by_setting["checkpoint.every_steps=0"].step_ms < found.step.ms - 0.8 * found.step.parts["host"]
    assert by_setting["checkpoint.every_steps=0"].advised
    assert not any(setting.startswith("log.") for setting in by_setting)


def test_a_store_that_cannot_be_is_not_tried_and_it_says_why(profiled, teacher):
    found = profiled(f"teacher.weights={teacher}", "objective={ce: 1, at: {weight: 1, layers: [[0, 0]]}}", "epochs=5")
    assert not any("store" in one.trial.setting for one in found.tried)
    assert any(note.startswith("teacher.store was not tried: ") for note in found.notes)


def test_a_store_in_use_is_what_the_teachers_part_reads(profiled, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    values = [f"teacher.weights={teacher}", f"teacher.store={folder}", "data.views=2", "epochs=3"]
    result = CliRunner().invoke(app, ["store", "build", *TINY, *values], prog_name="potstill")
    assert result.exit_code == 0, result.output
    before = contents(folder)
    found = profiled(*values)
    assert found.step.stored
    assert found.step.share_of("teacher") < 0.5
    assert not any("store" in one.trial.setting or "fold" in one.trial.setting for one in found.tried)
    assert contents(folder) == before


def test_a_store_that_the_run_would_fill_is_not_written_to(profiled, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    found = profiled(f"teacher.weights={teacher}", f"teacher.store={folder}", "store.fill=true", "epochs=3")
    assert not folder.exists()
    assert any("store.fill" in note for note in found.notes)
    assert not found.step.stored


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and when it was last written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_of_several_phases_the_last_is_timed(profiled, teacher):
    found = profiled(f"teacher.weights={teacher}", "procedure.name=stagewise", "epochs=8")
    assert (found.phase, found.epochs) == ("head", 8)
    assert any("Timed is the last of 4 phases, head" in note for note in found.notes)


def test_of_several_students_the_first_is_timed(profiled, teacher):
    found = profiled(f"teacher.weights={teacher}", "students=[{model: resnet14, name: large}, {seed: 1}]", "epochs=5")
    assert found.student == "resnet14"
    assert any("Timed is the first of 2 students, large" in note for note in found.notes)


def test_of_a_chain_the_first_assistant_is_timed(profiled, teacher):
    values = ["procedure.name=assistants", "procedure.assistants=[resnet14]", "objective={ce: 1, kd: 1}", "epochs=5"]
    found = profiled(f"teacher.weights={teacher}", *values)
    assert found.student == "resnet14"
    assert any("assistant 1" in note for note in found.notes)


def test_methods_that_read_class_means_are_timed_without_collecting_them(profiled, teacher, monkeypatch):
    def collected(*args: Any) -> None:
        raise AssertionError("a pass over all images")

    monkeypatch.setattr("potstill.procedures.prepared.collect_class_means", collected)
    found = profiled(f"teacher.weights={teacher}", "objective={ce: 1, nd: 1}", "epochs=5")
    assert found.step.ms > 0


@pytest.mark.parametrize(
    "values", [("accumulate=4",), ("ema=0.9", "clip=1.0", "log.measures=true"), ("data.val_fraction=0.95", "epochs=1")]
)
def test_other_recipes_are_timed_too(profiled, teacher, values):
    found = profiled(f"teacher.weights={teacher}", "epochs=2", *values)
    assert found.step.ms == pytest.approx(found.wall_ms, rel=0.3)


def test_a_step_that_is_one_graph_is_timed_beside_its_parts(profiled, monkeypatch):
    """Without a GPU: what stands for the graph is the plain loop, over a loader whose epochs end and are not judged."""
    monkeypatch.setattr(trials, "of_the_networks", lambda *args: [])
    found = profiled("epochs=2")
    assert found.graph_ms is None
    assert not any("graph" in one.trial.setting for one in found.tried)

    monkeypatch.setattr(trials, "as_a_graph", lambda recipe, processes: recipe)
    monkeypatch.setattr(Judge, "values", lambda *args: pytest.fail("an evaluation within the steps"))
    monkeypatch.setattr(profiling, "_evaluation", lambda *args: 0.0)
    offered = profiled("epochs=2")
    (graph,) = [one for one in offered.tried if one.trial.setting == "graph=true"]
    assert len(graph.trial.exchanges[0].parts) == 7
    assert graph.step_ms == pytest.approx(offered.step.ms, rel=0.5)

    resolve = profiling.resolve_with
    monkeypatch.setattr(profiling, "resolve_with", lambda *args: with_value(resolve(*args), "graph", True))
    on = profiled("epochs=2")
    assert on.graph_ms is not None
    assert on.images_per_second == pytest.approx(1000 * on.step.images / on.graph_ms)
    assert any(note.startswith("The run takes its steps as CUDA graphs") for note in on.notes)
    assert not any("graph" in one.trial.setting for one in on.tried)


def test_several_processes_and_too_few_steps_are_refused():
    recipe = load_recipe(None, list(TINY))
    with pytest.raises(RunError, match="without torchrun"):
        profile(recipe, Processes(torch.device("cpu"), rank=0, world=2))
    with pytest.raises(RunError, match=r"4 steps are too few .* give 5 or more"):
        profile(recipe, CPU, steps=4)


def test_a_recipe_that_cannot_run_is_refused_as_a_run_would_be():
    with pytest.raises(PotstillError, match="teacher has no weights"):
        profile(load_recipe(None, [*TINY, "teacher.model=resnet14"]), CPU)


def test_with_value_changes_one_value():
    recipe = resolved()
    other = with_value(with_value(recipe, "data.workers", 3), "compile", True)
    assert (other.data.workers, other.compile) == (3, True)
    assert recipe.data.workers is None


def test_a_loop_that_saves_seldom_is_no_mistake(profiled, monkeypatch):
    monkeypatch.setattr(trials, "_SMALL", 0.0)
    found = profiled("checkpoint.every_steps=60", "epochs=2")
    assert "checkpoint.every_steps=0" in {one.trial.setting for one in found.tried}
