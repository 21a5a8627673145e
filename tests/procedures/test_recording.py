"""What a finished run's folder holds: predictions, measures of each evaluation, and what the run cost."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from tests.procedures.running import TINY, call

from potstill.analysis.embedding_map import balanced_rows, principal
from potstill.analysis.metrics import between_class_cosine, direction_alignment
from potstill.analysis.predictions import Predictions
from potstill.data.open import open_data
from potstill.networks.features import Features
from potstill.networks.ship import load_student
from potstill.networks.teacher import Teacher
from potstill.procedures import taught
from potstill.training.checkpoints import Checkpoints

TRAIN, VAL = 179, 1618
MEASURES = ("val_norm", "val_m_bc", "val_norm_teacher", "val_cka", "val_m_da")


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    call("distill", *TINY, "epochs=3", f"teacher.weights={teacher}", f"run={folder}")
    return folder


@pytest.fixture
def distill(teacher: Path) -> Callable[..., str]:
    return lambda *values: call("distill", *TINY, f"teacher.weights={teacher}", *values)


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def shown(folder: Path) -> tuple[Features, torch.Tensor]:
    """What a finished run's student shows of the validation images, and their labels."""
    source = open_data("digits", size=16, val_fraction=0.9).val
    images = torch.stack([torch.from_numpy(source.image(i)) for i in range(len(source))]).permute(0, 3, 1, 2) / 255
    network = load_student(folder)
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in network.normalisation)
    with torch.no_grad():
        return network((images - mean) / std), torch.as_tensor(source.labels)


def right(said: torch.Tensor | None, found: Predictions) -> float:
    assert said is not None
    return 100 * (said == found.label).double().mean().item()


def test_the_predictions_are_those_of_both_networks(run: Path, teacher: Path):
    found, rows = Predictions.read(run), result_of(run)["rows"]
    assert found.index.tolist() == list(range(VAL))
    assert (found.classes, found.data) == (10, result_of(run)["data"]["identity"])
    for name, folder in (("student", run), ("teacher", teacher)):
        features, labels = shown(folder)
        assert torch.equal(found.label, labels.int())
        said, sure = getattr(found, name), getattr(found, f"{name}_confidence")
        probabilities = features.logits.softmax(1)
        assert (said == probabilities.argmax(1)).double().mean() > 0.999  # one that is all but undecided may fall
        assert torch.allclose(sure.float(), probabilities.max(1).values, atol=2e-3)
        assert right(said, found) == pytest.approx(rows[name]["top1"], rel=1e-6)
        drawn = balanced_rows(labels, 1000)
        assert torch.equal(found.map_rows, drawn)
        expected = principal(features.embedding[drawn], 32).double()
        map_ = getattr(found, f"map_{name}").double()
        assert map_.shape == (1000, 32)
        assert torch.allclose(map_[:, :5], expected[:, :5], atol=0.05)  # the wide directions, which are well defined
        assert map_.norm() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert sum(row.images for row in found.per_class()) == VAL


