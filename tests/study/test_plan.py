import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import RecipeError
from potstill.procedures.store_key import views_of
from potstill.study import Cell, Plan, load_study, plan_study
from potstill.study.laying import laid, overridden

Planned = Callable[..., Plan]
TEACH = {"teacher": "large", "objective": {"ce": 1, "pefd": 25}}


def stores(plan: Plan) -> list[str]:
    return [name for name, job in plan.jobs.items() if job.kind == "store"]


def recipe(plan: Plan, cell: Cell) -> Any:
    return plan.jobs[cell.job].recipe


def refusal(planned: Planned, *overrides: str, **keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(*overrides, **keys)
    return str(caught.value)


def test_dotted_keys_and_sections_are_laid_over_each_other_and_an_objective_is_taken_whole():
    below = {"student": {"model": "a", "args": {"depth": 1}}, "objective": {"ce": 1, "kd": 1}, "epochs": 3}
    above = {"student": {"args.width": 2}, "data.path": "x", "objective": {"pefd": 25}, "optimizer": {"lr": 0.1}}
    assert laid(below, above) == {
        "student": {"model": "a", "args": {"depth": 1, "width": 2}},
        "objective": {"pefd": 25},
        "epochs": 3,
        "data": {"path": "x"},
        "optimizer": {"lr": 0.1},
    }
    assert below["student"]["args"] == {"depth": 1}, "what lies below is left as it was"
    assert laid({"objective": {"kd": 0.9}}, {"objective.kd.temperature": 4})["objective"] == {
        "kd": {"weight": 0.9, "temperature": 4}
    }
    named = {"objective": {"package.module:Mine": 1}}
    assert laid({}, named) == named, "a method's dotted path is no section"


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ({"weights": "a", "fold": False}, "large", {"name": "large", "fold": False}),
        ({"name": "large"}, {"weights": "b"}, {"weights": "b"}),
        ({"name": "large", "size": 8}, {"precision": "fp32"}, {"name": "large", "size": 8, "precision": "fp32"}),
        ({"name": "large"}, None, None),
        (None, {"precision": "fp32"}, None),
        (None, {"weights": "b"}, {"weights": "b"}),
        (None, "large", {"name": "large"}),
    ],
)
def test_a_teacher_is_laid_over_another(below: Any, above: Any, expected: Any):
    assert laid({"teacher": below}, {"teacher": above})["teacher"] == expected
    if isinstance(above, dict):
        ((key, value),) = above.items()
        assert laid({"teacher": below}, {f"teacher.{key}": value})["teacher"] == expected


def test_the_command_line_can_name_another_teacher():
    assert overridden({"teacher": {"name": "large"}}, "teacher.weights=runs/a") == {"teacher": {"weights": "runs/a"}}
    assert overridden({"teacher": {"name": "large"}}, "teacher=small") == {"teacher": {"name": "small"}}
    assert overridden({}, "student.model=resnet20") == {"student": {"model": "resnet20"}}


def test_every_combination_is_run_with_every_seed_and_later_axes_lie_over_earlier_ones(planned: Planned):
    grid = {
        "pair": {"a": {"teacher": "large", "epochs": 2}, "b": {"teacher": "large", "student.model": "resnet14"}},
        "method": {
            "alone": {"teacher": None, "objective": {"ce": 1}, "epochs": 3},
            "PEFD": {"objective": {"pefd": 25}},
        },
        "optimizer.lr": [0.1, 0.01],
    }
    plan = planned(grid=grid, control={"method": "alone"}, skip=[{"pair": "b", "optimizer.lr": "0.01"}])
    combinations = [*itertools.product(["a", "b"], ["alone", "PEFD"], ["0.1", "0.01"], [1, 2])]
    expected = [one for one in combinations if (one[0], one[2]) != ("b", "0.01")]
    assert [(*cell.levels.values(), cell.seed) for cell in plan.cells] == expected
    for cell in plan.cells:
        made = recipe(plan, cell)
        alone = cell.levels["method"] == "alone"
        assert made.seed == cell.seed
        assert made.student.model == ("resnet8" if cell.levels["pair"] == "a" else "resnet14")
        assert made.epochs == (3 if alone else 2 if cell.levels["pair"] == "a" else 1)
        assert made.objective == ({"ce": 1.0} if alone else {"pefd": 25.0})
        assert made.optimizer.lr == float(cell.levels["optimizer.lr"])
        assert (made.teacher is None, cell.teacher) == ((True, None) if alone else (False, "large"))
        assert made.data.view_seed == 0, "the control sees the images that the stores hold"


