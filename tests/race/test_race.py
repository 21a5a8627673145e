"""Races of a few seconds: who goes on, what that costs, and that nothing of it depends on being interrupted."""

import csv
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from potstill.cli import app
from potstill.procedures.stored import StoredTeaching
from potstill.training.checkpoints import Checkpoints
from potstill.training.folder import RunFolder
from potstill.training.loop import Loop

# 179 of the digits to learn from, three steps an epoch.
TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "device=cpu", "schedule.name=cosine", "log.every=1",
    "precision=fp32", "log.report=false",
)  # fmt: skip
STEPS = 3
# Four to epoch 1, two to epoch 2, one to epoch 4.
FOUR = (
    "candidates=[{model: resnet8, objective: {ce: 1}, name: alone}, {model: resnet8, objective: {ce: 1, kd: 1}}, "
    "{model: resnet8, objective: {ce: 1, pefd: 25}}, {model: resnet8, objective: {ce: 1}, seed: 1, name: again}]"
)
SPENT, PAUSES = 4 + 2 + 2, 4 + 2


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="potstill")
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race") / "teacher"
    call("train", *TINY, "student.model=resnet14", "epochs=1", f"run={folder}")
    return folder


Runs = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def race(teacher: Path) -> Runs:
    """Race with these values; what ``--json`` says, or what is said where another exit code is expected."""

    def run(*values: str, code: int = 0) -> dict[str, Any]:
        settings = [*TINY, f"teacher.weights={teacher}", "epochs=4", "race.factor=2"]
        result = call("race", *settings, *values, "--json", code=code)
        return json.loads(result.stdout) if code == 0 else {"said": result.output}

    return run


