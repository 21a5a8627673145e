import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from potstill import config
from potstill.cli import app
from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.recipe import dump_recipe, load_recipe, parse_recipe
from potstill.sentences import ROWS


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


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("epochs: 3\nlog: [1\n", "line 3, column 1: while parsing a flow sequence that begins in line 2, column 6: "),
        ("epochs: 3\nlog:\t1\n", "line 2, column 5: while scanning for the next token"),
        ("epochs: 3\nseed: 2\nepochs: 4\nseed: 1\n", "line 3, column 1: the key epochs is given twice."),
        ("epochs: \x07\n", "special characters are not allowed position 8"),
    ],
)
def test_what_is_wrong_with_yaml_has_a_line_and_no_drawing(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path / "r.yaml", text))
    assert place in str(caught.value)
    assert not {"^", '"', "\n"} & set(str(caught.value))
    with pytest.raises(RecipeError, match=r"'log=\[1' is no valid YAML: line 1, column 3: [^\"^]*$"):
        load_recipe(None, ["log=[1"])


@pytest.mark.parametrize(
    ("text", "override"),
    [("student: resnet8\n", "student.weights=null"), ("student: resnet8\n", "student.taps.maps=[layer1]"),
     ("objective: kd\n", "objective.ce=1"), ("student: {args: 3}\n", "student.args.width=2"),
     ("objective: {ce: hot}\n", "objective.ce.label_smoothing=0.1")],
)  # fmt: skip
def test_a_value_in_the_place_of_a_section_is_refused_with_an_override_below_it_as_without(
    tmp_path: Path, text: str, override: str
) -> None:
    path = write(tmp_path / "r.yaml", text)
    said = []
    for overrides in ([], [override]):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, overrides)
        said.append(str(caught.value))
    assert said[0].startswith(f"1 mistake in {path}: ")
    assert said[0] == said[1]


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'epochs.x=1' sets a key of epochs, which is 3 and has no keys\."):
        load_recipe(write(tmp_path / "r.yaml", "epochs: 3\n"), ["epochs.x=1"])


def test_each_mistake_is_said_to_be_where_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "epoch: 3\noptimizer: {momentum: 0.5}\nobjective: {ce: 1, pefdd: 2}\nseed: -1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["optimizer.name=adamw", "batch_size=0", "objective.kd={weight: 1, temprature: 4}"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"3 mistakes in {path}:"
    assert {line.split()[0] for line in lines[1:4]} == {"seed", "unknown", "objective.pefdd:"}
    assert lines[4] == "3 mistakes on the command line:"
    assert {line.split()[0] for line in lines[5:]} == {"optimizer.momentum=0.5", "batch_size", "objective.kd:"}
    with pytest.raises(RecipeError, match=r"^1 mistake on the command line: seed is -2; expected a number of at least"):
        load_recipe(write(path, "epochs: 3\n"), ["seed=-2"])


def test_a_term_that_an_override_takes_out_is_not_imported_to_say_whose_mistake_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "planted.py", "raise SystemExit('this code ran')\n")
    path = write(tmp_path / "r.yaml", "objective: {'planted:Method': 1}\n")
    with pytest.raises(RecipeError, match=r"^1 mistake on the command line: batch_size is 0"):
        load_recipe(path, ["objective={}", "batch_size=0"])


def test_every_row_of_values_has_words_of_its_own() -> None:
    sections = [Recipe, *(cls for cls in vars(config).values() if getattr(cls, "__module__", "") == config.__name__)]
    rows = {
        name
        for section in sections
        if isinstance(section, type) and issubclass(section, BaseModel)
        for name, field in section.model_fields.items()
        if "tuple" in str(field.annotation)
    }
    assert rows == set(ROWS)


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


def test_an_empty_value_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'data\.path=' has no value; leave it out, or write data\.path=null"):
        load_recipe(None, ["data.path="])
    assert load_recipe(None, ["data.path=null"]).data.path is None


def test_not_a_number_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer.lr is nan"):
        load_recipe(None, ["optimizer.lr=.nan"])


