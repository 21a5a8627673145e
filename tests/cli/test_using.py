import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from potstill.data.open import open_data
from potstill.networks.weights import read_weights, save_weights


def test_evaluate_gives_what_the_run_ended_with(potstill, teacher_run):
    result = potstill("evaluate", str(teacher_run), "--json")
    found = json.loads(result.stdout)
    ended = json.loads((teacher_run / "result.json").read_text())["rows"]["student"]
    assert found["images"] == 1618
    assert {key: found[key] for key in ("top1", "top5")} == {key: ended[key] for key in ("top1", "top5")}
    assert found["val_loss"] == pytest.approx(ended["val_loss"], rel=1e-5)

    table = potstill("evaluate", str(teacher_run)).stdout
    assert "1,618" in table
    assert f"{ended['top1']:.2f}" in table


def test_a_loss_that_is_no_number_is_null_in_json(potstill, teacher_run, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    weights = read_weights(run / "student.safetensors")
    spoilt = {key: tensor / 0 if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    save_weights(spoilt, run / "student.safetensors")
    result = potstill("evaluate", str(run), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["val_loss"] is None
    assert "nan" in potstill("evaluate", str(run)).stdout


def test_evaluate_weights_without_a_run(potstill, teacher_run):
    weights = f"student.weights={teacher_run / 'student.safetensors'}"
    arguments = ["student.model=resnet8", weights, "data.val_fraction=0.9", "--json"]
    precision = yaml.safe_load((teacher_run / "recipe.yaml").read_text())["precision"]
    found = json.loads(potstill("evaluate", *arguments, f"precision={precision}").stdout)
    ended = json.loads((teacher_run / "result.json").read_text())["rows"]["student"]
    assert found["top1"] == ended["top1"]


@pytest.fixture
def pictures(tmp_path):
    """Some digits as a folder by class, without a split: three classes of the ten, so that their numbers differ."""
    source = open_data("digits", size=16).train
    assert source.labels is not None
    for label in (3, 5, 8):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True)
        for index in np.flatnonzero(source.labels == label)[:6]:
            Image.fromarray(source.image(int(index))).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def test_evaluate_other_images_by_the_names_of_their_classes(potstill, teacher_run, pictures):
    result = potstill("evaluate", str(teacher_run), f"data.path={pictures}", "--json")
    found = json.loads(result.stdout)
    assert found["images"] == 18
    assert "all 18 images are judged" in found["note"]

    (pictures / "8").rename(pictures / "eight")
    result = potstill("evaluate", str(teacher_run), f"data.path={pictures}")
    assert result.exit_code == 2
    assert "has classes that the network does not know: eight." in result.stderr


def test_evaluated_labels_are_the_networks_own_numbers(pictures):
    from potstill.procedures.evaluation import _numbered_as

    class Network:
        class spec:
            classes = 10

    source = open_data("folder", pictures, val_fraction=0).train
    numbered = _numbered_as(source, Network, tuple("0123456789"))
    assert sorted(set(numbered.labels.tolist())) == [3, 5, 8]
    assert numbered.classes == tuple("0123456789")
    assert sorted(set(source.labels.tolist())) == [0, 1, 2]
    assert source.classes == ("3", "5", "8")


def test_export_writes_and_checks(potstill, teacher_run, tmp_path):
    result = potstill("export", str(teacher_run), "--format", "torch", "--out", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    (file,) = json.loads(result.stdout)
    assert file["format"] == "torch"
    assert file["max_difference"] <= 1e-4
    assert (tmp_path / "out" / "student.pt2").stat().st_size > 0


def test_export_shows_its_files(potstill, teacher_run, tmp_path):
    result = potstill("export", str(teacher_run), "-f", "safetensors", "-o", str(tmp_path))
    assert str(tmp_path / "student.safetensors") in result.stdout
    assert "read back" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "There is nothing to judge"),
        (["evaluate", "nowhere"], "nowhere is no run's folder"),
        (["evaluate", "student.model=resnet8"], "There is nothing to judge"),
        (["export", "nowhere"], "nowhere is no run's folder"),
        (["export", "{run}", "--format", "onxx"], "Did you mean 'onnx'?"),
        (["evaluate", "{run}", "data.pth=x"], "Did you mean 'path'?"),
        (["evaluate", "{run}", "objectives={{}}"], "Did you mean 'objective'?"),
        (
            ["evaluate", "{run}", "teacher.weights=nope", "device=cpu", "epochs=3", "objective.ce=1"],
            "`potstill evaluate` does not read teacher.weights, epochs, objective.ce; it reads data.*, student.*, "
            "batch_size, device and precision.",
        ),
        (["evaluate", "student.model=resnet8", "seed=1"], "`potstill evaluate` does not read seed; it reads data.*"),
        (
            ["evaluate", "{run}", "--device", "cpu"],
            "There is no option --device; it is a key of the recipe: device=cpu",
        ),
        (["evaluate", "{run}", "data.path=nowhere"], "There is no nowhere"),
    ],
)
def test_mistakes_are_one_line(potstill, teacher_run, arguments, message):
    result = potstill(*(argument.format(run=teacher_run) for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_an_unfinished_run_cannot_be_judged(potstill, tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 1\n")
    result = potstill("evaluate", str(tmp_path))
    assert result.exit_code == 2
    assert "is not finished" in result.stderr