def test_what_a_combination_has_of_its_own_lies_on_top_the_later_the_higher(planned: Planned):
    cells = [
        {"at": {"method": "KD"}, "recipe": {"objective": {"kd": 2}, "epochs": 5}},
        {"at": {"method": "KD", "student.model": "resnet14"}, "recipe": {"epochs": 6}},
    ]
    grid = {"method": {"PEFD": TEACH, "KD": TEACH}, "student.model": ["resnet8", "resnet14"]}
    plan = planned(grid=grid, cells=cells, control={}, seeds=[1])
    found = [(recipe(plan, cell).epochs, recipe(plan, cell).objective) for cell in plan.cells]
    assert found == [(1, {"ce": 1.0, "pefd": 25.0})] * 2 + [(5, {"kd": 2.0}), (6, {"kd": 2.0})]
    assert "cells {'method': 'KD'}: run: each run gets a folder" in refusal(
        planned, grid=grid, control={}, cells=[{"at": {"method": "KD"}, "recipe": {"run": "x"}}]
    )


def test_teachers_come_first_then_their_stores_then_runs(planned: Planned):
    plan = planned()
    assert [(job.name.partition(" ")[0], job.kind) for job in plan.jobs.values()] == [
        ("teacher", "run"), ("store", "store"), ("alone-seed", "run"), ("alone-seed", "run"),
        ("KD-seed", "run"), ("KD-seed", "run"),
    ]  # fmt: skip
    teacher, store, *runs = plan.jobs.values()
    assert store.after == (teacher.name,)
    assert runs[0].after == ()
    assert runs[2].after == (teacher.name, store.name)
    assert runs[2].recipe.teacher is not None
    assert (runs[2].recipe.teacher.weights, runs[2].recipe.teacher.store) == (str(teacher.folder), str(store.folder))
    assert plan.teachers == {"large": str(teacher.folder)}
    assert store.recipe.store.keep == ("logits", "embedding")


def test_only_runs_that_a_store_of_vectors_serves_read_one(planned: Planned):
    grid = {
        "method": {
            "KD": {"objective": {"kd": 1}},
            "nd": {"objective": {"ce": 1, "nd": 1}},
            "FitNets": {"objective": {"ce": 1, "fitnets": 100}},
            "AT and KD": {"objective": {"kd": 1, "at": 1000}},
            "mixed": {"objective": {"kd": 1}, "data.mixup": 0.2},
            "stages": {"objective": {"ce": 1}, "procedure": {"name": "stagewise"}},
            "the default": {"objective": {}},
        }
    }
    plan = planned(grid=grid, control={}, recipe={"epochs": 2, "teacher": "large"}, seeds=[1])
    reads = {cell.levels["method"]: recipe(plan, cell).teacher.store is not None for cell in plan.cells}
    assert reads == {
        "KD": True, "nd": True, "FitNets": False, "AT and KD": False, "mixed": False, "stages": False,
        "the default": True,
    }  # fmt: skip
    assert len(stores(plan)) == 1


def test_more_views_serve_fewer(planned: Planned):
    grid = {"method": {"KD": {"objective": {"kd": 1}}}, "epochs": [4, 8, 2]}
    plan = planned(grid=grid, control={}, recipe={"teacher": "large"}, seeds=[1])
    (name,) = stores(plan)
    assert views_of(plan.jobs[name].recipe) == 8
    assert {recipe(plan, cell).teacher.store for cell in plan.cells} == {str(plan.jobs[name].folder)}
    again = planned(grid={"method": grid["method"], "data.views": [2, 4]}, control={}, seeds=[1],
                    recipe={"teacher": "large", "epochs": 8})  # fmt: skip
    (name,) = stores(again)
    assert views_of(again.jobs[name].recipe) == 4


