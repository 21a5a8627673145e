"""What each task is judged by."""

import math
from typing import get_args

import pytest

from potstill.config import Recipe
from potstill.headline import HEADLINES, headline_for, headline_of, is_accuracy
from potstill.procedures.outcome import best_epoch
from potstill.tracking.values import epoch_values


def test_every_task_of_a_recipe_has_one():
    assert set(HEADLINES) == set(get_args(Recipe.model_fields["task"].annotation))
    assert len({one.key for one in HEADLINES.values()}) == len(HEADLINES)


def test_a_recipes_task_goes_before_what_its_rows_have():
    assert headline_for({"task": "detection"}, [{"top1": 50.0}]).key == "ap"
    assert headline_for({"task": ["no", "task"]}, [{"miou": 50.0}]).key == "miou"
    assert headline_for({}).key == "top1"


def test_rows_by_name_and_rows_in_a_list_are_both_looked_through():
    assert headline_of({"teacher": {"bytes": 3}, "student": {"tar": 3.0}}).key == "tar"
    assert headline_of([{"val_loss": 1.0}, {"ap": 3.0}]).key == "ap"
    assert headline_of({}).key == "top1"


def test_values_that_are_no_numbers_are_left_out():
    row = {"ap": math.nan, "ap50": 30.0, "ap75": None, "ap_small": "x"}
    assert HEADLINES["detection"].values(row) == [("ap50", 30.0)]
    assert HEADLINES["classification"].further([]) == ["top5"]


def test_keys_of_losses_and_costs_are_no_accuracies():
    others = ("ap_pefd", "task", "at", "topology", "targets", "accuracy_x", "val_loss", "bytes", "seconds", "total")
    assert [key for key in others if is_accuracy(key)] == []
    assert all(is_accuracy(key) for key in ("top5", "ap75", "pixel_accuracy", "tpir_1e-2", "rank5", "accuracy"))


def test_the_best_epoch_is_by_the_tasks_own_value_and_passes_over_what_is_none():
    history = [{"epoch": 1, "miou": math.nan}, {"epoch": 2, "miou": 40.0}, {"epoch": 3, "miou": 40.0}, {"epoch": 4}]
    assert best_epoch(history) == {"epoch": 2, "miou": 40.0}
    assert best_epoch([{"epoch": 1, "miou": math.nan}]) is None


@pytest.mark.parametrize("key", ["ap", "ap_small", "miou", "pixel_accuracy", "tar", "tar_1e-3"])
def test_trackers_group_the_values_of_every_task_by_one_name(key: str):
    assert epoch_values({"epoch": 1, "step": 4, key: 30.0, "task": 1.5}) == {
        "epoch": 1.0, f"accuracy/{key}": 30.0, "epoch/task": 1.5,
    }  # fmt: skip
