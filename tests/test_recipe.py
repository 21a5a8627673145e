from pathlib import Path

import pytest

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.recipe import dump_recipe, load_recipe, parse_recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_defaults_are_the_papers() -> None:
    recipe = load_recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.lr, recipe.optimizer.momentum) == (240, 64, 0.05, 0.9)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.nesterov) == (5e-4, False)
    assert [part * 240 for part in recipe.schedule.drops] == [150, 180, 210]


def test_every_mistake_is_reported_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "recipe.yaml",
        "epoch: 30\nbatch_size: many\noptimizer: {lr: -1, momentun: 0.9}\nstudent: {model: [1]}\n"
        "objective: {ce: 1, pefdd: 25, kd: {weight: 1, temprature: 4}}\n",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"7 mistakes in {path}:")
    for part in (
        "unknown key 'epoch'. Did you mean 'epochs'?",
        "batch_size is 'many'",
        "optimizer.lr is -1",
        "unknown key 'optimizer.momentun'. Did you mean 'momentum'?",
        "student.model is [1]",
        "objective.pefdd: ",
        "Did you mean 'pefd'?",
        "temprature",
        "Did you mean 'temperature'?",
    ):
        assert part in message


def test_an_unknown_key_with_no_near_name_lists_what_is_valid_there() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'checkpoint.zzz'. Valid here: every_epochs, every_steps, keep"):
        load_recipe(None, ["checkpoint.zzz=1"])


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the key epochs is given twice"):
        load_recipe(write(tmp_path / "r.yaml", "epochs: 1\nseed: 2\nepochs: 3\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list; expected `key: value` lines"),
        ("a: [", "is no valid YAML"),
        ("!!python/object/apply:os.getcwd []", "is no valid YAML"),
    ],
)  # fmt: skip
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path / "r.yaml", text))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe file nowhere\.yaml"):
        load_recipe("nowhere.yaml")


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "epochs: 10\noptimizer: {lr: 0.1}\nteacher: {weights: runs/t}\n")
    recipe = load_recipe(path, ["epochs=3", "optimizer.momentum=0.5", "objective.kd=1", "objective.pefd.projectors=2"])
    assert (recipe.epochs, recipe.optimizer.lr, recipe.optimizer.momentum) == (3, 0.1, 0.5)
    assert recipe.objective == {"ce": 1.0, "pefd": {"weight": 25.0, "projectors": 2}, "kd": 1.0}


def test_numbers_as_people_write_them() -> None:
    recipe = load_recipe(None, ["optimizer.weight_decay=1e-4", "objective.ce.weight=1e-3"])
    assert recipe.optimizer.weight_decay == 1e-4
    assert recipe.objective == {"ce": {"weight": 1e-3}}


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs: 3"])
def test_an_override_needs_a_key_and_a_value(override: str) -> None:
    with pytest.raises(RecipeError, match="is not of the form key=value"):
        load_recipe(None, [override])


def test_not_a_number_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer.lr is nan"):
        load_recipe(None, ["optimizer.lr=.nan"])


def test_what_is_dumped_reads_back() -> None:
    recipe = load_recipe(None, ["teacher.weights=runs/t", "data.mean=[0.1, 0.2, 0.3]", "objective={ce: 1, pefd: 25}"])
    import yaml

    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert parse_recipe(yaml.safe_load(dump_recipe(Recipe()))) == Recipe()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).student.model