def test_the_measures_of_each_epoch_are_there_by_default(run: Path, teacher: Path):
    rows = metrics_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row[name]) == float(row[name]) for row in rows for name in MEASURES)
    assert len({row["val_norm_teacher"] for row in rows}) == 1  # the teacher stands still
    (student, labels), (theirs, _) = shown(run), shown(teacher)
    last = {name: float(rows[-1][name]) for name in MEASURES}
    assert last["val_m_da"] == pytest.approx(direction_alignment(student.embedding, theirs.embedding).item(), rel=1e-3)
    assert last["val_m_bc"] == pytest.approx(between_class_cosine(student.embedding, labels).item(), rel=1e-3)
    assert last["val_norm_teacher"] == pytest.approx(theirs.embedding.norm(dim=1).mean().item(), rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("measures", ["true", "false"])
def test_the_teacher_sees_the_validation_images_once(distill, run, tmp_path, monkeypatch, measures):
    seen, passes = [], Teacher.__call__

    def counted(self: Teacher, images: torch.Tensor, **reads: bool) -> Features:
        seen.append(len(images))
        return passes(self, images, **reads)

    monkeypatch.setattr(Teacher, "__call__", counted)
    distill("epochs=3", f"log.measures={measures}", f"run={tmp_path / 'one'}")
    assert sum(seen) == 3 * TRAIN + VAL
    ours, theirs = metrics_of(tmp_path / "one"), metrics_of(run)
    without = set() if measures == "true" else set(MEASURES)
    assert ours == [{name: value for name, value in row.items() if name not in without} for row in theirs]
    for name in ("student.safetensors", "predictions.safetensors"):  # and nothing depends on who looked
        assert (tmp_path / "one" / name).read_bytes() == (run / name).read_bytes()
    assert result_of(tmp_path / "one")["rows"]["teacher"]["top1"] == result_of(run)["rows"]["teacher"]["top1"]
    assert "val_pefd_distance" in ours[0]  # which costs no look at an image
    seen.clear()
    students = "students=[{seed: 1}, {seed: 2, objective: {ce: 1, kd: 1}}, {teacher: null, objective: {ce: 1}}]"
    distill(students, f"log.measures={measures}", f"run={tmp_path / 'several'}")
    assert sum(seen) == 2 * TRAIN + VAL
    first, second, control = (Predictions.read(tmp_path / "several" / f"student-{number}") for number in (1, 2, 3))
    assert torch.equal(first.teacher, second.teacher)
    assert torch.equal(first.map_teacher, second.map_teacher)
    assert control.teacher is control.map_teacher is None
    assert ("val_norm" in metrics_of(tmp_path / "several" / "student-3")[0]) == (measures == "true")


@pytest.mark.long
def test_an_interrupted_run_has_the_values_of_one_that_was_not(distill, run, tmp_path):
    again = tmp_path / "again"
    distill("epochs=3", "checkpoint.keep=9", f"run={again}")
    begun = result_of(again)["begun"]
    for name in ("result.json", "predictions.safetensors"):
        (again / name).unlink()
    states = sorted(Checkpoints(again / "checkpoints").folder.iterdir())
    assert len(states) == 3
    distill("epochs=3", "checkpoint.keep=9", f"run={again}")  # as killed after the last save
    assert (again / "predictions.safetensors").read_bytes() == (run / "predictions.safetensors").read_bytes()
    for path in (again / "result.json", again / "student.safetensors", *states[1:]):
        path.unlink()
    distill("epochs=3", f"run={again}")  # as killed in the second epoch
    assert metrics_of(again) == metrics_of(run)
    for name in ("student.safetensors", "predictions.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    assert result_of(again)["begun"] == begun
    ours, theirs = result_of(again)["rows"], result_of(run)["rows"]
    for name in ("top1", "top5", "val_loss"):
        assert (ours["student"][name], ours["teacher"][name]) == (theirs["student"][name], theirs["teacher"][name])


def test_of_many_images_a_fixed_part_is_measured(distill, run, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(taught, "MEASURED", 300)
    distill("epochs=3", f"run={tmp_path / 'run'}")
    chosen = taught.measured(VAL)
    assert (len(chosen), len(chosen.unique())) == (300, 300)
    (student, labels), (theirs, _) = shown(tmp_path / "run"), shown(teacher)
    ours = {name: float(value) for name, value in metrics_of(tmp_path / "run")[-1].items()}
    expected = direction_alignment(student.embedding[chosen], theirs.embedding[chosen]).item()
    assert ours["val_m_da"] == pytest.approx(expected, rel=1e-3)
    expected = between_class_cosine(student.embedding[chosen], labels[chosen]).item()
    assert ours["val_m_bc"] == pytest.approx(expected, rel=1e-3)
    whole = {name: float(value) for name, value in metrics_of(run)[-1].items()}
    assert ours["val_norm"] != whole["val_norm"]
    assert (ours["top1"], ours["val_loss"]) == (whole["top1"], whole["val_loss"])  # by all of them
    found, all_ = Predictions.read(tmp_path / "run"), Predictions.read(run)
    assert torch.equal(found.teacher, all_.teacher)
    assert set(found.map_rows.tolist()) == set(chosen.tolist())
    assert result_of(tmp_path / "run")["rows"]["teacher"]["top1"] == result_of(run)["rows"]["teacher"]["top1"]


@pytest.mark.parametrize(
    "values",
    [
        ("data.loader=streaming", "data.workers=0"),
        ("ema=0.5",),
        ("procedure.name=stagewise", "epochs=4"),
        ("procedure.name=mutual", "procedure.peers=[resnet8]", "objective={ce: 1, mutual: 1, pefd: 25}"),
        ("control=true",),
    ],
    ids=" ".join,
)
def test_predictions_of_other_runs(distill, tmp_path, values):
    folder = tmp_path / "run"
    distill(*values, f"run={folder}")
    for one in [folder, folder / "control"] if "control=true" in values else [folder]:
        found, rows = Predictions.read(one), result_of(one)["rows"]
        assert right(found.student, found) == pytest.approx(rows["student"]["top1"], rel=1e-6)
        assert torch.equal(found.student, shown(one)[0].logits.argmax(1).int())
        assert (found.teacher is None) == (one.name == "control")
    assert right(Predictions.read(folder).teacher, Predictions.read(folder)) == pytest.approx(
        result_of(folder)["rows"]["teacher"]["top1"], rel=1e-6
    )


def test_with_a_store_the_teacher_is_asked_for_the_validation_images(distill, teacher, run, tmp_path):
    store = tmp_path / "store"
    values = [f"teacher.store={store}", "data.views=2", "store.dtype=fp32"]
    call("store", "build", *TINY, f"teacher.weights={teacher}", *values)
    distill(*values, f"run={tmp_path / 'run'}")
    found = Predictions.read(tmp_path / "run")
    assert torch.equal(found.teacher, Predictions.read(run).teacher)
    assert torch.equal(found.map_teacher, Predictions.read(run).map_teacher)
    assert metrics_of(tmp_path / "run")[0]["val_norm_teacher"] == metrics_of(run)[0]["val_norm_teacher"]


def test_of_a_teacher_with_other_classes_there_are_embeddings_alone(teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "teacher")
    card = json.loads((other / "student.json").read_text())
    (other / "student.json").write_text(json.dumps({**card, "classes": [f"letter {k}" for k in range(10)]}))
    values = ["objective={ce: 1, pefd: 25}", f"teacher.weights={other}", f"run={tmp_path / 'run'}"]
    call("distill", *TINY, *values)
    found = Predictions.read(tmp_path / "run")
    assert found.teacher is found.teacher_confidence is None
    assert found.map_teacher.shape == (1000, 32)
    assert "top1" not in result_of(tmp_path / "run")["rows"]["teacher"]
    assert float(metrics_of(tmp_path / "run")[-1]["val_m_da"]) > 0


def test_without_validation_images_there_are_no_predictions(distill, tmp_path):
    values = ["data.val_fraction=0", "data.size=8", "epochs=1", "batch_size=256"]
    distill(*values, f"run={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "predictions.safetensors").exists()
    assert result_of(tmp_path / "run")["best"] is None
    (row,) = metrics_of(tmp_path / "run")
    assert "top1" not in row
    assert float(row["val_pefd_distance"]) > 0


def test_validation_images_of_one_class_are_no_obstacle(distill, tmp_path):
    images = tmp_path / "images"
    source = open_data("digits", size=16, val_fraction=0.9).val
    from PIL import Image

    for part, classes in (("train", (0, 1)), ("val", (0,))):
        for label in classes:
            (images / part / str(label)).mkdir(parents=True)
        for number in [i for i, label in enumerate(source.labels) if label in classes][:40]:
            name = images / part / str(source.labels[number]) / f"{number}.png"
            Image.fromarray(source.image(number)).save(name)
    values = ["data.source=folder", f"data.path={images}", "data.val_fraction=null", "objective={ce: 1, pefd: 25}"]
    distill(*values, f"run={tmp_path / 'run'}")
    row = metrics_of(tmp_path / "run")[-1]
    assert float(row["val_norm"]) > 0
    assert "val_m_bc" not in row
    assert "needs images of two or more" in call("analyze", str(tmp_path / "run"), code=2)


def test_what_the_result_says_of_the_run(run, teacher, tmp_path):
    found = result_of(run)
    tops = [float(row["top1"]) for row in metrics_of(run)]
    assert found["best"] == {"epoch": 1 + tops.index(max(tops)), "top1": max(tops)}
    assert 50e6 < found["memory"] < 50e9
    assert found["device"] == "cpu"
    begun, finished = (datetime.fromisoformat(found[name]) for name in ("begun", "finished"))
    assert begun.utcoffset().total_seconds() == 0
    assert 0 <= (finished - begun).total_seconds() < 600
    assert found["teacher"] == {
        "model": "resnet14", "weights": str(teacher), "pretrained": False, "fingerprint": found["teacher_fingerprint"]
    }  # fmt: skip
    assert found["command"].split()[0] == "potstill"
    assert len(found["recipe_hash"]) == len(hashlib.sha256().hexdigest())
    assert result_of(teacher)["teacher"] is None
    for values, same in ((("epochs=3", "log.every=7"), True), (("epochs=3", "clip=1"), False)):
        folder = tmp_path / f"{same}"
        call("distill", *TINY, *values, f"teacher.weights={teacher}", f"run={folder}")
        assert (result_of(folder)["recipe_hash"] == found["recipe_hash"]) == same


@pytest.mark.long
def test_two_processes_write_one_file(teacher, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "potstill", "distill", *TINY, f"teacher.weights={teacher}", f"run={tmp_path / 'run'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found, rows = Predictions.read(tmp_path / "run"), result_of(tmp_path / "run")["rows"]
    assert found.index.tolist() == list(range(VAL))
    for name, folder in (("student", tmp_path / "run"), ("teacher", teacher)):
        features, labels = shown(folder)
        assert torch.equal(found.label, labels.int())
        assert (getattr(found, name) == features.logits.argmax(1)).double().mean() > 0.999
        assert right(getattr(found, name), found) == pytest.approx(rows[name]["top1"], rel=1e-6)
        expected = principal(features.embedding[found.map_rows], 32)
        assert torch.allclose(getattr(found, f"map_{name}").float()[:, :3], expected.float()[:, :3], atol=0.05)
    (student, labels), (theirs, _) = shown(tmp_path / "run"), shown(teacher)
    last = {name: float(value) for name, value in metrics_of(tmp_path / "run")[-1].items()}
    assert last["val_m_da"] == pytest.approx(direction_alignment(student.embedding, theirs.embedding).item(), rel=1e-3)
    assert last["val_m_bc"] == pytest.approx(between_class_cosine(student.embedding, labels).item(), rel=1e-3)
