"""What the sections of a report say of a run, and what they say is missing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.report.blocks import Block, Cards, Code, Figure, Fold, Grid, Note, Page, Part, Table, Tabs, Text
from potstill.report.comparison import grouped, run_names
from potstill.report.compose import compose
from potstill.report.maps import layouts, shared_neighbours
from potstill.report.numbers import MINUS
from potstill.report.provenance import changed
from potstill.report.reading import read_run
from potstill.report.verdict import against


def inside(blocks: Any) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Grid | Part | Fold):
            yield from inside(block.blocks)
        elif isinstance(block, Tabs):
            for _, inner in block.tabs:
                yield from inside(inner)


def section(page: Page, name: str) -> list[Block]:
    return list(inside(next(part.blocks for part in page.sections if part.name == name)))


def words(blocks: list[Block]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, Text | Note | Code))


def resolved(value: Any) -> Any:
    """A figure's values as the page draws them: a colour in the place of the style's variable."""
    if isinstance(value, str):
        return "#123456" if value.startswith("var(") else value
    if isinstance(value, dict):
        return {key: resolved(inner) for key, inner in value.items()}
    return [resolved(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_the_sections_come_in_the_order_of_what_is_asked_first(run: Path):
    names = [part.name for part in compose([read_run(run)]).sections]
    assert names == ["verdict", "curves", "measures", "classes", "confusions", "map", "time", "recipe"]


def test_every_figure_is_one_that_plotly_knows(run: Path, make_run: Callable[..., Path], tmp_path: Path):
    graphs = pytest.importorskip("plotly.graph_objects")
    other = make_run(tmp_path / "other", seed=1)
    figures = [
        figure
        for runs in ([run], [run, other])
        for part in compose([read_run(one) for one in runs]).sections
        for figure in inside(part.blocks)
        if isinstance(figure, Figure)
    ]
    assert len(figures) > 40
    for figure in figures:
        graphs.Figure(data=resolved(figure.data), layout=resolved(figure.layout))  # refuses what it does not know
        assert figure.label.strip(), figure.title


def test_the_verdict_has_the_paired_difference_of_the_same_images(run: Path):
    record = read_run(run)
    found = against(record, "control")
    assert found is not None
    assert record.control is not None
    expected = record.rows["student"]["top1"] - record.control.rows["student"]["top1"]
    assert found.interval.value == pytest.approx(expected)
    assert "the same 600 validation images" in found.how
    assert "seed would change is not in it" in found.how
    blocks = section(compose([record]), "verdict")
    first = next(block for block in blocks if isinstance(block, Text)).text
    assert first.startswith(f"The student is {expected:.2f} points better than the same network trained without")
    cards = {card.label: card.value for block in blocks if isinstance(block, Cards) for card in block.cards}
    assert cards["Against the control"] == f"+{expected:.2f} points"
    assert cards["Parameters"] == "83.9 k"


def test_a_difference_that_may_be_none_is_called_so(tmp_path: Path, make_run: Callable[..., Path]):
    page = compose([read_run(make_run(tmp_path / "run", gain=0.0, images=200))])
    assert "No clear difference to the same network trained without the teacher" in words(section(page, "verdict"))
    cards = [c for b in section(page, "verdict") if isinstance(b, Cards) for c in b.cards]
    assert not [card for card in cards if card.tone]


def test_without_the_predictions_the_interval_is_the_wider_one_and_says_so(
    tmp_path: Path, make_run: Callable[..., Path], run: Path
):
    record = read_run(make_run(tmp_path / "run", predictions=False))
    wider, paired = against(record, "control"), against(read_run(run), "control")
    assert wider is not None
    assert paired is not None
    assert wider.interval.value == pytest.approx(paired.interval.value)
    assert wider.interval.high - wider.interval.low > paired.interval.high - paired.interval.low
    assert "Newcombe's" in wider.how
    assert "wider than it had to be" in wider.how


def test_controls_of_other_images_are_not_paired(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run")
    make_run(tmp_path / "other", images=500)
    file = "control/predictions.safetensors"
    (folder / file).write_bytes((tmp_path / "other" / file).read_bytes())
    found = against(read_run(folder), "control")
    assert found is not None
    assert "Newcombe's" in found.how


def test_a_run_without_a_control_says_what_cannot_be_said(tmp_path: Path, make_run: Callable[..., Path]):
    page = compose([read_run(make_run(tmp_path / "run", control=False))])
    assert "There is no control, so nothing here says what the teacher is worth" in words(section(page, "verdict"))


def test_an_old_run_is_told_as_far_as_it_goes(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", predictions=False, control=False)
    result = json.loads((folder / "result.json").read_text())
    del result["times"]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("epoch,step,lr,ce,pefd,total,seconds,top1\n1,4,0.1,2,0.1,4.5,3,50\n")
    page = compose([read_run(folder)])
    assert "The run has no account of where its time went" not in words(section(page, "time"))  # the steps' rows tell
    (folder / "steps.jsonl").unlink()
    page = compose([read_run(folder)])
    assert "no account of where its time went" in words(section(page, "time"))
    assert "were not measured while the run trained: log.measures=true" in words(section(page, "measures"))
    for name in ("classes", "confusions"):
        assert "There are no predictions of the validation images" in words(section(page, name))
    assert "There is no map: the run kept no embeddings" in words(section(page, "map"))


def test_a_run_that_has_not_begun_has_a_page_all_the_same(tmp_path: Path, make_run: Callable[..., Path]):
    page = compose([read_run(make_run(tmp_path / "run", epochs=0, planned=5, finished=False, control=False))])
    assert "0 of 5 epochs are done" in page.banner
    assert "There is no accuracy: no evaluation is done yet." in words(section(page, "verdict"))
    assert "its first epoch is not done" in words(section(page, "curves"))


def test_each_measure_has_a_sentence_on_how_to_read_it(run: Path):
    figures = [b for b in section(compose([read_run(run)]), "measures") if isinstance(b, Figure)]
    titles = [figure.title for figure in figures]
    assert titles[:2] == ["Direction alignment, M_DA", "Between-class similarity, M_BC"]
    assert "Distance of two projectors of pefd" in titles
    assert all(figure.reading.endswith(".") for figure in figures)
    assert "student from 0.8167 to 0.4" in figures[0].label


def test_gains_and_losses_per_class_are_counted(tmp_path: Path, make_run: Callable[..., Path]):
    record = read_run(make_run(tmp_path / "run", classes=["a", "b", "c"], images=90))
    outputs, control = record.outputs, record.control.outputs if record.control else None
    assert outputs is not None
    assert control is not None
    blocks = section(compose([record]), "classes")
    table = next(block for block in blocks if isinstance(block, Table))
    for k, row in enumerate(table.rows):
        mask = outputs.label == k
        ours, theirs = (100 * one.student_right[mask].mean() for one in (outputs, control))
        assert row[:4] == ["abc"[k], str(mask.sum()), f"{ours:.2f} %", f"{theirs:.2f} %"]
        assert row[4].replace(MINUS, "-") == (f"{ours - theirs:+.2f}" if abs(ours - theirs) > 0.005 else "0.00")


def test_confusions_are_counted_for_all_networks(tmp_path: Path, make_run: Callable[..., Path]):
    names = ["a", "b", "c", "d"]
    record = read_run(make_run(tmp_path / "run", classes=names))
    assert record.outputs is not None
    assert record.outputs.teacher is not None
    table = next(b for b in section(compose([record]), "confusions") if isinstance(b, Table))
    label, student = record.outputs.label, record.outputs.student
    k = names.index(table.rows[0][0])
    wrong = (label == k) & (student == (k + 1) % len(names))
    assert table.rows[0][1] == names[(k + 1) % len(names)]
    assert int(table.rows[0][3]) == wrong.sum()
    teacher = (label == k) & (record.outputs.teacher == (k + 1) % len(names))
    assert int(table.rows[0][5]) == teacher.sum()


def test_the_two_maps_are_the_same_where_the_embeddings_are():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 6)) + 6 * rng.integers(0, 3, (60, 1))
    ours, theirs = layouts(points, points)
    again, _ = layouts(points, points)
    assert theirs is not None
    assert np.array_equal(ours, again)
    assert np.corrcoef(ours[:, 0], theirs[:, 0])[0, 1] > 0.8  # not mirrored, not turned
    assert np.abs(ours).max() == pytest.approx(1)


def test_neighbours_of_unrelated_points_are_shared_by_chance_only():
    rng = np.random.default_rng(0)
    assert shared_neighbours(rng.normal(size=(200, 5)), rng.normal(size=(200, 5))) < 15


def test_a_recipe_differs_from_the_defaults_where_it_was_changed():
    recipe = {"epochs": 240, "teacher": {"weights": "runs/t", "fold": True}, "gone": 3, "data": {"size": 32}}
    assert changed(recipe) == [("teacher.weights", "runs/t", None), ("gone", 3, None), ("data.size", 32, None)]


def test_commands_are_quoted_for_a_shell(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "a run; true", control=False)
    told = words(section(compose([read_run(folder)]), "recipe"))
    assert f"potstill evaluate '{folder}'" in told
    assert f"potstill distill '{folder}/recipe.yaml' 'run={folder}-again'" in told


def test_runs_that_differ_in_their_seed_are_one_recipe(tmp_path: Path, make_run: Callable[..., Path]):
    kd = {"ce": 1.0, "kd": {"weight": 0.9, "temperature": 4}}
    folders = [make_run(tmp_path / f"pefd-{seed}", seed=seed) for seed in (1, 2, 3)]
    folders += [make_run(tmp_path / f"kd-{seed}", seed=seed, objective=kd, gain=-0.1) for seed in (1, 2, 3)]
    runs = [read_run(folder) for folder in folders]
    assert grouped(runs) == [[0, 1, 2], [3, 4, 5]]
    assert run_names(runs) == ["pefd-1", "pefd-2", "pefd-3", "kd-1", "kd-2", "kd-3"]
    page = compose(runs)
    assert page.title == "6 runs compared"
    tables = [block for block in section(page, "verdict") if isinstance(block, Table)]
    gains = [one.rows["student"]["top1"] - one.rows["control"]["top1"] for one in runs[:3]]
    row = tables[1].rows[0]
    assert row[:2] == ["pefd-1 and 2 more", "3"]
    assert row[4] == f"+{np.mean(gains):.2f}"
    half = 4.302653 * np.std(gains, ddof=1) / np.sqrt(3)
    low, high = (np.mean(gains) + sign * half for sign in (-1, 1))
    assert row[5].replace(MINUS, "-") == f"{low:+.2f} to {high:+.2f}"
    assert tables[1].rows[1][8] == "3 pairs of one seed"


def test_one_seed_twice_is_not_two_seeds(tmp_path: Path, make_run: Callable[..., Path]):
    runs = [read_run(make_run(tmp_path / name, seed=1)) for name in ("a", "b")]
    table = [block for block in section(compose(runs), "verdict") if isinstance(block, Table)][1]
    assert table.rows[0][1] == "1"
    assert table.rows[0][3] == "-"


def test_runs_of_other_data_are_not_compared_without_a_word(tmp_path: Path, make_run: Callable[..., Path]):
    folders = [make_run(tmp_path / name, control=False) for name in ("a", "b")]
    result = json.loads((folders[1] / "result.json").read_text())
    result["data"]["identity"] = "beef"
    (folders[1] / "result.json").write_text(json.dumps(result))
    told = words(section(compose([read_run(folder) for folder in folders]), "verdict"))
    assert "not all on the same data" in told


def test_what_newer_runs_tell_of_themselves_is_shown(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", control=False, predictions=False)
    result = json.loads((folder / "result.json").read_text())
    more = {
        "memory": 3 << 30,
        "device": "<b>cpu</b>",
        "best": {"epoch": 4, "top1": 99.5},
        "begun": "2026-01-02T03:04:05",
    }
    (folder / "result.json").write_text(json.dumps(result | more | {"teacher": {"model": "wrn_16_2"}}))
    page = compose([read_run(folder)])
    assert page.title == "resnet8 from wrn_16_2"
    assert "At its peak it took 3.0 GiB of memory on <b>cpu</b>." in words(section(page, "time"))
    assert "Epoch 4 was the best one, with 99.50 %. The last one counts here" in words(section(page, "verdict"))
    rows = [row for block in section(page, "recipe") if isinstance(block, Table) for row in block.rows]
    assert ["begun", "2026-01-02T03:04:05"] in rows