@pytest.mark.parametrize(
    ("values", "unread"),
    [
        (
            ["optimizer={name: adamw, momentum: 0.5, nesterov: true}"],
            [
                "optimizer.momentum=0.5 does nothing with optimizer.name=adamw, only with sgd.",
                "optimizer.nesterov=true does nothing with optimizer.name=adamw, only with sgd.",
            ],
        ),
        (["optimizer.betas=[0.8, 0.9]"], ["optimizer.betas=[0.8, 0.9] does nothing with optimizer.name=sgd"]),
        (
            ["schedule={name: onecycle, drops: [0.5], factor: 0.2}"],
            [
                "schedule.drops=[0.5] does nothing with schedule.name=onecycle, only with step.",
                "schedule.factor=0.2 does nothing with schedule.name=onecycle, only with step.",
            ],
        ),
        (["schedule.final=0.1"], ["schedule.final=0.1 does nothing with schedule.name=step, only with cosine and one"]),
    ],
)
def test_a_value_that_nothing_reads_is_a_mistake(values: list[str], unread: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [*values, "seed=-1"])
    assert str(caught.value).startswith(f"{len(unread) + 1} mistakes on the command line:\n")
    for sentence in unread:
        assert f"\n  {sentence}" in str(caught.value)


def test_a_default_that_nothing_reads_may_be_said() -> None:
    recipe = load_recipe(None, ["optimizer={name: adamw, momentum: 0.9}", "schedule={name: cosine, factor: 0.1}"])
    assert (recipe.optimizer.name, recipe.schedule.name) == ("adamw", "cosine")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("epochs=true", "epochs is true; expected a whole number, not true or false"),
        ("batch_size='64'", "batch_size is '64'; expected a whole number, not text"),
        ("clip=true", "clip is true; expected a number, not true or false"),
        ("schedule.drops=[0.5, true]", r"schedule.drops is \[0.5, true\]; expected parts of the run"),
        ("objective={ce: true}", "objective.ce is True; expected a weight, or a mapping"),
        ("objective={ce: '1'}", "objective.ce is '1'; expected a weight, or a mapping"),
        ("objective={ce: {weight: false}}", "1 mistake .*: objective.ce.weight is False; expected a number"),
    ],
)
def test_truths_and_texts_are_no_numbers(value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, [value])


def test_what_is_dumped_reads_back() -> None:
    recipe = load_recipe(None, ["teacher.weights=runs/t", "data.mean=[0.1, 0.2, 0.3]", "objective={ce: 1, pefd: 25}"])
    import yaml

    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert parse_recipe(yaml.safe_load(dump_recipe(Recipe()))) == Recipe()


SHIPPED = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.parts[-3:]))
def test_shipped_recipes_are_valid_and_name_no_place(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.student.model
    assert recipe.data.path is None


def write_cifar100(folder: Path) -> Path:
    """Random images in CIFAR-100's layout: 200 to learn from, each class twice, and 100 to be judged by."""
    folder.mkdir()
    names = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": [f"c {n}" for n in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    for name, count in (("train", 200), ("test", 100)):
        data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = [n % 100 for n in range(count)]
        content = {"data": data, "fine_labels": fine, "coarse_labels": [n // 5 for n in fine]}
        (folder / name).write_bytes(pickle.dumps(content))
    return folder


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name == "recipes"], ids=lambda path: path.name)
def test_the_commands_in_a_shipped_recipe_train(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, but for one epoch on few images."""
    commands = [shlex.split(line[1:]) for line in path.read_text().splitlines() if line.startswith("#   potstill ")]
    assert commands
    assert load_recipe(path).data.source == "cifar100"
    monkeypatch.chdir(tmp_path)
    write_cifar100(tmp_path / "cifar-100-python")
    for _, *words in commands:
        words = [str(path) if word.startswith("recipes/") else word for word in words]
        result = CliRunner().invoke(app, [*words, "epochs=1", "batch_size=100", "device=cpu"], prog_name="potstill")
        assert result.exit_code == 0, result.output
        (run,) = [word.removeprefix("run=") for word in words if word.startswith("run=")]
        assert (tmp_path / run / "result.json").exists()
        # A step of each half of the 200 images, in one row of the table of epochs under its head.
        assert len((tmp_path / run / "metrics.csv").read_text().splitlines()) == 2
