"""Data that are not there, or not what the run needs; and data that only look wrong."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

# What images of random pixels of a few sizes need, beside the quick values.
RESIDENT = ("data.loader=resident", "data.crop=none")


def test_a_path_that_is_not_there(refused, quick, tmp_path):
    said = refused("train", *quick, f"data.path={tmp_path / 'nowhere'}", f"run={tmp_path / 'run'}")
    assert f"There is no {tmp_path / 'nowhere'}; data.path must be an existing file or folder." in said
    said = refused("train", *quick, "data.source=cifar100", f"run={tmp_path / 'run'}")
    assert "The data source 'cifar100' needs data.path" in said
    said = refused("train", *quick, "data.source=cifar", f"run={tmp_path / 'run'}")
    assert "data.source is 'cifar'; expected 'auto', 'digits', 'cifar10', 'cifar100'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "has no images. Give a folder with one sub-folder of images for each class."),
        ({"only": 4}, "has one class only (only); a labelled set needs at least two classes."),
        ({"cats": 4, "dogs": 0}, "no images in the class folder dogs. Add some or remove the folder."),
        ({"cats": 4, ".": 2}, "has images (000.png) beside folders (cats)."),
        ({"train/cats": 4, "train/dogs": 4, "val/birds": 2}, "has a class that the training set lacks: birds."),
        ({".": 6}, "The data has no labels, but ce in the objective needs them"),
    ],
)
def test_folders_that_cannot_be_used(refused, quick, draw, tmp_path, contents, folders, message):
    data = tmp_path / "data"
    data.mkdir()
    for name, count in folders.items():
        draw(data / name, count)
    before = contents(tmp_path)
    assert message in refused("train", *quick, *RESIDENT, f"data.path={data}", f"run={tmp_path / 'run'}")
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_data(refused, quick, tmp_path):
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(b"PK\3\4")
    said = refused("train", *quick, f"data.path={archive}", f"run={tmp_path / 'run'}")
    assert "an archive must be unpacked first" in said
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("more", [[], ["data.mixup=0.2", "data.cutmix=1.0"]], ids=["plain", "mixed"])
def test_images_without_labels_train_by_features(trains, quick, draw, teacher, tmp_path, more):
    """Mixing needs no labels either: both networks see the mixed image."""
    draw(tmp_path / "flat", 12)
    values = [f"data.path={tmp_path / 'flat'}", f"teacher.weights={teacher(3)}", f"run={tmp_path / 'run'}", *more]
    said = trains("distill", *quick, *RESIDENT, *values, "objective={pefd: 25}")
    assert "The images lie flat, so they go without labels." in said
    (epoch,) = [line for line in said.splitlines() if "  done  " in line]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "top1" not in result["rows"]["student"]
    pefd, total = (result["rows"]["student"][name] for name in ("val_pefd", "val_total"))
    assert f"  val_total {total:.4g}  val_pefd {pefd:.4g}  " in epoch
    assert (
        f"there are no accuracies. The student's objective on the validation images, val_total, is {total:.4g};" in said
    )
    assert (result["data"]["train"], result["data"]["val"], result["classes"]) == (11, 1, [])
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["objective"] == {"pefd": 25.0}


def test_mixing_without_a_method_that_reads_labels(trains, quick, digits, teacher, tmp_path):
    values = [f"teacher.weights={teacher(3)}", "objective={pefd: 25}", "data.mixup=0.2", f"run={tmp_path / 'run'}"]
    trains("distill", *quick, *digits, *values)
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_no_control_without_labels(refused, quick, draw, teacher, tmp_path):
    draw(tmp_path / "flat", 12)
    values = [f"data.path={tmp_path / 'flat'}", f"teacher.weights={teacher(3)}", f"run={tmp_path / 'run'}"]
    said = refused("distill", *quick, *RESIDENT, *values, "objective={pefd: 25}", "control=true")
    assert "control=true trains the student on labels without a teacher; it needs labels and a teacher." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["data.label_column=lable"], "has no column 'lable' for data.label_column. Did you mean 'label'?"),
        (["data.image_column=picture"], "has no column 'picture' for data.image_column."),
        (["data.image_column=label"], "column 'label' holds int64, not image files."),
        (["data.label_column=img"], "labels must be whole numbers or text, but column 'img' holds"),
    ],
)
def test_parquet_without_the_named_column(refused, quick, draw, tmp_path, values, message):
    files = draw(tmp_path / "pictures", 4)
    table = pa.table({"img": [{"bytes": file.read_bytes()} for file in files], "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    said = refused("train", *quick, f"data.path={tmp_path / 'train.parquet'}", f"run={tmp_path / 'run'}", *values)
    assert message in said
    assert "label" in said
    assert not (tmp_path / "run").exists()


def test_damaged_parquet(refused, quick, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    said = refused("train", *quick, f"data.path={tmp_path}", f"run={tmp_path / 'run'}")
    assert "train.parquet" in said
    assert not (tmp_path / "run").exists()


def test_no_validation_and_a_batch_of_more_than_there_is(trains, quick, draw, tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 3)
    run = tmp_path / "run"
    said = trains(
        "train", *quick, *RESIDENT, f"data.path={tmp_path / 'data'}", f"run={run}", "data.val_fraction=0",
        "batch_size=512",
    )  # fmt: skip
    assert "No validation set was asked for (val_fraction=0): all images are trained on." in said
    result = json.loads((run / "result.json").read_text())
    assert (result["data"]["train"], result["data"]["val"]) == (6, 0)
    assert set(result["rows"]["student"]) & {"top1", "top5", "parameters"} == {"parameters"}
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


def test_more_micro_batches_than_images(trains, quick, draw, tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 2)
    values = [f"data.path={tmp_path / 'data'}", f"run={tmp_path / 'run'}", "data.val_fraction=0", "accumulate=6"]
    trains("train", *quick, *RESIDENT, *values)


def test_a_single_image_left_over_for_a_batch_norm_over_vectors(refused, trains, quick, draw, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("cats", "dogs"):
        draw(tmp_path / "data" / name, 3)
    values = ["data.path=data", "data.val_fraction=0", "batch_size=5", "student.model=own_network:make"]
    said = refused("train", *quick, *RESIDENT, *values, "run=run")
    assert "A batch of 1 image is too small for this student: its batch norm needs several values a channel." in said
    # Nothing was learnt, so the mended command may use the folder.
    trains("train", *quick, *RESIDENT, *values, "run=run", "batch_size=3")
