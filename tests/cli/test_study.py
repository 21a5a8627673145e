import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import Result

from potstill.cli.study_board import board_on, result_tables
from potstill.study import Ended, Job, Plan, Status, load_study, plan_study, read_record, read_table
from potstill.study.job import do_job, writing_to

Potstill = Callable[..., Result]

RECIPE = {
    "data": {"source": "digits", "val_fraction": 0.9},
    "student": {"model": "resnet8"},
    "epochs": 2,
    "schedule": {"name": "onecycle"},
    "device": "cpu",
}
STUDY = {
    "title": "Two ways",
    "recipe": RECIPE,
    "grid": {"method": {"alone": {"objective": {"ce": 1}}, "taught by nobody": {"objective": {"kd": 1}}}},
    "control": {"method": "alone"},
    "seeds": [1, 2],
}


class Here:
    """Workers that do a job at once, in this process."""

    capacity = 1

    def __init__(self) -> None:
        self.over: list[Ended] = []

    def start(self, job: Job, log: Path) -> None:
        with writing_to(log):
            self.over = [Ended(job.name, do_job(job.kind, job.recipe.model_dump(mode="json"), str(job.folder)))]

    def ended(self, seconds: float) -> list[Ended]:
        return self.over

    def close(self) -> None:
        pass


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return str(path)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.cli.study._workers", lambda plan: Here())


def text(result: Result) -> str:
    return result.output + result.stderr


