"""A run's folder is the run's: nobody else's recipe, files or process; and one that diverges says where it was well."""

import json
import re
import shlex
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from potstill.procedures.identity import recipe_with_head
from potstill.recipe import load_recipe
from potstill.training.folder import RunFolder


@pytest.fixture(scope="module")
def finished(trains, quick, digits, tmp_path_factory):
    """A finished run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    trains("train", *quick, *digits, f"run={run}")
    return run


def test_another_recipe_in_the_folder(refused, contents, quick, digits, finished):
    before = contents(finished)
    values = ["optimizer.lr=0.2", "seed=3", "student.model=resnet14", f"run={finished}"]
    said = refused("train", *quick, *digits, *values)
    assert f"{finished} belongs to another recipe: student.model was 'resnet8', now 'resnet14'; " in said
    assert "optimizer.lr was 0.05, now 0.2; seed was 0, now 3. Give another run=" in said
    assert contents(finished) == before


def test_other_data_in_the_folder(refused, contents, quick, digits, finished, draw, tmp_path):
    before = contents(finished)
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 4)
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    recipe["data"] |= {"source": "folder", "path": str(tmp_path / "data")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = refused("train", tmp_path / "recipe.yaml")
    assert f"{finished} belongs to another recipe: data.source was 'digits', now 'folder'" in said
    assert "hash" not in said
    assert contents(finished) == before


def test_other_images_under_the_same_recipe(refused, trains, contents, quick, draw, tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 8)
    command = ("train", *quick, f"data.path={tmp_path / 'data'}", f"run={tmp_path / 'run'}")
    trains(*command)
    before = contents(tmp_path / "run")
    draw(tmp_path / "data" / "dogs", 9)
    said = refused(*command)
    assert f"{tmp_path / 'run'} cannot go on: the training images have changed: the hash was " in said
    was = json.loads((tmp_path / "run" / "identity.json").read_text())["data"]
    assert f" {was[:12]}, now " in said
    assert was not in said
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["thesis.txt", "recipe.yaml"])
def test_somebody_elses_files(refused, quick, digits, tmp_path, name):
    (tmp_path / name).write_text("epochs: 3\n")
    said = refused("train", *quick, *digits, f"run={tmp_path}")
    assert f"{tmp_path} holds files that are no run of Potstill ({name}); give another run=." in said
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "epochs: 3\n"


def test_a_finished_student_and_checkpoints_without_a_recipe(
    refused, trains, contents, quick, digits, teacher, tmp_path
):
    said = refused("train", *quick, *digits, f"run={teacher(10)}")
    assert "holds files that are no run of Potstill (student.json, student.safetensors, student_network)" in said
    run = tmp_path / "run"
    trains("train", *quick, *digits, f"run={run}")
    (run / "recipe.yaml").unlink()
    left = ("result.json", "student.safetensors", "student.json", "predictions.safetensors", "report.html")
    for name in left:
        (run / name).unlink()
    before = contents(run)
    said = refused("train", *quick, *digits, f"run={run}")
    assert f"{run} holds files that are no run of Potstill (checkpoints, student_network)" in said
    assert contents(run) == before


def test_a_folder_that_cannot_be_made(refused, quick, digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("potstill.procedures.run.prepare_data", None)  # it is found before an image is decoded
    said = refused("train", *quick, *digits, f"run={tmp_path / 'file' / 'run'}")
    assert f"{tmp_path / 'file'} is a file, so there can be no folder {tmp_path / 'file' / 'run'}; give another" in said
    assert f"{tmp_path / 'file'} is a file; give another run=." in refused(
        "train", *quick, *digits, f"run={tmp_path / 'file'}"
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_in_one_folder(refused, trains, contents, quick, digits, tmp_path):
    run = tmp_path / "run"
    with RunFolder(run).owned():  # a lock on a file: who holds it makes no difference
        said = refused("train", *quick, *digits, f"run={run}")
        assert f"Another process is at work in {run}; wait for it, or give another run=." in said
        assert contents(run) == {}
    trains("train", *quick, *digits, f"run={run}")


def test_nothing_to_resume(refused, quick, digits, tmp_path):
    said = refused("train", *quick, *digits, f"run={tmp_path / 'run'}", "--resume")
    assert f"There is no run to go on with in {tmp_path / 'run'}; leave --resume out to start one." in said
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(refused, trains, contents, quick, digits, tmp_path):
    run = tmp_path / "run"
    # Each step multiplies the weights by 1 - lr * decay = -49, beyond the largest float in a few dozen steps.
    values = [*quick, *digits, "optimizer.lr=1e5", "batch_size=4", "log.every=1", f"run={run}"]
    said = refused("train", *values, "checkpoint.every_steps=2")
    newest = max((run / "checkpoints").iterdir())
    step = int(newest.stem.removeprefix("step-"))
    assert (
        f"The loss is not finite at step {step + 1} (" in said or f"The loss is not finite at step {step + 2} (" in said
    )
    assert f"The last good checkpoint is {newest}. Try a lower optimizer.lr, clip=1.0, " in said
    assert not (run / "student.safetensors").exists()
    rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert all(row["total"] < float("inf") for row in rows)

    before = contents(run)
    said = refused("train", *values, "optimizer.lr=0.1")
    assert "belongs to another recipe: optimizer.lr was 100000.0, now 0.1" in said
    assert contents(run) == before


def test_before_the_first_checkpoint_the_advice_can_be_taken_at_once(refused, trains, quick, digits, tmp_path):
    values = [*quick, *digits, f"run={tmp_path / 'run'}"]
    said = refused("train", *values, "optimizer.lr=1e30")
    assert "There is no checkpoint yet. Try a lower optimizer.lr" in said
    trains("train", *values, "optimizer.lr=0.01")


def test_what_is_no_finished_run_is_not_used(refused, contents, quick, digits, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert f"{run} is no run's folder: it has no recipe.yaml." in refused("evaluate", run)
    assert "is no run's folder" in refused("export", run)
    said = refused("distill", *quick, *digits, f"teacher.weights={run}", f"run={tmp_path / 'other'}")
    assert "is no run's folder: it has no student.json" in said
    assert contents(tmp_path) == {}


def test_what_follows_from_another_field_is_not_told(refused, quick, finished):
    said = refused("train", *quick, "data.source=digits", "data.val_fraction=0.8", f"run={finished}")
    assert f"{finished} belongs to another recipe: data.val_fraction was 0.9, now 0.8. Give another run=" in said


def test_a_teacher_is_told_field_by_field_and_once(refused, contents, quick, digits, teacher, finished):
    before = contents(finished)
    objective = "objective={ce: 1, kd: {weight: 2, temperature: 3}}"
    said = refused("distill", *quick, *digits, f"teacher.weights={teacher(10)}", objective, f"run={finished}")
    assert f"teacher.weights was none, now '{teacher(10)}'" in said
    assert "objective.kd.weight was none, now 2; objective.kd.temperature was none, now 3" in said
    assert said.count("teacher") == 1 + str(teacher(10)).count("teacher")
    assert "{" not in said
    assert "objective.ce" not in said
    assert contents(finished) == before


def test_another_teacher_and_a_changed_one(refused, trains, quick, digits, teacher, tmp_path):
    own = shutil.copytree(teacher(10), tmp_path / "own")
    values = [*quick, *digits, "objective={ce: 1, pefd: 25}", f"run={tmp_path / 'run'}"]
    trains("distill", *values, f"teacher.weights={own}")
    moved = shutil.copytree(own, tmp_path / "moved")
    trains("distill", *values, "objective.ce={weight: 1}", f"teacher.weights={moved}")
    said = refused("distill", *values, f"teacher.weights={teacher(3)}")
    assert f"belongs to another recipe: teacher.weights was '{own}', now '{teacher(3)}'. Give" in said
    state = {name: value + 1 for name, value in load_file(own / "student.safetensors").items()}
    save_file(state, own / "student.safetensors")
    said = refused("distill", *values, f"teacher.weights={own}")
    assert re.search(
        "run cannot go on: the teacher has changed: the hash was [0-9a-f]{12}, now [0-9a-f]{12}. Give", said
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("identity.json", None, "identity.json is missing: nothing tells whether data and teacher are still those"),
        ("identity.json", "{", "identity.json is damaged: it is no valid JSON ("),
        ("result.json", "[]", "result.json is damaged: it holds a list, not an object. Delete it"),
        ("recipe.yaml", "a: [", "recipe.yaml is damaged: it is no valid YAML ("),
        (
            "recipe.yaml",
            "- 1",
            "recipe.yaml is damaged: it holds no recipe. Put it back as it was, or give another run=",
        ),
    ],
)
def test_damaged_files_of_a_run(refused, trains, contents, quick, digits, finished, tmp_path, name, content, message):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    before = contents(run)
    assert f"{run}/{message}" in refused("train", *quick, *digits, f"run={run}")
    assert contents(run) == before
    if name == "result.json":  # what it said to do does it
        (run / name).unlink()
        trains("train", *quick, *digits, f"run={run}")


def test_the_head_of_a_recipe_is_a_command(monkeypatch, quick):
    values = ["train", "objective={ce: 1, kd: {weight: 1, temperature: 4}}", "data.path=my photos"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/potstill", *values, "run=a\nb"])
    _, command, rest = recipe_with_head(load_recipe(None, quick)).split("\n", 2)
    assert shlex.split(command.removeprefix("# ")) == ["potstill", *values, "run=a b"]
    assert yaml.safe_load(rest)["epochs"] == 1