@pytest.mark.parametrize(
    ("axis", "count"),
    [
        ({"data.val_fraction": [0.8, 0.9]}, 2),
        ({"data.size": [8, 16]}, 2),
        ({"precision": ["fp32", "bf16"]}, 2),
        ({"precision": ["auto", "bf16"]}, 1),
        ({"teacher.precision": ["fp32", "bf16"]}, 2),
        ({"data.order_seed": [1, 2]}, 1),
        ({"optimizer.lr": [0.1, 0.2]}, 1),
        ({"batch_size": [32, 64]}, 1),
        ({"store.dtype": ["fp16", "fp32"]}, 2),
    ],
)
def test_what_the_teacher_says_depends_on_has_stores_of_its_own(planned: Planned, axis: dict[str, Any], count: int):
    plan = planned(grid={"method": {"KD": TEACH}, **axis}, control={})
    assert len(stores(plan)) == count
    assert len({plan.jobs[name].folder for name in stores(plan)}) == count
    assert len({cell.job for cell in plan.cells}) == 4


def test_what_the_study_says_of_its_stores_is_for_those_that_read_one(planned: Planned):
    plan = planned(recipe={"epochs": 1, "store": {"dtype": "fp32"}})
    kept = {cell.levels["method"]: recipe(plan, cell).store.dtype for cell in plan.cells}
    assert kept == {"alone": None, "KD": "fp32"}
    assert plan.jobs[stores(plan)[0]].recipe.store.dtype == "fp32"
    assert "unknown key 'store.dtyp'. Did you mean 'store.dtype'?" in refusal(planned, "store.dtyp=fp32").replace(
        "'dtype'", "'store.dtype'"
    )


def test_a_store_of_ones_own_is_read_as_it_is_said(planned: Planned):
    plan = planned(grid={"method": {"KD": {**TEACH, "teacher.store": "mine"}}}, control={})
    assert stores(plan) == []
    assert {recipe(plan, cell).teacher.store for cell in plan.cells} == {"mine"}
    other = planned(grid={"method": {"KD": {**TEACH, "teacher.store": "other"}}}, control={})
    assert {job.folder for job in plan.jobs.values()} & {job.folder for job in other.jobs.values()} == {
        plan.jobs["teacher large"].folder
    }


def test_without_stores_runs_learn_from_the_live_teacher_and_see_images_of_their_own(planned: Planned):
    plan = planned(store=False)
    assert stores(plan) == []
    assert {recipe(plan, cell).data.view_seed for cell in plan.cells} == {None}


def test_equal_recipes_are_one_job_and_two_cells(planned: Planned):
    grid = {"method": {"KD": TEACH, "the same": TEACH, "none": {"objective": {"ce": 1}}}}
    plan = planned(grid=grid, control={})
    jobs = [cell.job for cell in plan.cells]
    assert jobs[:2] == jobs[2:4] != jobs[4:]
    assert len(plan.cells) == 6
    assert len([job for job in plan.jobs.values() if job.kind == "run"]) == 5  # with the teacher


def test_a_run_that_is_the_teachers_is_not_trained_twice(planned: Planned):
    grid = {"method": {"KD": TEACH, "large alone": {"student.model": "resnet14", "objective": {"ce": 1.0}}}}
    plan = planned(grid=grid, control={}, teachers={"large": {"student.model": "resnet14", "seed": 1}})
    assert plan.cells[2].job == "teacher large"
    assert plan.cells[3].job != "teacher large"


def test_labels_that_fall_together_are_jobs_of_their_own(planned: Planned):
    grid = {"a": {"x-y": {"epochs": 1}, "x": {"epochs": 2}}, "b": {"z": {}, "y-z": {"batch_size": 32}}}
    plan = planned(grid=grid, teachers={}, control={}, seeds=[1])
    assert len({cell.job for cell in plan.cells}) == len({job.folder for job in plan.jobs.values()}) == 4


