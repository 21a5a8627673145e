"""Recipes: unknown keys, wrong types, and values that do not go together."""

import pytest


def test_all_mistakes_of_a_recipe_are_said_at_once(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "epoch: 3\n"
        "student: {modle: resnet8}\n"
        "batch_size: many\n"
        "optimizer: {lr: -1, moment: 0.9}\n"
        "data: {on_error: ignore}\n"
        "objective: {ce: 1, pfed: 25, kd: {weight: 0.9, temprature: 4}}\n"
    )
    said = refused("train", recipe, "run=run", "channels_last=perhaps", lines=10).splitlines()
    assert said[0] == f"error: 9 mistakes in {recipe}:"
    assert "  unknown key 'epoch'. Did you mean 'epochs'?" in said
    assert "  unknown key 'student.modle'. Did you mean 'model'?" in said
    assert "  unknown key 'optimizer.moment'. Did you mean 'momentum'?" in said
    assert any(line.startswith("  batch_size is 'many': input should be a valid integer") for line in said)
    assert any(line.startswith("  optimizer.lr is -1: input should be greater than 0") for line in said)
    assert any(line.startswith("  data.on_error is 'ignore': input should be 'stop' or 'skip'") for line in said)
    assert any(line.startswith("  channels_last is 'perhaps': input should be a valid boolean") for line in said)
    assert any("There is no method 'pfed'. Did you mean 'pefd'?" in line for line in said)
    assert any("no hyper-parameter 'temprature'. Did you mean 'temperature'?" in line for line in said)
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["epoch=3"], "unknown key 'epoch'. Did you mean 'epochs'?"),
        (["data.zzz=3"], "unknown key 'data.zzz'. Valid here: source, path, "),
        (["epochs=three"], "epochs is 'three': input should be a valid integer"),
        (["epochs=0"], "epochs is 0: input should be greater than or equal to 1"),
        (["epochs=true"], "epochs is True: input should be a valid integer, not true or false."),
        (["epochs='3'"], "epochs is '3': input should be a valid integer, not text."),
        (["clip=true"], "clip is True: input should be a valid number, not true or false."),
        (["data.mean=[0.5, true, 0.5]"], "data.mean is [0.5, True, 0.5]: input should be a valid number, not true or"),
        (["objective={ce: true}"], "objective.ce is True; expected a weight, or a mapping of weight and hyper-"),
        (["objective={ce: {weight: true}}"], "objective.ce.weight is True; expected a number."),
        (["objective={kd: {weight: .nan}}"], "objective.kd.weight is nan; expected a number."),
        (["epochs=2.5"], "epochs is 2.5: input should be a valid integer"),
        (["data=digits"], "data is 'digits': input should be a valid dictionary"),
        (["data.mean=[0.5]"], "data.mean is [0.5]: too few values."),
        (["schedule.drops=[0.5, 2]"], "schedule.drops.1 is 2: input should be less than or equal to 1"),
        (["objective={kd: {weight: heavy}}"], "objective.kd.weight is 'heavy'; expected a number"),
        (
            ["objective={ce: [1]}"],
            "objective.ce is [1]; expected a weight, or a mapping of weight and hyper-parameters.",
        ),
        (["objective={ce: 1, kd: {weight: 1, temperature: hot}}"], "temperature of kd is 'hot'; expected a number"),
        (["objective=[ce]"], "objective is ['ce']: input should be a valid dictionary"),
        (["student={model: resnet8, model: resnet14}"], "the key model is given twice"),
        (["student={model: resnet8"], "is no valid YAML"),
        (["epochs"], "There is no recipe file epochs"),
        (["seed=1", "epochs"], "'epochs' is not of the form key=value"),
    ],
)
def test_one_mistake_is_one_line(refused, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("train", *values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1\n", "is no valid YAML"),
        ("- epochs\n", "holds a list; expected `key: value` lines"),
        ("epochs: 1\nepochs: 2\n", "the key epochs is given twice"),
        ("run: !!python/object/apply:os.mkdir [made]\n", "is no valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe(refused, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused("train", recipe)
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["optimizer.name=adamw", "optimizer.nesterov=true"],
            "optimizer.nesterov=true does nothing with optimizer.name=adamw, only with sgd.",
        ),
        (
            ["data.workers=2", "data.scale=[0.5, 1]", "data.split_seed=1", "data.val_fraction=0"],
            "data.scale=[0.5, 1.0] does nothing with data.crop=pad, only with resized. Leave it out, or change "
            "data.crop. data.workers=2 does nothing with data.loader=resident, only with streaming. Leave it out, or "
            "change data.loader. data.split_seed=1 does nothing: digits is used whole, so there is no split to choose.",
        ),
        (
            ["optimizer.name=adamw", "optimizer.betas=[0.9, 1.0]"],
            "optimizer.betas.1 is 1.0: input should be less than 1",
        ),
        (["data.split_seed=-1"], "data.split_seed is -1: input should be greater than or equal to 0"),
        (["seed=9223372036854775808"], "seed is 9223372036854775808: input should be less than 9223372036854775808"),
        (["optimizer.momentum=0", "optimizer.nesterov=true"], "optimizer.nesterov=true needs a momentum above 0"),
        (
            ["control=true"],
            "control=true trains the student on labels without a teacher; it needs labels and a teacher",
        ),
        (["objective={ce: 0}"], "objective.ce has the weight 0; expected a positive number, or leave ce out."),
        (["objective={ce: -1}"], "objective.ce has the weight -1; expected a positive number, or leave ce out."),
        (["objective={pefd: {projectors: 3}}"], "objective.pefd has no weight; write it as pefd: {weight: 1, ...}."),
        (["objective={ce: 1, pefd: 25}"], "There is no teacher, but pefd in the objective needs one"),
        (["device=cuda:77"], "device=cuda:77"),
        (["device=xpu"], "device=xpu is no device that Potstill trains on; use auto, cpu, cuda, cuda:1 or mps."),
        (["device=quantum"], "device=quantum is no device that PyTorch knows; use auto, cpu, cuda, cuda:1 or mps."),
        (["data.crop=resized", "data.scale=[0.5, 0.1]"], "scale"),
        (["data.std=[0.2, 0.2, 0]"], "std"),
    ],
)
def test_values_that_do_not_go_together(refused, quick, digits, tmp_path, values, message):
    assert message in refused("train", *quick, *digits, f"run={tmp_path / 'run'}", *values)
    assert list(tmp_path.iterdir()) == []
