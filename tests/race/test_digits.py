"""The shipped race on the handwritten digits, at its full length, under the demo's teacher."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.procedures.demo import demo_recipe
from potstill.race.file import load_race

RACE = Path(__file__).parents[2] / "races" / "digits.yaml"

# Top-1 % after all nine epochs of all six, which the race saves: the full grid, with the seeds 0, 1 and 2.
FULL_GRID = {
    "resnet8-alone": (90.1, 93.4, 92.7),
    "resnet8-kd": (82.7, 85.4, 82.6),
    "resnet8-pefd": (85.6, 88.1, 89.2),
    "wrn_16_1-kd": (87.0, 90.8, 73.8),
    "resnet14-kd": (95.3, 94.2, 94.8),
    "resnet8x4-kd": (96.8, 97.1, 97.4),
}


def test_the_shipped_race_is_one_of_six_for_at_most_half_the_epochs():
    race = load_race(RACE)
    assert [entry.name for entry in race.entries] == list(FULL_GRID)
    assert race.recipe.epochs == 9


def known_best() -> str:
    """The best of the full grid, which is the same for each seed."""
    (best,) = {max(FULL_GRID, key=lambda name: FULL_GRID[name][seed]) for seed in range(3)}
    return best


@pytest.mark.long
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
    assert record["winner"] == known_best()
    assert record["epochs"]["full"] == 54
    assert record["epochs"]["spent"] <= 27
    assert [(rung["epoch"], len(rung["top1"])) for rung in record["rungs"]] == [(2, 6), (6, 2), (9, 1)]