def test_a_dry_run_says_what_would_run_and_runs_nothing(potstill: Potstill, small: str, tmp_path: Path):
    result = potstill("study", small, "--dry-run", f"run={tmp_path / 'out'}")
    assert result.exit_code == 0, text(result)
    assert "4 cells, 4 jobs" in result.stdout
    assert re.search(rf"alone-seed 1 +run +{tmp_path}/out/runs/alone-seed-1-[0-9a-f]{{8}}", result.stdout)
    assert not (tmp_path / "out").exists()
    asked = potstill("study", small, "--dry-run", "--json", "study.seeds=[7]", f"run={tmp_path / 'out'}")
    told = json.loads(asked.stdout)
    assert [cell["seed"] for cell in told["cells"]] == [7, 7]
    assert [job["name"] for job in told["jobs"]] == ["alone-seed 7", "taught by nobody-seed 7"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study.sedes=[1]"], "unknown key 'sedes'. Did you mean 'seeds'?"),
        (["study.workers=0"], "workers is 0; expected a number of at least 1."),
        (["study.control.method=alnoe"], "control names 'alnoe', which is no level of method. Did you mean 'alone'?"),
        (["epocs=1"], "alone and 1 more: unknown key 'epocs'. Did you mean 'epochs'?"),
        (["seed=3"], "seed=3: every combination is run with each of the study's seeds; give seeds: [10, 20]."),
        (["epochs"], "The override 'epochs' is not of the form key=value"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_runs(
    potstill: Potstill, small: str, tmp_path: Path, arguments: list[str], expected: str
):
    result = potstill("study", small, f"run={tmp_path / 'out'}", *arguments)
    assert result.exit_code == 2
    assert expected in text(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_a_study_ends_with_its_table_and_a_failed_cell_is_one(potstill: Potstill, small: str, tmp_path: Path):
    out = tmp_path / "out"
    result = potstill("study", small, f"run={out}", "epochs=1", "study.seeds=[1]")
    assert result.exit_code == 1, text(result)
    lines = result.stdout.splitlines()
    assert lines[0] == "2 jobs, 0 of them done already."
    assert "1/2  alone-seed 1: done" in lines
    assert re.search(r"2/2  taught by nobody-seed 1: failed: There is no teacher", result.stdout)
    assert re.search(r"alone +1/1 +\d+\.\d\d +control", result.stdout)
    assert re.search(r"taught by nobody +0/1 +- +-", result.stdout)
    assert re.search(r"Failed: taught by nobody, seed 1: There is no teacher", result.stdout)
    record = read_record(out)
    assert [run.state for entry in record.table.entries for run in entry.runs] == ["done", "failed"]
    assert record.table.entries[0].runs[0].epoch == 1
    assert record.table.title == "Two ways"
    assert (out / "logs").is_dir()

    again = potstill("study", small, f"run={out}", "epochs=1", "study.seeds=[1]", "--json")
    assert again.exit_code == 1
    told = json.loads(again.stdout)
    assert told["folder"] == str(out)
    assert [entry["levels"]["method"] for entry in told["entries"]] == ["alone", "taught by nobody"]
    assert told["entries"][0]["last"]["mean"] == record.table.entries[0].last.mean
    assert "2 jobs, 1 of them done already." in again.stderr
    assert "1/2  taught by nobody-seed 1: started" in again.stderr, "what failed is tried again"


@pytest.mark.usefixtures("here")
def test_a_report_that_cannot_be_written_costs_no_table(
    potstill: Potstill, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    result = potstill(
        "study",
        small,
        f"run={out}",
        "epochs=1",
        "study.seeds=[1]",
        "study.grid={method: {alone: {objective: {ce: 1}}}}",
    )
    assert result.exit_code == 0, text(result)
    assert "There is no report:" in result.stderr
    assert result.stdout.splitlines()[-1] == f"Everything is in {out}."
    assert read_record(out).table.entries[0].last.count == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_a_sentence(potstill: Potstill, small: str, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o500)
    result = potstill("study", small, f"run={tmp_path / 'closed' / 'out'}")
    assert result.exit_code == 2
    assert "cannot be written to: Permission denied." in text(result)


def plan_of(tmp_path: Path, **keys: Any) -> Plan:
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"run": str(tmp_path / "shown")} | keys, sort_keys=False))
    return plan_study(path, load_study(path))


def leave(plan: Plan, name: str, top1: list[float], finished: bool = True) -> None:
    folder = plan.jobs[name].folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(top1, 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,top1", *rows]) + "\n")
    if finished:
        student = {"top1": top1[-1], "latency_ms": 0.25, "parameters": 78_042}
        result = {"rows": {"student": student}, "epochs": 2, "seconds": 75.0, "memory": 3 << 29, "times": {}}
        (folder / "result.json").write_text(json.dumps(result))


def shown_on(width: int, height: int = 40) -> Console:
    return Console(force_terminal=True, file=io.StringIO(), width=width, height=height, color_system=None)


def written(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]


def test_the_board_shows_every_run_as_it_is_and_tells_when_one_has_ended(tmp_path: Path):
    plan = plan_of(tmp_path)
    status = Status(dict.fromkeys(plan.jobs, "waiting"))
    console, told = shown_on(100), []
    with board_on(console, plan, told.append) as watch:
        status.states["alone-seed 1"] = "running"
        leave(plan, "alone-seed 1", [10.0], finished=False)
        watch(status)
        assert "▶ epoch 1  · " in written(console)
        leave(plan, "alone-seed 1", [10.0, 20.0])
        leave(plan, "alone-seed 2", [10.0, 30.0])
        status.states |= {"alone-seed 1": "done", "alone-seed 2": "done", "taught by nobody-seed 1": "failed"}
        status.reasons["taught by nobody-seed 1"] = "There is no teacher"
        watch(status)
        watch(status)
        shown = written(console)
    assert "✓ 20.00  ✓ 30.00  25.00 ± 7.07" in shown
    assert "✗   · " in shown
    assert "2 of 4 done, 1 failed, 0.0 s; now: nothing" in shown
    assert [sum(run.state == "done" for entry in table.entries for run in entry.runs) for table in told] == [0, 2]


def test_a_board_of_many_rows_shows_those_that_go_on(tmp_path: Path):
    plan = plan_of(tmp_path, grid={"batch_size": list(range(1, 101))}, control={}, seeds=[1])
    status = Status(dict.fromkeys(plan.jobs, "waiting"))
    status.states["93-seed 1"] = "running"
    console = shown_on(80, height=20)
    with board_on(console, plan, lambda table: None) as watch:
        watch(status)
        shown = written(console)
    assert re.search(r"93 +▶ epoch 0", shown)
    assert "and 88 more rows" in shown
    assert len(shown.splitlines()) < 20


def test_a_narrow_board_has_signs_and_means(tmp_path: Path):
    grid = STUDY["grid"] | {"student.model": ["resnet8", "resnet14", "resnet20"]}
    plan = plan_of(tmp_path, grid=grid)
    status = Status(dict.fromkeys(plan.jobs, "waiting"))
    for seed in (1, 2):
        leave(plan, f"alone-resnet14-seed {seed}", [50.0 + seed])
        status.states[f"alone-resnet14-seed {seed}"] = "done"
    console = shown_on(80)
    with board_on(console, plan, lambda table: None) as watch:
        watch(status)
        shown = written(console)
    assert re.search(r"alone +·· +✓✓ 51\.50 ± 0\.71 +··", shown)


def test_on_a_pipe_each_change_is_a_line(tmp_path: Path):
    plan = plan_of(tmp_path)
    status = Status(dict.fromkeys(plan.jobs, "waiting"))
    console = Console(file=io.StringIO(), width=200)
    with board_on(console, plan, lambda table: None) as watch:
        watch(status)
        status.states["alone-seed 1"] = "running"
        watch(status)
        watch(status)
        status.tries["alone-seed 1"] = 1  # lost and started again between two looks
        watch(status)
        status.states["alone-seed 1"], status.reasons["alone-seed 1"] = "failed", "no luck"
        watch(status)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "4 jobs, 0 of them done already.",
        "0/4  alone-seed 1: started",
        "0/4  alone-seed 1: lost, tried again",
        "1/4  alone-seed 1: failed: no luck",
    ]


def test_tables_have_a_row_for_each_level_and_are_divided_where_the_terminal_is_narrow(tmp_path: Path):
    grid = {"student.model": ["resnet8", "resnet14"], **STUDY["grid"]}
    values = {"resnet8": {"alone": 60, "taught by nobody": 62.5}}
    plan = plan_of(tmp_path, grid=grid, paper={"source": "a paper", "values": values})
    status = Status(dict.fromkeys(plan.jobs, "done"))
    for number, name in enumerate(plan.jobs):
        leave(plan, name, [50.0 + number, 40.0 + number])
    table = read_table(plan, status)
    wide = result_tables(table, 200)
    assert [str(one.title) for one in wide] == ["Two ways: resnet8", "Two ways: resnet14"]
    console = shown_on(200)
    for one in wide:
        console.print(one)
    row = next(line for line in written(console).splitlines() if "taught by nobody" in line)
    assert row.split() == [
        "taught", "by", "nobody", "2/2", "42.50", "±", "0.71", "+2.00", "[-1.04,", "+5.04]", "62.50", "(+2.50)",
        "52.50", "±", "0.71", "1:15", "min", "1.5", "GiB", "0.25", "ms", "78,042",
    ]  # fmt: skip
    narrow = shown_on(80)
    divided = result_tables(table, 80)
    assert len(divided) == 4
    for one in divided:
        narrow.print(one)
    lines = written(narrow).splitlines()
    assert max(map(len, lines)) <= 80
    for whole in (
        r"2/2 +42\.50 ± 0\.71 +\+2\.00 \[-1\.04, \+5\.04\] +62\.50 \(\+2\.50\)",
        r"1\.5 GiB +0\.25 ms +78,042",
    ):
        assert any(re.search(whole, line) for line in lines), "no number is cut"
