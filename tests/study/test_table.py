import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import RecipeError
from potstill.study import Plan, Reader, Status, difference, read_table

Planned = Callable[..., Plan]
PAPER = {"source": "a paper, table 1", "values": {"alone": 70.0, "KD": 72.5}}


def finish(plan: Plan, values: dict[tuple[str, int], Any], **more: Any) -> Status:
    """Leave what runs leave, for some cells by level and seed; the accuracies of their epochs, the last one last."""
    states = dict.fromkeys(plan.jobs, "waiting")
    for cell in plan.cells:
        history = values.get((cell.levels["method"], cell.seed))
        if history is not None:
            write(plan.jobs[cell.job].folder, history, **more)
            states[cell.job] = "done"
    return Status(states)


def write(folder: Path, history: list[Any], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["epoch,top1,loss", *(f"{n},{'' if v is None else v},0.5" for n, v in enumerate(history, 1))]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    student = {"top1": history[-1], "latency_ms": 0.5, "parameters": 1000}
    result = {
        "rows": {"student": student, "teacher": {"top1": 80.0, "parameters": 9000}},
        "epochs": len(history), "seconds": 10.0, "times": {"teacher": 2.0, "student": 6.0}, "memory": 2**30,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | more))


def test_means_and_differences_are_over_seeds_of_last_and_best_epochs(planned: Planned):
    plan = planned(paper=PAPER)
    values = {("alone", 1): [50.0, 49.0], ("alone", 2): [48.0, 51.0], ("KD", 1): [55.0, 56.0], ("KD", 2): [58.0, 54.0]}
    table = read_table(plan, finish(plan, values))
    alone, kd = table.entries
    assert (alone.last.mean, alone.last.count, alone.best.mean) == (50.0, 2, 50.5)
    assert alone.last.deviation == pytest.approx(2**0.5)
    assert (alone.control, alone.difference, alone.paper, alone.paper_difference) == (True, None, 70.0, None)
    assert (kd.last.mean, kd.best.mean) == (55.0, 57.0)
    assert kd.difference == difference([56.0, 54.0], [49.0, 51.0])
    assert (kd.control, kd.paper, kd.paper_difference) == (False, 72.5, 2.5)
    assert table.paper == {"source": "a paper, table 1", "note": ""}
    assert (kd.mean("seconds"), kd.mean("teacher_share"), kd.mean("memory")) == (10.0, 0.25, 2**30)
    assert (kd.mean("latency_ms"), kd.mean("parameters"), kd.mean("nothing")) == (0.5, 1000.0, None)
    assert table.teachers == {"large": {"top1": 80.0, "parameters": 9000}}
    assert (table.rows, table.columns, table.title, table.failed) == ("method", [""], "small", [])


def test_the_control_is_that_of_the_same_other_levels(planned: Planned):
    smooth = {"objective": {"ce": {"weight": 1, "label_smoothing": 0.1}}}
    grid = {"method": {"alone": {"objective": {"ce": 1}}, "smooth": smooth}, "optimizer.lr": [0.1, 0.2]}
    plan = planned(grid=grid, teachers={}, skip=[{"method": "alone", "optimizer.lr": "0.2"}])
    status = Status(dict.fromkeys(plan.jobs, "done"))
    for number, cell in enumerate(plan.cells):
        write(plan.jobs[cell.job].folder, [10.0 * number])
    table = read_table(plan, status)
    assert [(entry.levels["method"], entry.levels["optimizer.lr"]) for entry in table.entries] == [
        ("alone", "0.1"), ("smooth", "0.1"), ("smooth", "0.2"),
    ]  # fmt: skip
    assert table.columns == ["0.1", "0.2"]
    assert table.entries[1].difference.mean == pytest.approx(20.0)
    assert table.entries[2].difference is None, "its control was left out"


def test_a_cell_without_results_is_in_the_table_as_it_is(planned: Planned):
    plan = planned()
    status = finish(plan, {("KD", 1): [60.0]})
    failed = next(cell.job for cell in plan.cells if cell.levels["method"] == "alone")
    status.states[failed], status.reasons[failed] = "failed", "no luck"
    table = read_table(plan, status)
    alone, kd = table.entries
    assert (alone.last, alone.best, kd.difference) == (None, None, None)
    assert [(run.state, run.reason) for run in alone.runs] == [("failed", "no luck"), ("waiting", None)]
    assert [(run.state, run.last) for run in kd.runs] == [("done", 60.0), ("waiting", None)]
    assert (kd.last.mean, kd.last.deviation, kd.last.count) == (60.0, None, 1)
    assert [(entry.levels["method"], run.seed) for entry, run in table.failed] == [("alone", 1)]


def test_a_single_seed_has_a_difference_without_an_interval(planned: Planned):
    plan = planned(seeds=[1])
    found = read_table(plan, finish(plan, {("alone", 1): [50.0], ("KD", 1): [53.0]})).entries[1].difference
    assert (found.mean, found.low, found.high) == (3.0, None, None)


def test_accuracies_that_are_no_numbers_count_as_none(planned: Planned):
    plan = planned()
    values = {("alone", 1): [40.0, "nan"], ("alone", 2): ["nan", 50.0], ("KD", 1): [None, 60.0, None]}
    status = finish(plan, values)
    for cell in plan.cells:  # NaN is null in a result
        path = plan.jobs[cell.job].folder / "result.json"
        if path.exists():
            path.write_text(path.read_text().replace('"nan"', "null"))
    table = read_table(plan, status)
    alone, kd = table.entries
    assert [run.last for run in alone.runs] == [None, 50.0]
    assert [run.best for run in alone.runs] == [40.0, 50.0]
    assert (kd.runs[0].last, kd.runs[0].best) == (None, 60.0)