@pytest.fixture(scope="module")
def whole(race: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A race that nothing disturbed."""
    folder = tmp_path_factory.mktemp("races") / "whole"
    return folder, race(FOUR, f"run={folder}")


def decided(record: dict[str, Any]) -> dict[str, Any]:
    """What a race decides: everything but times."""
    kept = {key: record[key] for key in ("winner", "epochs", "rungs", "close", "finished")}
    names = [(one["rank"], one["name"], one["epoch"], one["top1"], one["front"]) for one in record["candidates"]]
    return kept | {"candidates": names}


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step that each training step takes a network to."""
    taken: list[int] = []
    step = Loop._step

    def counted(self: Loop, *arguments: Any) -> Any:
        taken.append(arguments[1] + 1)
        return step(self, *arguments)

    monkeypatch.setattr(Loop, "_step", counted)
    return taken


def test_promotions_are_by_accuracy_at_the_rung(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, record = whole
    assert [(rung["epoch"], rung["planned"], len(rung["top1"])) for rung in record["rungs"]] == [
        (1, 4, 4), (2, 2, 2), (4, 1, 1),
    ]  # fmt: skip
    for before, after in zip(record["rungs"], record["rungs"][1:], strict=False):
        left = [top1 for name, top1 in before["top1"].items() if name not in after["top1"]]
        assert min(before["top1"][name] for name in after["top1"]) >= max(left)
    assert record["epochs"] == {"spent": SPENT, "full": 16}
    assert [one["epoch"] for one in record["candidates"]] == [4, 2, 1, 1]
    assert record["winner"] == record["candidates"][0]["name"]
    for one in record["candidates"]:
        with open(folder / one["name"] / "metrics.csv", newline="") as file:
            rows = {int(row["epoch"]): float(row["top1"]) for row in csv.DictReader(file)}
        assert rows.keys() == set(range(1, one["epoch"] + 1))
        for rung in record["rungs"]:
            assert rung["top1"].get(one["name"]) == rows.get(rung["epoch"])
    assert json.loads((folder / "race.json").read_text()).items() >= {"winner": record["winner"]}.items()


def test_candidates_of_one_network_cost_the_same(whole: tuple[Path, dict[str, Any]]) -> None:
    costs = [tuple(one[key] for key in ("parameters", "macs", "latency_ms", "bytes")) for one in whole[1]["candidates"]]
    assert len(set(costs)) == 1
    assert costs[0][0] == 78_042
    assert len({one["top1"] for one in whole[1]["candidates"] if one["epoch"] == 4 and one["front"]}) == 1


def test_no_step_is_taken_twice_but_the_one_after_a_pause(race: Runs, tmp_path: Path, steps: list[int]) -> None:
    record = race(FOUR, f"run={tmp_path / 'race'}")
    assert record["epochs"]["spent"] == SPENT
    assert len(steps) == SPENT * STEPS + PAUSES
    steps.clear()
    again = race(FOUR, f"run={tmp_path / 'race'}")
    assert steps == []
    assert again == record  # with the costs as they were measured


def test_a_candidate_is_the_student_that_it_would_be_alone(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The winner, that paused twice, and one that was left behind and goes on by the command for any run."""
    folder, record = whole
    winner, last = record["candidates"][0]["name"], record["candidates"][-1]["name"]
    call(
        "distill" if "pefd" in winner or "kd" in winner else "train", str(folder / winner), f"run={tmp_path / 'alone'}"
    )
    assert weights(tmp_path / "alone") == weights(folder / winner)
    command = "distill" if "pefd" in last or "kd" in last else "train"
    said = call("export", str(folder / last), code=2).output
    assert "is not finished" in said
    call(command, str(folder / last), f"run={tmp_path / 'alone-2'}")
    call(command, str(folder / last))
    assert weights(tmp_path / "alone-2") == weights(folder / last)


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "saves"), [("before", 1), ("after", 3), ("before", 5), ("after", 6), ("before", 8), ("after", 8)]
)
def test_a_race_that_was_killed_decides_as_one_that_was_not(
    race: Runs,
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saves: int,
    where: str,
) -> None:
    """Killed at a checkpoint: once it is there, or when the epoch's row is there and its checkpoint is not."""
    save, count = Checkpoints.save, iter(range(1, 100))

    def killed(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        last = next(count) == saves
        if last and where == "before":
            raise KeyboardInterrupt
        path = save(self, step, state)
        if last:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        race(FOUR, f"run={tmp_path / 'race'}", code=130)
    unfinished = json.loads((tmp_path / "race" / "race.json").read_text())
    assert (unfinished["finished"], unfinished["winner"]) == (False, None)
    record = race(FOUR, f"run={tmp_path / 'race'}")
    assert decided(record) == decided(whole[1])
    assert weights(tmp_path / "race" / record["winner"]) == weights(whole[0] / record["winner"])


def test_each_view_is_asked_of_the_teacher_once(race: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes first fills the store; only the step after a pause, which is taken again, may be filled again."""
    asked: list[tuple[int, tuple[int, ...]]] = []
    filled = StoredTeaching._filled

    def counted(self: StoredTeaching, batch: Any, there: Any) -> Any:
        asked.append((int(batch.view[0]), tuple(batch.index.tolist())))
        return filled(self, batch, there)

    monkeypatch.setattr(StoredTeaching, "_filled", counted)
    methods = "methods={kd: {ce: 1, kd: 1}, pefd: {ce: 1, pefd: 25}, hot: {ce: 1, kd: {weight: 1, temperature: 8}}}"
    race("student.model=resnet8", methods, f"run={tmp_path / 'race'}")
    assert len(set(asked)) == 4 * STEPS  # four views of all images, in the same batches for everybody
    assert len(asked) - len(set(asked)) <= 3 + 2  # three pause at the first rung, two at the second


def test_what_a_store_does_not_hold_comes_from_the_live_teacher(race: Runs, tmp_path: Path) -> None:
    record = race(
        "student.model=resnet8", "methods={kd: {ce: 1, kd: 1}, at: {ce: 1, at: {weight: 10, layers: [[1, 1]]}}}",
        f"run={tmp_path / 'race'}",
    )  # fmt: skip
    assert record["winner"] in ("kd", "at")
    assert (tmp_path / "race" / "store" / "store.json").exists()


@pytest.mark.parametrize("values", [["race.store=false"], ["data.mixup=0.2"]])
def test_without_a_store_the_teacher_is_asked_each_time(race: Runs, tmp_path: Path, values: list[str]) -> None:
    race(
        "student.model=resnet8",
        "methods={kd: {ce: 1, kd: 1}, pefd: {ce: 1, pefd: 25}}",
        *values,
        f"run={tmp_path / 'r'}",
    )
    assert not (tmp_path / "r" / "store").exists()
    winner = next(
        one for one in json.loads((tmp_path / "r" / "race.json").read_text())["candidates"] if one["finished"]
    )
    shown = json.loads(call("evaluate", winner["folder"], "--json").stdout)
    assert shown["top1"] == pytest.approx(winner["top1"])


def test_a_store_that_is_wanted_and_cannot_be_is_refused(race: Runs, tmp_path: Path) -> None:
    said = race(FOUR, "race.store=true", "data.mixup=0.2", f"run={tmp_path / 'race'}", code=2)["said"]
    assert "mixtures" in said


def test_one_that_diverges_is_out_and_the_others_go_on(race: Runs, tmp_path: Path) -> None:
    wild = "{model: resnet8, objective: {ce: 1}, optimizer: {lr: 1e30}, name: wild}"
    values = (f"candidates=[{wild}, {{model: resnet8, objective: {{ce: 1}}}}, {{model: resnet8, seed: 2}}]",)
    record = race(*values, f"run={tmp_path / 'race'}")
    *_, last = record["candidates"]
    assert (last["name"], last["finished"], last["front"], last["top1"]) == ("wild", False, [], None)
    assert last["failed"].startswith("The loss is not finite at step ")
    assert record["winner"] != "wild"
    assert decided(race(*values, f"run={tmp_path / 'race'}")) == decided(record)


def test_where_all_diverge_the_race_says_so(race: Runs, tmp_path: Path) -> None:
    wild = "{model: resnet8, objective: {ce: 1}, optimizer: {lr: 1e30}}"
    said = race(f"candidates=[{wild}, {wild}]", f"run={tmp_path / 'race'}", code=2)["said"]
    assert "No candidate came to the end: resnet8-ce: The loss is not finite" in said


def test_another_candidate_joins_a_race_that_is_over(race: Runs, tmp_path: Path, steps: list[int]) -> None:
    first = "{model: resnet8, objective: {ce: 1}}, {model: resnet8, seed: 2}"
    race(f"candidates=[{first}]", "race.min_epochs=1", f"run={tmp_path / 'race'}")
    steps.clear()
    record = race(f"candidates=[{first}, {{model: resnet8, seed: 3}}]", "race.min_epochs=1", f"run={tmp_path / 'race'}")
    assert len(record["rungs"][0]["top1"]) == 3
    assert len(steps) <= 4 * STEPS + 2 + STEPS  # the new one, to the end at most, and another one to the second rung


def test_epochs_before_the_recipes_own_come_on_top(race: Runs, tmp_path: Path) -> None:
    """A paraphraser trains first; its candidate is compared after as many epochs of the student as the others."""
    record = race(
        "candidates=[{model: resnet8, objective: {ce: 1}}, {model: resnet8, objective: {ce: 1, ft: 1}, "
        "procedure: {pretrain_epochs: 2}}]",
        f"run={tmp_path / 'race'}",
    )  # fmt: skip
    assert record["epochs"]["full"] == 4 + 6
    assert record["epochs"]["spent"] == 2 + (2 + 2) + 2
    with open(tmp_path / "race" / "resnet8-ft" / "metrics.csv", newline="") as file:
        judged = [int(row["epoch"]) for row in csv.DictReader(file) if row["top1"]]
    assert judged[:2] == [3, 4]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([FOUR, "log.evaluate=3"], "with log.evaluate=3 alone is not judged there"),
        ([FOUR, "checkpoint.every_epochs=3"], "with checkpoint.every_epochs=3 alone is not saved there"),
        ([FOUR, "data.val_fraction=0"], "the data have no validation images"),
        (["candidates=[resnet8, {model: resnet8, epochs: 3}]"], "candidates[2] has the key 'epochs'"),
        (["candidates=[resnet8, {model: resnet8, objectiv: {ce: 1}}]"], "candidates[2]: unknown key 'objectiv'."),
        (["candidates=[resnet8, {model: resnet8, objective: {pfed: 1}}]"], "Did you mean 'pefd'?"),
        (["candidates=[resnet8, resnet9]"], "resnet9"),
        (["candidates=[resnet8, {model: resnet8, name: ../x}]"], "candidates[2].name is '../x'"),
        (["students=[resnet8, {model: resnet8, batch_size: 3, name: b}]"], "students[2] has the key 'batch_size'"),
        ([FOUR, "race.store=true", "teacher.store=x", "store.fill=true"], "names a store already"),
        (
            ["candidates=[resnet8, {model: resnet8, objective: {ce: 1}, procedure: {name: stagewise}, name: staged}]"],
            "The candidate staged cannot be judged at epoch 2",
        ),
    ],
)
def test_mistakes_are_found_before_anything_trains(
    race: Runs, tmp_path: Path, values: list[str], sentence: str
) -> None:
    said = race(*values, f"run={tmp_path / 'race'}", code=2)["said"]
    assert sentence in said
    assert not (tmp_path / "race").exists()


def test_a_folder_of_something_else_is_not_touched(race: Runs, teacher: Path, tmp_path: Path) -> None:
    assert "holds files that are no race (" in race(FOUR, f"run={teacher}", code=2)["said"]
    (tmp_path / "file").write_text("")
    assert "is a file" in race(FOUR, f"run={tmp_path / 'file'}", code=2)["said"]


def test_two_processes_do_not_race_in_one_folder(race: Runs, tmp_path: Path) -> None:
    RunFolder(tmp_path / "race").make()
    with open(tmp_path / "race" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another process is at work" in race(FOUR, f"run={tmp_path / 'race'}", code=2)["said"]


@pytest.mark.parametrize("name", ["metrics.csv", "race.json"])
def test_damaged_files_are_named(race: Runs, tmp_path: Path, name: str) -> None:
    values = ("candidates=[{model: resnet8, objective: {ce: 1}}, {model: resnet8, seed: 2}]", "epochs=2")
    race(*values, f"run={tmp_path / 'race'}")
    path = tmp_path / "race" / ("resnet8-ce/metrics.csv" if name == "metrics.csv" else name)
    path.write_text("epoch,step,top1\n1,x,3\n" if name == "metrics.csv" else "{")
    said = race(*values, f"run={tmp_path / 'race'}", code=2)["said"]
    assert f"{path} is damaged" in said


def test_another_recipe_does_not_go_on_with_these_candidates(race: Runs, tmp_path: Path) -> None:
    values = (
        "candidates=[{model: resnet8, objective: {ce: 1}}, {model: resnet8, seed: 2}]",
        f"run={tmp_path / 'race'}",
    )
    race(*values, "epochs=2")
    said = race(*values, "epochs=3", code=2)["said"]
    assert "epochs was 2, now 3" in said
