"""Faces that are not there, that are not what the run needs, or that a network cannot be judged by."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

NETWORK = ("student.model=iresnet10", "student.args={width: 0.125, scale: 16, dim: 16}")
FACES = (
    "task=faces",
    "epochs=1",
    "device=cpu",
    "schedule.name=constant",
    "data.size=16",
    "batch_size=8",
    "data.far=0.1",
)


@pytest.fixture(scope="module")
def people(draw, tmp_path_factory) -> Path:
    """Ten people of four pictures each."""
    folder = tmp_path_factory.mktemp("people")
    for number in range(10):
        draw(folder / ("person" + "x" * number), 4)  # pictures are drawn by the length of the name
    return folder


@pytest.fixture(scope="module")
def finished(trains, people, tmp_path_factory) -> Path:
    """A finished run, which nobody changes."""
    run = tmp_path_factory.mktemp("runs") / "run"
    trains("train", *FACES, *NETWORK, f"data.path={people}", "log.report=false", f"run={run}")
    return run


def test_no_people(refused, tmp_path):
    said = refused("train", *FACES, *NETWORK, f"run={tmp_path / 'run'}")
    assert "task=faces needs data.path: a folder with one sub-folder a person, or records (train.rec)." in said
    said = refused("train", *FACES, *NETWORK, "data.source=digits", "data.path=x", f"run={tmp_path / 'run'}")
    assert "data.source=digits is no data for task=faces; take folder or records." in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({".": 6}, "has images, but no folder for each person. Put each person's into one."),
        ({"a": 4}, "has one class only (a)"),
        ({"a": 4, "b": 4}, "has 2 people, of whom 0 would be kept to judge by; two are needed on each side."),
        ({"train/a": 4, "train/b": 4, "val/c": 4}, "each folder is taken for a person. Give data.path="),
    ],
)
def test_folders_that_cannot_be_used(refused, draw, tmp_path, contents, folders, message):
    for name, count in folders.items():
        draw(tmp_path / "data" / name, count)
    before = contents(tmp_path)
    assert message in refused("train", *FACES, *NETWORK, f"data.path={tmp_path / 'data'}", f"run={tmp_path / 'run'}")
    assert contents(tmp_path) == before


def test_two_people_alone_can_be_learned_from(trains, draw, tmp_path):
    for name in ("a", "bb"):
        draw(tmp_path / "data" / name, 8)
    run = f"run={tmp_path / 'run'}"
    said = trains("train", *FACES, *NETWORK, f"data.path={tmp_path / 'data'}", "data.val_fraction=0", run)
    assert "Nobody is kept to judge by (val_fraction): all people are learned from." in said
    assert (tmp_path / "run" / "student.safetensors").is_file()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("nowhere.bin", "There is no file "),
        ("nowhere", "is no face protocol: there is no meta/*_face_tid_mid.txt as in IJB-B and IJB-C"),
        ("evil.bin", "evil.bin"),
        ("empty.bin", "should hold two lists"),
        ("pairs.txt", "should begin with the numbers of folds and of pairs of each kind in a fold"),
    ],
)
def test_what_is_judged_by_cannot_be_read(refused, people, tmp_path, protocol, message):
    class Evil:
        def __reduce__(self):
            return print, ("somebody's code",)

    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([Evil()], [True])))
    (tmp_path / "empty.bin").write_bytes(pickle.dumps([]))
    (tmp_path / "pairs.txt").write_text("who and whom\n")
    values = (f"data.path={people}", f"data.protocol={tmp_path / protocol}", f"run={tmp_path / 'run'}")
    said = refused("train", *FACES, *NETWORK, *values)
    assert message in said
    assert "somebody's code" not in said
    assert not (tmp_path / "run").exists()


def test_too_few_comparisons_for_the_rate_that_counts(refused, people, finished, tmp_path):
    values = (f"data.path={people}", "data.far=1e-3", f"run={tmp_path / 'run'}")
    expected = "data.far=0.001 cannot be measured: 16 comparisons of two people tell rates down to 0.062. Take a higher"
    assert expected in refused("train", *FACES, *NETWORK, *values)
    assert expected in refused("evaluate", finished, "data.far=1e-3")
    assert "data.far" in refused("train", *FACES, *NETWORK, f"data.path={people}", "data.far=1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["data.mixup=0.2"], "arcface of the objective needs one identity for each image, and data.mixup and data.cut"),
        (["data.cutmix=1", "objective={cosface: 1}"], "cosface of the objective needs one identity for each image"),
        (["student.model=resnet8", "student.args={}"], "this student's last layer is no identity head; take a network"),
        (["objective={task: 1}"], "task of the objective is for task=detection; with task=faces take ce or a margin."),
        (["student.args.img_size=32"], "IResNet was built for images of 32 x 32 pixels"),
        (["student.args.scale=0"], "scale is 0; give a number above 0"),
        (["student.model=fcn/resnet18", "student.args={}"], "task=faces, but the student is a"),
        (["objective={arcface: {weight: 1, margin: 4}}"], "margin of arcface is 4; expected radians"),
        (["data.loader=streaming"], "task=faces with data.loader=streaming needs images of"),
        (["data.split_seed=1", "data.val_fraction=0"], "data.split_seed=1 does nothing"),
    ],
)
def test_recipes_that_do_not_fit_faces(refused, people, tmp_path, values, message):
    said = refused("train", *FACES, *NETWORK, f"data.path={people}", f"run={tmp_path / 'run'}", *values)
    assert message in said


def test_a_classifier_without_identity_head_learns_by_cross_entropy(trains, people, tmp_path):
    """It has an embedding, which is all that a face is judged by."""
    values = ("student.model=resnet8", "objective={ce: 1}", f"run={tmp_path / 'run'}")
    trains("train", *FACES, f"data.path={people}", *values)
    assert "tar" in json.loads((tmp_path / "run" / "result.json").read_text())["rows"]["student"]


def test_identities_of_other_people_are_not_compared(refused, people, finished, tmp_path):
    values = (f"data.path={people}", f"teacher.weights={finished}", f"run={tmp_path / 'run'}")
    said = refused("distill", *FACES, *NETWORK, *values, "data.split_seed=1", "objective={arcface: 1, kd: 1}")
    assert "The teacher's classes are not the data's: it has 'person" in said
    assert "or an objective that reads features only, such as {arcface: 1, pefd: 25}." in said
    said = refused("distill", *FACES, *NETWORK, *values, "data.val_fraction=0.4", "objective={arcface: 1, kd: 1}")
    assert "kd compares logits, but the student has 6 classes and the teacher 8" in said
    assert not (tmp_path / "run").exists()


def test_evaluating_with_what_the_network_is_not_built_for(refused, finished, tmp_path, draw):
    said = refused("evaluate", finished, "data.size=32")
    assert "data.size=32 cannot be: the network was built for images of 16 x 16. Leave data.size out." in said
    assert "no face protocol" in refused("evaluate", finished, f"data.protocol={tmp_path}")
    draw(tmp_path / "flat", 4)
    assert "no folder for each person" in refused("evaluate", finished, f"data.path={tmp_path / 'flat'}")
    assert "task=faces; its report has what was measured of it" in refused("analyze", finished)


def test_a_damaged_face_stops_the_run_or_is_left_out(refused, potstill, people, tmp_path):
    data = shutil.copytree(people, tmp_path / "data")
    (data / "person" / "002.png").write_bytes(b"no image")
    values = (f"data.path={data}", f"run={tmp_path / 'run'}")
    said = refused("train", *FACES, *NETWORK, *values)
    assert f"{data / 'person' / '002.png'}" in said
    done = potstill("train", *FACES, *NETWORK, *values, "data.on_error=skip", "log.report=false")
    assert done.exit_code == 0, done.output
    assert "1 damaged image was skipped." in done.output
    skipped = json.loads((tmp_path / "run" / "result.json").read_text())["data"]["skipped"]
    assert list(skipped["train"] | skipped["val"]) == [str(data / "person" / "002.png")]


def test_landmarks_of_some_images_only(refused, people, tmp_path):
    data = shutil.copytree(people, tmp_path / "data")
    head = ",".join(["file", *(f"{axis}{k}" for k in range(1, 6) for axis in "xy")])
    (data / "landmarks.csv").write_text(f"{head}\nperson/000.png,1,1,5,1,3,3,1,5,5,5\n")
    Image.new("L", (4, 4)).save(data / "person" / "000.png")
    said = refused("train", *FACES, *NETWORK, f"data.path={data}", f"run={tmp_path / 'run'}")
    assert "39 of 40 images have no landmarks, the first: person/001.png" in said
