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
    assert said[0] == f"error: 8 mistakes in {recipe}:"
    assert "  unknown key 'epoch'. Did you mean 'epochs'?" in said
    assert "  unknown key 'student.modle'. Did you mean 'model'?" in said
    assert "  unknown key 'optimizer.moment'. Did you mean 'momentum'?" in said
    assert any(line.startswith("  batch_size is 'many'; expected a whole number, not text.") for line in said)
    assert any(line.startswith("  optimizer.lr is -1; expected a number above 0") for line in said)
    assert any(line.startswith("  data.on_error is 'ignore'; expected 'stop' or 'skip'") for line in said)
    assert any("There is no method 'pfed'. Did you mean 'pefd'?" in line for line in said)
    assert any("no hyper-parameter 'temprature'. Did you mean 'temperature'?" in line for line in said)
    assert said[-1] == "1 mistake on the command line: channels_last is 'perhaps'; expected true or false."
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["epoch=3"], "unknown key 'epoch'. Did you mean 'epochs'?"),
        (["data.zzz=3"], "unknown key 'data.zzz'. Valid here: source, path, "),
        (["epochs=three"], "epochs is 'three'; expected a whole number, not text."),
        (["epochs=0"], "epochs is 0; expected a number of at least 1."),
        (["epochs=true"], "epochs is true; expected a whole number, not true or false."),
        (["epochs='3'"], "epochs is '3'; expected a whole number, not text."),
        (["clip=true"], "clip is true; expected a number, not true or false."),
        (["data.mean=[0.5, true, 0.5]"], "data.mean is [0.5, true, 0.5]; expected three numbers from 0 to 1, like"),
        (["objective={ce: true}"], "objective.ce is True; expected a weight, or a mapping of weight and hyper-"),
        (["objective={ce: {weight: true}}"], "objective.ce.weight is True; expected a number."),
        (["objective={kd: {weight: .nan}}"], "objective.kd.weight is nan; expected a number."),
        (["epochs=2.5"], "epochs is 2.5; expected a whole number."),
        (["epochs=null"], "epochs is null; expected a whole number."),
        (["device=0"], """device is 0; expected text, in quotes like '"0"'."""),
        (["control=perhaps"], "control is 'perhaps'; expected true or false."),
        (["control=2"], "control is 2; expected true or false."),
        (["compile=perhaps"], "compile is 'perhaps'; expected auto, true or false."),
        (["data=digits"], "data is 'digits'; write data: {source: digits}, or data.source=digits as an override."),
        (["data=photos"], "data is 'photos'; write data: {path: photos}, or data.path=photos as an override."),
        (
            ["student=resnet8"],
            "student is 'resnet8'; write student: {model: resnet8}, or student.model=resnet8 as an override.",
        ),
        (["teacher=."], "teacher is '.'; write teacher: {weights: .}, or teacher.weights=. as an override."),
        (["optimizer=adamw"], "optimizer is 'adamw'; write optimizer: {name: adamw}, or optimizer.name=adamw as an"),
        (["log=5"], "log is 5; expected keys below it, like log.every; valid there: every, shares, "),
        (["student=null"], "student is null; expected keys below it, like student.model; valid there: model, "),
        (["student.args=3"], "student.args is 3; expected names and values, like student.args: {name: value}."),
        (["student.taps=layer1"], "student.taps is 'layer1'; expected keys below it, like student.taps.classifier;"),
        (["student.taps.maps=layer1"], "student.taps.maps is 'layer1'; expected a list of layers, like [layer1, "),
        (["data.mean=[0.5]"], "data.mean is [0.5]; expected three numbers from 0 to 1, like [0.5, 0.5, 0.5]"),
        (
            ["data.mean=[127, 127, 127]"],
            "1 mistake on the command line: data.mean is [127, 127, 127]; expected three numbers from 0 to 1, like "
            "[0.5, 0.5, 0.5]: values are of pixels in 0..1, not 0..255.",
        ),
        (["teacher.mean=[127, 127, 127]"], "teacher.mean is [127, 127, 127]; expected three numbers from 0 to 1"),
        (
            ["data.std=[0, 0, 0]"],
            "1 mistake on the command line: data.std is [0, 0, 0]; expected three numbers above 0 and up to 1, like "
            "[0.25, 0.25, 0.25]: values are of pixels in 0..1, not 0..255.",
        ),
        (["teacher.std=[58, 57, 57]"], "teacher.std is [58, 57, 57]; expected three numbers above 0 and up to 1"),
        (
            ["schedule.drops=[150, 180, 210]"],
            "1 mistake on the command line: schedule.drops is [150, 180, 210]; expected parts of the run from 0 to 1, "
            "like [0.625, 0.75]: epoch 150 of 240 is 0.625.",
        ),
        (["schedule.drops=0.5"], "schedule.drops is 0.5; expected parts of the run from 0 to 1"),
        (["objective={kd: {weight: heavy}}"], "objective.kd.weight is 'heavy'; expected a number"),
        (
            ["objective={ce: [1]}"],
            "objective.ce is [1]; expected a weight, or a mapping of weight and hyper-parameters.",
        ),
        (["objective={ce: 1, kd: {weight: 1, temperature: hot}}"], "temperature of kd is 'hot'; expected a number"),
        (["objective=[ce]"], "objective is ['ce']; write the methods with their weights, objective: {ce: 1}, or"),
        (["objective=kd"], "write the methods with their weights, objective: {kd: 1}, or objective={kd: 1} as an"),
        (["objective=5"], "objective is 5; write the methods with their weights, objective: {ce: 1}, or"),
        (["student={model: resnet8, model: resnet14}"], "line 1, column 18: the key model is given twice."),
        (["student={model: resnet8"], "is no valid YAML"),
        (["epochs"], "There is no recipe file epochs"),
        (["seed=1", "epochs"], "'epochs' is not of the form key=value, like epochs=30."),
        (["seed=1", "a.yaml"], "'a.yaml' is not of the form key=value; a recipe file comes first, and there can be"),
        (["."], ". is a folder without a recipe.yaml. Give a recipe file or a run's folder; a folder of images is "),
        (["--run", "my runs/x"], "There is no option --run; it is a key of the recipe: run='my runs/x'"),
        (["--batch-size=8"], "There is no option --batch-size; it is a key of the recipe: batch_size=8"),
        (["--data.path"], "There is no option --data.path; it is a key of the recipe: data.path=..."),
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
            "optimizer.betas is [0.9, 1.0]; expected two numbers from 0 to below 1, like [0.9, 0.999].",
        ),
        (["data.split_seed=-1"], "data.split_seed is -1; expected a number of at least 0"),
        (["seed=9223372036854775808"], "seed is 9223372036854775808; expected a number below 9223372036854775808"),
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
