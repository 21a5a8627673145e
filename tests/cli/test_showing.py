import json

import pytest
import yaml

from potstill.cli.commented import commented_recipe
from potstill.config import Recipe
from potstill.recipe import load_recipe, parse_recipe


def test_the_commented_recipe_is_the_default_recipe(potstill, tmp_path):
    result = potstill("config")
    assert result.exit_code == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(result.stdout)
    assert load_recipe(path) == Recipe()


def test_the_commented_recipe_explains_every_key():
    text = commented_recipe()
    for name, field in Recipe.model_fields.items():
        assert f"\n{name}:" in text or f"\n# {name}:" in text
        if field.description:
            assert field.description in " ".join(text.replace("#", " ").split())
    assert max(len(line) for line in text.splitlines()) <= 120


def test_the_sections_that_are_off_can_be_uncommented():
    """A person turns the teacher on by taking the marks away."""
    lines = commented_recipe().splitlines()
    start = lines.index("# teacher:")
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith("#"))
    section = [line.removeprefix("# ") for line in lines[start:end]]
    recipe = parse_recipe(yaml.safe_load("\n".join([*lines[:start], *section, *lines[end:]])))
    assert recipe.teacher is not None
    assert recipe.teacher.precision == "auto"


def test_the_schema_knows_every_key(potstill):
    schema = json.loads(potstill("config", "--schema").stdout)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_a_recipe_is_printed_resolved(potstill, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("student: {model: resnet8}\nepochs: 7\n")
    result = potstill("config", str(path), "seed=3")
    assert result.exit_code == 0
    resolved = yaml.safe_load(result.stdout)
    assert (resolved["epochs"], resolved["seed"], resolved["objective"]) == (7, 3, {"ce": 1.0})
    assert (resolved["data"]["size"], resolved["data"]["crop"], resolved["data"]["flip"]) == (16, "pad", False)


def test_methods_say_what_they_need(potstill):
    cards = json.loads(potstill("methods", "--json").stdout)
    reads = {"student": ["embedding"], "teacher": ["embedding"]}
    assert cards["pefd"]["needs"] == {**reads, "labels": False, "class_means": False}
    assert cards["nd"]["needs"] == {**reads, "labels": True, "class_means": True}
    assert cards["pefd"]["hyper_parameters"]["projectors"] == 3
    assert cards["ce"]["needs"]["labels"] is True
    table = potstill("methods").stdout
    assert all(name in table for name in cards)


def test_one_method_tells_all(potstill):
    text = potstill("methods", "kd").stdout
    assert "temperature" in text
    assert "4.0" in text
    assert "Source:" in text


def test_models_of_the_zoo_come_with_parameters(potstill):
    found = json.loads(potstill("models", "resnet8", "--json").stdout)
    assert {"name": "cifar/resnet8x4", "parameters": 1_233_540} in found
    assert "resnet8x4" in potstill("models", "cifar/*").stdout


def test_models_of_timm_are_there(potstill):
    assert "convnext_tiny" in potstill("models", "*convnext_t*").stdout


def test_taps_of_one_network(potstill):
    result = potstill("taps", "student.model=resnet8", "data.size=32", "--json")
    rows = json.loads(result.stdout)["student"]
    assert [(row["name"], row["channels"], row["stride"]) for row in rows[:2]] == [("relu", 16, 1), ("layer1", 16, 1)]


def test_taps_propose_pairs(potstill):
    result = potstill("taps", "student.model=resnet8", "teacher.model=resnet8x4", "data.size=32")
    assert "pairs of one stride" in result.stdout
    assert "channels differ: 16 and 64" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "pfed"], "There is no method 'pfed'. Did you mean 'pefd'?"),
        (["models", "resnet8y4"], "No network's name matches 'resnet8y4'."),
        (["taps"], "Name a network to look at"),
        (["taps", "student.model=resnet8x5"], "resnet8x5"),
        (["config", "nothing.yaml"], "There is no recipe file nothing.yaml."),
        (
            ["config", "--schema", "foo"],
            "prints the schema of all recipes, and reads no foo; leave one of the two out.",
        ),
    ],
)
def test_mistakes_are_one_line(potstill, arguments, message):
    result = potstill(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
