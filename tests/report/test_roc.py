"""The curves of true over false accepts."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.task_runs import write_task_run
from tests.report.test_sections import section

from potstill.errors import RunError
from potstill.report.blocks import Figure
from potstill.report.compose import compose
from potstill.report.reading import read_run
from potstill.report.roc import Roc, read_roc, roc


def test_a_run_without_curves_has_none(tmp_path: Path):
    assert read_roc(tmp_path) == {}


def test_rates_are_put_in_order_and_a_rate_of_none_is_left_out(tmp_path: Path):
    curve = {"far": [1e-1, 0, 1e-3], "tar": [0.9, 0.2, 0.5]}
    (tmp_path / "roc.json").write_text(json.dumps({"teacher": curve, "stranger": curve}))
    assert read_roc(tmp_path) == {"teacher": Roc((1e-3, 1e-1), (0.5, 0.9))}


def test_the_axis_is_logarithmic_and_the_words_have_the_numbers(tmp_path: Path):
    page = compose([read_run(write_task_run(tmp_path / "run", "faces"))])
    (figure,) = [block for block in section(page, "roc") if isinstance(block, Figure)]
    assert [trace["name"] for trace in figure.data] == ["student", "control", "teacher"]
    assert figure.layout["xaxis"]["type"] == "log"
    assert list(figure.data[0]["x"]) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert list(figure.data[0]["y"]) == [60.0, 70.0, 80.0, 90.0, 100.0]
    assert "teacher 80.00 % at 0.0001, 90.00 % at 0.001, 100.00 % at 0.01" in figure.label


def test_a_curve_of_very_many_points_keeps_its_ends_and_its_steps():
    count = 200_000
    far = tuple((n + 1) / count for n in range(count))
    tar = tuple(0.0 if rate < 1e-3 else 0.5 for rate in far)
    (figure,) = [block for block in roc({"student": Roc(far, tar)}).blocks if isinstance(block, Figure)]
    xs, ys = figure.data[0]["x"], figure.data[0]["y"]
    assert len(xs) <= 1000
    assert (xs[0], xs[-1]) == (1 / count, 1.0)
    below = max(x for x, y in zip(xs, ys, strict=True) if not y)
    above = min(x for x, y in zip(xs, ys, strict=True) if y)
    assert 0.97e-3 < below < above < 1.03e-3
    assert len([x for x in xs if x < 1e-4]) > 15, "few pairs, but two decades of the axis"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "it is no valid JSON"),
        ("[]", "it holds a list"),
        ('{"student": []}', "student needs two lists of one length"),
        ('{"student": {"far": [0.1]}}', "student needs two lists of one length"),
        ('{"student": {"far": [0.1], "tar": [0.1, 0.2]}}', "student needs two lists of one length"),
        ('{"student": {"far": [0.1], "tar": [90]}}', "student has the rate 90, expected numbers from 0 to 1"),
        ('{"student": {"far": [null], "tar": [0.1]}}', "student has the rate None"),
        ('{"student": {"far": [true], "tar": [0.1]}}', "student has the rate True"),
        ('{"student": {"far": [NaN], "tar": [0.1]}}', "student has the rate nan"),
        ('{"teacher": {"far": [0.1], "tar": [""]}}', "teacher has the rate "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: Any, sentence: str):
    (tmp_path / "roc.json").write_text(content)
    with pytest.raises(RunError) as raised:
        read_roc(tmp_path)
    assert "roc.json is damaged: " in str(raised.value)
    assert sentence in str(raised.value)