def test_without_labels_there_is_nothing_to_compare(planned: Planned):
    plan = planned()
    assert not read_table(plan, Status(dict.fromkeys(plan.jobs, "waiting"))).incomparable
    values = {("alone", 1): [1.0], ("alone", 2): [1.0], ("KD", 1): [1.0], ("KD", 2): [1.0]}
    rows = {"student": {"val_total": 0.3, "parameters": 1000}}
    assert not read_table(plan, finish(plan, values)).incomparable
    table = read_table(plan, finish(plan, values, rows=rows))
    assert table.incomparable
    assert table.entries[1].mean("parameters") == 1000.0


def test_one_job_of_two_cells_is_shown_in_both(planned: Planned):
    same = {"objective": {"ce": 1}}
    plan = planned(grid={"method": {"alone": same, "the same": same}}, teachers={})
    table = read_table(plan, finish(plan, {("alone", 1): [50.0], ("alone", 2): [52.0]}))
    first, second = table.entries
    assert [(run.seed, run.last) for run in first.runs] == [(run.seed, run.last) for run in second.runs] == [
        (1, 50.0), (2, 52.0),
    ]  # fmt: skip
    assert second.difference.mean == 0.0


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("result.json", b"{", "result.json is damaged"),
        ("result.json", b'{"rows": {}}', "has no row of the student"),
        ("metrics.csv", b"epoch,top1\n1,high\n", "metrics.csv is damaged"),
        ("metrics.csv", b"epoch,top1\n1,\xff\xfe\n", "metrics.csv is damaged"),
    ],
)
def test_a_damaged_file_is_a_failed_cell(planned: Planned, file: str, content: bytes, expected: str):
    plan = planned()
    status = finish(plan, {("alone", 1): [50.0], ("alone", 2): [51.0]})
    (plan.jobs[plan.cells[0].job].folder / file).write_bytes(content)
    broken, whole = read_table(plan, status).entries[0].runs
    assert broken.state == "failed"
    assert expected in broken.reason
    assert whole.last == 51.0


def test_files_with_less_in_them_are_read_as_far_as_they_go(planned: Planned):
    plan = planned()
    status = finish(plan, {("alone", 1): [50.0]})
    folder = plan.jobs[plan.cells[0].job].folder
    (folder / "result.json").write_text('{"rows": {"student": {"top1": 50.0}}}')
    (folder / "metrics.csv").unlink()
    run = read_table(plan, status).entries[0].runs[0]
    assert (run.last, run.best, run.seconds, run.teacher_share, run.memory) == (50.0, None, None, None, None)


def test_only_runs_that_go_on_are_read_again(planned: Planned, monkeypatch: pytest.MonkeyPatch):
    plan = planned(seeds=list(range(250)))
    status = Status(dict.fromkeys(plan.jobs, "waiting"))
    going = plan.jobs[plan.cells[0].job]
    status.states[going.name] = "running"
    write(going.folder, [10.0])
    (going.folder / "result.json").unlink()
    reader = Reader(plan)
    first = reader.read(status)
    assert (len(plan.cells), first.entries[0].runs[0].epoch) == (500, 1)
    looks = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (looks.append(path), stat(path, *a, **k))[1])
    began = time.process_time()
    for _ in range(20):
        assert reader.read(status) is first
    assert {Path(path).parent for path in looks} == {going.folder}
    assert time.process_time() - began < 1.0
    monkeypatch.undo()
    time.sleep(0.01)
    write(going.folder, [10.0, 20.0])
    assert reader.read(status).entries[0].runs[0].last == 20.0
    status.states[going.name] = "done"
    assert reader.read(status).entries[0].runs[0].state == "done"


def tasked(plan: Plan, *tasks: str) -> Plan:
    """The plan with the tasks given, to its cells in turn."""
    names = [cell.job for cell in plan.cells]
    jobs = {
        name: replace(job, recipe=job.recipe.model_copy(update={"task": tasks[names.index(name) % len(tasks)]}))
        if name in names
        else job
        for name, job in plan.jobs.items()
    }
    return replace(plan, jobs=jobs)


def test_the_metric_is_the_headline_of_the_runs_task(planned: Planned):
    plan = tasked(planned(), "detection")
    status = finish(plan, {("alone", 1): [1.0]})
    folder = plan.jobs[plan.cells[0].job].folder
    (folder / "metrics.csv").write_text("epoch,ap,top1\n1,30.0,1\n2,29.0,2\n")
    (folder / "result.json").write_text('{"rows": {"student": {"ap": 29.0, "top1": 2}, "teacher": {"ap": 40.0}}}')
    table = read_table(plan, status)
    assert (table.metric, table.headline.short) == ("ap", "AP")
    run = table.entries[0].runs[0]
    assert (run.last, run.best, run.teacher_row) == (29.0, 30.0, {"ap": 40.0})
    assert not table.incomparable
    assert read_table(plan, status, "top1").entries[0].last.mean == 2.0


def test_runs_of_several_tasks_are_no_table(planned: Planned):
    plan = tasked(planned(), "detection", "classification")
    with pytest.raises(RecipeError, match="has runs of several tasks \\(classification, detection\\)"):
        Reader(plan)