def test_folders_are_plain_names_whatever_levels_are_called(planned: Planned, tmp_path: Path):
    names = ["../../up", "/absolute", "Ärger 学生", "..", "a\nb", "x" * 500, "", "*?[a]"]
    grid = {"odd": {name: {"epochs": number + 1} for number, name in enumerate(names)}}
    plan = planned(grid=grid, teachers={}, control={}, seeds=[1])
    assert [cell.levels["odd"] for cell in plan.cells] == names
    for job in plan.jobs.values():
        assert job.folder.parent == tmp_path / "study" / "runs"
        assert len(job.folder.name) < 140
        assert job.folder.name.isascii()
        assert not set(job.folder.name) & set("/\n*?[] ")
        job.folder.mkdir(parents=True)
    assert [path for path in tmp_path.iterdir() if path.name == "up"] == []
    again = planned(grid=grid, teachers={}, control={}, seeds=[1])
    assert [job.folder for job in again.jobs.values()] == [job.folder for job in plan.jobs.values()]


def test_studies_of_one_pool_find_each_others_runs_whatever_they_are_called(planned: Planned, tmp_path: Path):
    pool = str(tmp_path / "pool")
    first = planned(pool=pool)
    for job in first.jobs.values():
        job.folder.mkdir(parents=True)
    teach = {"teacher": "big", "objective": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}}
    grid = {"what": {"by labels": {"objective": {"ce": 1}}, "by a teacher": teach}}
    second = planned(pool=pool, grid=grid, control={}, teachers={"big": {"student.model": "resnet14"}})
    kinds = [job.kind for job in second.jobs.values()]
    found = {job.folder for job in second.jobs.values() if job.kind == "run"}
    assert found == {job.folder for job in first.jobs.values() if job.kind == "run"}
    assert kinds.count("store") == 1


def test_a_pool_can_be_moved(planned: Planned, tmp_path: Path):
    here, there = (planned(pool=str(tmp_path / name)) for name in ("here", "there"))
    assert [job.folder.name for job in here.jobs.values()] == [job.folder.name for job in there.jobs.values()]


def test_what_changes_no_weight_changes_no_folder(planned: Planned):
    folders = [job.folder for job in planned().jobs.values()]
    assert [job.folder for job in planned("device=cuda:1", "log.every=7", "checkpoint.keep=1").jobs.values()] == folders
    assert [job.folder for job in planned("optimizer.lr=0.1").jobs.values()] != folders


def test_the_base_is_beside_the_study_file_and_its_own_folder_is_not_taken(study_file: Callable[..., Path]):
    path = study_file(base="below/base.yaml", recipe={"epochs": 4})
    with pytest.raises(RecipeError, match=r"There is no recipe file .*below/base\.yaml"):
        plan_study(path, load_study(path))
    (path.parent / "below").mkdir()
    base = {"epochs": 9, "student": {"model": "resnet8"}, "run": "runs/mine", "optimizer": {"lr": 0.3}}
    (path.parent / "below" / "base.yaml").write_text(yaml.safe_dump(base))
    plan = plan_study(path, load_study(path))
    made = recipe(plan, plan.cells[0])
    assert (made.epochs, made.optimizer.lr) == (4, 0.3)
    assert made.run == str(plan.jobs[plan.cells[0].job].folder) != "runs/mine"


def test_a_teacher_that_is_trained_already_is_taken_as_it_is(planned: Planned):
    plan = planned(teachers={"large": {"weights": "runs/big", "model": "resnet14", "taps.maps": ["layer1"]}})
    assert [job.kind for job in plan.jobs.values()].count("run") == 4
    made = recipe(plan, plan.cells[-1])
    assert (made.teacher.weights, made.teacher.model, made.teacher.taps.maps) == ("runs/big", "resnet14", ("layer1",))
    assert plan.teachers == {"large": "runs/big"}
    fetched = planned(teachers={"large": {"model": "resnet50", "pretrained": True}})
    assert fetched.teachers == {"large": "resnet50"}
    assert {cell.teacher for cell in fetched.cells} == {None, "large"}


