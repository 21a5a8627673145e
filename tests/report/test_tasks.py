"""The report of detection, segmentation and faces: by the task's own value, with what only that task has."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.task_runs import DETECTION, HOSTILE, write_task_run
from tests.report.test_sections import section, words

from potstill.errors import RunError
from potstill.report import write_report
from potstill.report.blocks import Cards, Figure, Table
from potstill.report.compose import compose
from potstill.report.numbers import MINUS
from potstill.report.reading import read_run
from potstill.report.statistics import mean_interval
from potstill.report.verdict import against

TASKS = ("detection", "segmentation", "faces")


@pytest.mark.parametrize(
    ("task", "own"), [("detection", ["classes", "pictures"]), ("segmentation", ["classes", "pictures"]),
                      ("faces", ["roc"])],
)  # fmt: skip
def test_a_task_has_the_sections_that_say_something_of_it(tmp_path: Path, task: str, own: list[str]):
    page = compose([read_run(write_task_run(tmp_path / "run", task))])
    assert [part.name for part in page.sections] == ["verdict", "curves", *own, "time", "recipe"]


@pytest.mark.parametrize(("task", "short", "value"), [("detection", "AP", 33.5), ("segmentation", "mIoU", 63.5),
                                                      ("faces", "TAR", 73.0)])  # fmt: skip
def test_the_verdict_is_by_the_tasks_value_and_claims_no_interval(tmp_path: Path, task: str, short: str, value: float):
    record = read_run(write_task_run(tmp_path / "run", task))
    found = against(record, "control")
    assert found is not None
    assert (found.value, found.interval) == (2.0, None)
    blocks = section(compose([record]), "verdict")
    said = words(blocks)
    assert f"The student is 2.00 points of {short} better than the same network trained without the teacher" in said
    assert f"It is 5.00 points of {short} below its teacher, and 3.4 times smaller." in said
    assert f"The differences have no interval: {short} is no part of the images" in said
    assert "95 %" not in said
    cards = {card.label: card for block in blocks if isinstance(block, Cards) for card in block.cards}
    assert cards[f"Student, {short}"].value == f"{value:.2f} %"
    assert (cards["Against the control"].value, cards["Against the control"].detail) == ("+2.00 points", "")
    assert not [card for card in cards.values() if card.tone]
    assert not [block for block in blocks if isinstance(block, Figure)]
    assert "top-1" not in said.lower()


def test_further_values_are_columns_and_one_that_nobody_has_is_empty(tmp_path: Path):
    page = compose([read_run(write_task_run(tmp_path / "run", "detection"))])
    table = next(block for block in section(page, "verdict") if isinstance(block, Table))
    assert [column.name for column in table.columns[2:8]] == ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    assert table.rows[0][2:8] == ["33.50 %", "57.25 %", "32.00 %", "-", "35.00 %", "42.00 %"]


def test_rates_that_a_protocol_adds_are_columns_too(tmp_path: Path):
    table = next(
        block
        for block in section(compose([read_run(write_task_run(tmp_path / "run", "faces"))]), "verdict")
        if isinstance(block, Table)
    )
    heads = [column.name for column in table.columns[2:7]]
    assert heads == ["TAR", "Accuracy", "TAR at 1e-1", "TAR at 1e-2", "TAR at 1e-3"]


def test_every_value_and_every_loss_has_a_curve(tmp_path: Path):
    figures = [b for b in section(compose([read_run(write_task_run(tmp_path / "run", "detection"))]), "curves")
               if isinstance(b, Figure)]  # fmt: skip
    titles = [figure.title for figure in figures]
    assert titles[0] == "Average precision (COCO)"
    assert "student from 8.375 to 33.5 %; control from 7.875 to 31.5 %; teacher 38.5 %" in figures[0].label
    assert len([title for title in titles if title.startswith("Average precision")]) == len(DETECTION)
    losses = ["task", "pefd", "loss_box", "loss_classes", "Total, weights applied"]
    assert titles[len(DETECTION) : len(DETECTION) + len(losses)] == losses


def test_classes_gain_and_lose_by_their_own_values(tmp_path: Path):
    record = read_run(write_task_run(tmp_path / "run", "detection"))
    blocks = section(compose([record]), "classes")
    assert "Of 3 classes, 3 gain and 0 lose against the control." in words(blocks)
    assert "Of 3 classes, 0 gain and 3 lose against the teacher." in words(blocks)
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.caption == "AP of each class"
    assert [column.name for column in table.columns] == ["Class", "Student", "Control", "Change", "Teacher", "Change"]
    assert table.rows[1] == ["WBC", "36.50 %", "34.50 %", "+2.00", "50.00 %", f"{MINUS}13.50"]
    assert "seen nowhere" not in [row[0] for row in table.rows], "it has no value"


def test_an_intersection_is_named_as_that_of_one_class(tmp_path: Path):
    blocks = section(compose([read_run(write_task_run(tmp_path / "run", "segmentation"))]), "classes")
    assert next(block for block in blocks if isinstance(block, Table)).caption == "IoU of each class"


def test_a_control_in_the_result_itself_is_shown_where_there_is_no_folder_of_one(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "detection", control=False)
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["per_class"]["control"] = {"WBC": 30.0}
    path.write_text(json.dumps(result))
    assert "Of 1 classes, 1 gain" in words(section(compose([read_run(folder)]), "classes"))


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_that_says_no_task_is_judged_by_what_its_rows_have(tmp_path: Path, task: str):
    record = read_run(write_task_run(tmp_path / "run", task, said=False))
    assert record.headline.key in record.rows["student"]
    assert record.headline.key != "top1"


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_is_not_finished_shows_its_last_evaluation(tmp_path: Path, task: str):
    record = read_run(write_task_run(tmp_path / "run", task, finished=False, control=False))
    assert record.rows["student"][record.headline.key] == record.epochs[-1][record.headline.key]
    said = words(section(compose([record]), "verdict"))
    assert f"The student reaches {record.rows['student'][record.headline.key]:.2f} % {record.headline.short}" in said


def test_what_was_not_kept_is_said(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "detection", control=False, finished=False)
    page = compose([read_run(folder)])
    assert "The run kept no AP of each class" in words(section(page, "classes"))
    assert "The run kept no pictures (pictures/)." in words(section(page, "pictures"))
    faces = write_task_run(tmp_path / "faces", "faces", control=False, finished=False)
    assert "The run kept no curves (roc.json)." in words(section(compose([read_run(faces)]), "roc"))


def test_a_run_that_has_not_been_evaluated_says_of_what_there_is_none(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "segmentation", finished=False, control=False)
    (folder / "metrics.csv").write_text("epoch,step,lr,task,total,seconds\n1,4,0.1,2,4.5,3\n")
    assert "There is no mIoU: no evaluation is done yet." in words(section(compose([read_run(folder)]), "verdict"))


def test_csv_has_the_tasks_own_columns(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "detection")
    text = write_report([folder], format="csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert "top1" not in rows[0]
    assert [row["ap"] for row in rows] == ["33.5", "31.5", "38.5"]
    assert (rows[1]["ap_small"], rows[1]["ap_large"]) == ("", "40.0")
    assert [row["student_less_this"] for row in rows] == ["", "2.0", "-5.0"]
    assert {row["low"] for row in rows} == {""}


def test_seeds_of_one_recipe_have_an_interval_over_seeds(tmp_path: Path):
    gains = (2.0, 3.0, 2.5)
    runs = [
        read_run(write_task_run(tmp_path / f"s{n}", "detection", seed=n, gain=gain)) for n, gain in enumerate(gains)
    ]
    page = compose(runs)
    table = [block for block in section(page, "verdict") if isinstance(block, Table)][1]
    expected = mean_interval(list(gains))
    assert expected is not None
    assert table.rows[0][:3] == ["s0 and 2 more", "3", "34.00 %"]
    assert table.rows[0][4:6] == ["+2.50", f"+{expected.low:.2f} to +{expected.high:.2f}"]
    titles = [block.title for block in section(page, "curves") if isinstance(block, Figure)]
    assert titles[:2] == ["Average precision (COCO)", "Average precision at an IoU of 0.5"]


def test_two_recipes_of_one_run_each_are_told_apart_by_no_images(tmp_path: Path):
    folders = [write_task_run(tmp_path / task, "detection", control=False, seed=seed) for seed, task in enumerate("ab")]
    path = folders[1] / "recipe.yaml"
    path.write_text(path.read_text().replace("weight: 10", "weight: 20"))
    table = [b for b in section(compose([read_run(f) for f in folders]), "verdict") if isinstance(b, Table)][1]
    assert table.rows[1][6:] == ["-", "-", ""]


def test_runs_of_two_tasks_are_not_compared(tmp_path: Path, make_run: Callable[..., Path]):
    folders = [write_task_run(tmp_path / "a", "detection"), make_run(tmp_path / "b", predictions=False)]
    with pytest.raises(RunError, match="These runs are of several tasks, judged by AP, top-1, which do not compare"):
        write_report(folders)


@pytest.mark.parametrize("task", TASKS)
def test_every_format_is_written_and_no_name_is_markup(tmp_path: Path, task: str):
    folder = write_task_run(tmp_path / "run", task)
    page = write_report([folder]).read_text(encoding="utf-8")
    ours = page[: page.index("<script>")]
    assert HOSTILE not in page
    assert (task == "faces") or "&lt;script&gt;alert(1)&lt;/script&gt;" in ours
    told = write_report([folder], format="md").read_text(encoding="utf-8")
    assert HOSTILE not in told
    if task == "detection":
        assert "001.jpg: Truth: 1 \\<script\\>alert(1)\\</script\\>, 1 WBC; Student: 1 " in told


def test_every_figure_of_every_task_is_one_that_plotly_knows(tmp_path: Path):
    graphs = pytest.importorskip("plotly.graph_objects")
    from tests.report.test_sections import inside, resolved

    figures = [
        figure
        for task in TASKS
        for part in compose([read_run(write_task_run(tmp_path / task, task))]).sections
        for figure in inside(part.blocks)
        if isinstance(figure, Figure)
    ]
    assert len(figures) > 20
    for figure in figures:
        graphs.Figure(data=resolved(figure.data), layout=resolved(figure.layout))
        assert figure.label.strip(), figure.title


def test_values_of_classes_that_are_no_table_are_named(tmp_path: Path):
    folder = write_task_run(tmp_path / "run", "detection", control=False)
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"per_class": {"student": [1, 2]}}))
    with pytest.raises(RunError, match=r"result\.json is damaged: per_class is a dict, expected values by class"):
        read_run(folder)
