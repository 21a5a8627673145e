from pathlib import Path

import pytest

from potstill.errors import RecipeError
from potstill.race.file import load_race

BASE = ("teacher.weights=runs/large", "epochs=18")


def names(*values: str) -> list[str]:
    return [entry.name for entry in load_race(None, [*BASE, *values]).entries]


def test_candidates_are_models_or_what_differs() -> None:
    race = load_race(
        None,
        [*BASE, "candidates=[resnet8, {model: resnet8, objective: {ce: 1, kd: 1}}, {seed: 3, student: {model: vgg8}, "
         "name: mine}]"],
    )  # fmt: skip
    assert [entry.name for entry in race.entries] == ["resnet8", "resnet8-kd", "mine"]
    assert race.entries[0].differs == {"model": "resnet8", "name": "resnet8"}
    assert race.entries[0].methods == ("ce", "pefd")  # the default objective's
    assert race.entries[1].methods == ("ce", "kd")
    assert [entry.place for entry in race.entries] == ["candidates[1]", "candidates[2]", "candidates[3]"]


def test_students_and_methods_are_crossed_and_candidates_come_on_top() -> None:
    race = load_race(
        None,
        [*BASE, "students=[resnet8, {model: resnet14, clip: 1.0, name: clipped}]",
         "methods={alone: {ce: 1}, adam: {objective: {ce: 1, kd: 1}, optimizer: {name: adamw}}}", "candidates=[vgg8]"],
    )  # fmt: skip
    assert [entry.name for entry in race.entries] == [
        "resnet8-alone", "resnet8-adam", "clipped-alone", "clipped-adam", "vgg8",
    ]  # fmt: skip
    assert race.entries[3].differs == {
        "model": "resnet14", "clip": 1.0, "objective": {"ce": 1, "kd": 1}, "optimizer": {"name": "adamw"},
        "name": "clipped-adam",
    }  # fmt: skip
    assert race.entries[3].place == "students[2] with methods.adam"


def test_students_alone_take_the_recipes_objective_and_methods_alone_its_student() -> None:
    assert names("students=[resnet8, timm/convnext_tiny]") == ["resnet8", "timm-convnext_tiny"]
    assert names("methods={kd: {ce: 1, kd: 1}, at: {ce: 1, at: 1}}", "student.model=resnet8") == ["kd", "at"]


def test_names_that_are_made_do_not_meet() -> None:
    assert names("candidates=[resnet8, resnet8, {model: ResNet50}, {model: resnet8, name: resnet8-2}]") == [
        "resnet8", "resnet8-3", "ResNet50", "resnet8-2",
    ]  # fmt: skip
    written = "candidates=[{model: a, objective: {ce: 1}}, {model: a, objective: {ce: 1, at: 1, kd: 1}, seed: 2}]"
    assert names(written) == ["a-ce", "a-at-kd-seed2"]


def test_a_candidate_that_reads_no_teacher_has_none() -> None:
    race = load_race(
        None, [*BASE, "candidates=[{model: a, objective: {ce: 1}}, {model: a}, {teacher: null, model: a}]"]
    )
    assert [entry.differs.get("teacher", "the recipe's") for entry in race.entries] == [None, "the recipe's", None]
    assert [sorted(entry.reads) for entry in race.entries] == [[], ["embedding"], []]
    assert race.entries[2].methods == ("ce",)


def test_a_stagewise_candidate_keeps_its_teacher_whatever_its_heads_objective() -> None:
    race = load_race(None, [*BASE, "candidates=[a, {model: a, objective: {ce: 1}, procedure: {name: stagewise}}]"])
    assert "teacher" not in race.entries[1].differs


def test_a_file_with_values_laid_over_it(tmp_path: Path) -> None:
    path = tmp_path / "race.yaml"
    path.write_text("teacher: {weights: runs/large}\nepochs: 9\nstudents: [resnet8, resnet14]\nrace: {min_epochs: 2}\n")
    race = load_race(path, ["epochs=12", "race.factor=4"])
    assert (race.recipe.epochs, race.settings.factor, race.settings.min_epochs) == (12, 4, 2)
    assert race.raw["race"] == {"min_epochs": 2, "factor": 4}


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        (["candidates=[a, b]", "candidate=[a]"], ["unknown key 'candidate'. Did you mean 'candidates'?"]),
        (["candidates=[a, b]", "race.facter=2"], ["unknown key 'race.facter'. Did you mean 'factor'?"]),
        (["candidates=[a, b]", "race.factor=1"], ["race.factor is 1; expected a number of at least 2."]),
        (["candidates=[a, b]", "race.factor=2.5"], ["race.factor is 2.5"]),
        (["candidates=[a, b]", "race.store=maybe"], ["race.store is 'maybe'"]),
        (["candidates=[a, b]", "race=3"], ["race is 3"]),
        (["candidates=resnet8"], ["candidates is 'resnet8'; expected a list"]),
        (["candidates=[1, 2]"], ["candidates is [1, 2]; expected a list"]),
        (["methods=[kd]", "candidates=[a, b]"], ["methods is ['kd']"]),
        (["methods={kd: 1}", "candidates=[a, b]"], ["methods.kd is 1"]),
        ([], ["A race needs two candidates or more, and none is given"]),
        (["candidates=[resnet8]"], ["A race needs two candidates or more, and one is given"]),
        (["candidates=[{name: a}, {name: A}]"], ["Two candidates are called 'A'"]),
        (["candidates=[{name: store}, b]"], ["cannot be called 'store'"]),
        (["students=[{objective: {ce: 1}}]", "methods={kd: {kd: 1}, at: {at: 1}}"], ["both say objective"]),
        (["candidates=[a, b]", "teacher=null"], ["A race is run with a teacher"]),
        (["candidates=[a, b]", "control=true"], ["in a race the control is a candidate"]),
        (["candidates=[a, b]", "procedure.name=assistants"], ["cannot be raced"]),
        (["candidates=[a, b]", "epochs=1"], ["The first rung, at epoch 1, must lie before the end, and epochs=1"]),
        (["candidates=[a, b]", "race.min_epochs=18"], ["The first rung, at epoch 18"]),
        (["candidates=[a, b]", "epoch=3", "race.fctor=3"], ["2 mistakes", "'epochs'", "'factor'"]),
        (["candidates=[a, b]", "optimizer.lrr=3"], ["optimizer.lrr"]),
    ],
)
def test_mistakes_are_said(values: list[str], sentences: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        load_race(None, [*BASE, *values])
    for sentence in sentences:
        assert sentence in str(error.value)


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no race file"):
        load_race(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match="holds a list"):
        load_race(tmp_path / "list.yaml")
