"""The shipped race on the handwritten digits, at its full length, under the demo's teacher."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.procedures.demo import demo_recipe
from potstill.race.file import load_race

RACE = Path(__file__).parents[2] / "races" / "digits.yaml"

# Top-1 % after all nine epochs of all six, which races/digits.yaml saves: the full grid, by three seeds.
FULL_GRID: dict[str, tuple[float, ...]] = {}


def test_the_shipped_race_is_one_of_six_for_at_most_half_the_epochs():
    race = load_race(RACE)
    assert [entry.name for entry in race.entries] == list(FULL_GRID)
    assert race.recipe.epochs == 9


@pytest.mark.slow
def test_the_race_finds_the_known_best_with_at_most_half_the_epochs(tmp_path: Path):
    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "device=cpu", "precision=fp32", "log.report=false"])
        assert result.exit_code == 0, result.output
        return result.stdout

    demo = demo_recipe()
    assert demo.teacher is not None
    teacher = (f"student.model={demo.teacher.model}", "data.val_fraction=0.5", "schedule.name=onecycle")
    call("train", *teacher, f"epochs={2 * demo.epochs}", f"run={tmp_path / 'teacher'}")
    values = (f"teacher.weights={tmp_path / 'teacher'}", f"run={tmp_path / 'race'}", "--json")
    record = json.loads(call("race", str(RACE), *values))
    best = max(FULL_GRID, key=lambda name: sum(FULL_GRID[name]))
    assert record["winner"] == best
    assert record["epochs"]["full"] == 54
    assert record["epochs"]["spent"] <= 27
    assert [(rung["epoch"], len(rung["top1"])) for rung in record["rungs"]] == [(2, 6), (6, 2), (9, 1)]