def test_a_teacher_can_learn_from_another(planned: Planned):
    teachers = {"huge": {"student.model": "resnet20"}, "large": {"teacher": "huge", "student.model": "resnet14"}}
    plan = planned(teachers=teachers)
    assert [name for name in plan.jobs if name.startswith("teacher")] == ["teacher huge", "teacher large"]
    assert plan.jobs["teacher large"].after == ("teacher huge",)
    assert plan.jobs["teacher large"].recipe.objective == {}
    assert "it learns from itself: large from huge from large." in refusal(
        planned, teachers={"huge": {"teacher": "large"}, "large": {"teacher": "huge"}}
    )


def test_how_a_teacher_runs_can_be_an_axis_of_its_own(planned: Planned):
    grid = {"method": {"alone": {"teacher": None, "objective": {"ce": 1}}, "KD": TEACH}, "teacher.fold": [True, False]}
    plan = planned(grid=grid, seeds=[1])
    alone = {cell.job for cell in plan.cells if cell.levels["method"] == "alone"}
    taught = {cell.job for cell in plan.cells if cell.levels["method"] == "KD"}
    assert (len(alone), len(taught)) == (1, 2)


def test_mistakes_of_all_cells_are_told_at_once_each_with_its_first_run(planned: Planned):
    grid = {
        "method": {
            "KD": {"teacher": "lrage", "objective": {"kdd": 1}},
            "PEFD": {**TEACH, "epocs": 3},
            "stages": {"objective": {"ce": 1}, "student.models": "resnet8"},
        },
        "batch_size": [32, 64],
    }
    told = refusal(planned, "optimizer.rate=3", grid=grid, control={})
    assert "KD-32 and 1 more: the teacher 'lrage' is not among teachers:. Did you mean 'large'?" in told
    assert "PEFD-32 and 1 more: unknown key 'epocs'. Did you mean 'epochs'?" in told
    assert "stages-32 and 1 more: unknown key 'student.models'. Did you mean 'model'?" in told
    assert "unknown key 'optimizer.rate'." in told
    assert told.count("optimizer.rate") == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"grid": {"seed": [1, 2]}, "teachers": {}, "control": {}},
            "seed 1 and 1 more: seed: every combination is run with",
        ),
        ({"recipe": {"run": "x"}}, "recipe: run: each run gets a folder of its own"),
        ({"recipe": {"students": [{"seed": 1}]}}, "recipe: students: a study runs each student by itself"),
        ({"teachers": {"large": {"run": "x"}}}, "teacher large: run: each run gets"),
        ({"recipe": {"control": True}}, "control=true trains the student alone beside every run"),
        ({"teachers": {"large": {}, "spare": {}}}, "teacher spare: nobody learns from it"),
        ({"teachers": {"large": {"epcohs": 3}}}, "teacher large: unknown key 'epcohs'. Did you mean 'epochs'?"),
        ({"teachers": {"large": {"weights": "a", "epochs": 3}}}, "epochs is no key of such a teacher."),
        ({"teachers": {"large": {"weights": "a", "modell": "b"}}}, "Did you mean 'model'?"),
        ({"grid": {"methode": ["kd"]}, "teachers": {}, "control": {}}, "unknown key 'methode'"),
    ],
)
def test_what_a_study_has_its_own_word_for_is_refused(planned: Planned, keys: dict[str, Any], expected: str):
    assert expected in refusal(planned, **keys)


def test_a_seed_on_the_command_line_is_refused(planned: Planned):
    assert "seed=3: every combination is run with each of the study's seeds; give seeds:" in refusal(planned, "seed=3")


def test_five_hundred_cells_are_planned_quickly(planned: Planned):
    grid = {"method": {"alone": {"objective": {"ce": 1}}, "KD": TEACH}, "optimizer.lr": [n / 100 for n in range(1, 51)]}
    plan = planned(grid=grid, seeds=[1, 2, 3, 4, 5])
    assert len(plan.cells) == 500
    assert len(plan.jobs) == 502
