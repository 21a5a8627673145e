"""Detection and segmentation: what cannot be is refused with a sentence, before a folder is made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.procedures.tiny_scenes import DETECTION, DETECTOR, LEARNS, SEGMENTATION, boxes_folder, masks_folder

Refuse = Callable[..., str]
BOXES, MASKS = "boxes", "masks"
RETINANET = ("student.model=retinanet/test_resnet.r160_in1k", "student.args={pyramid: 32}")


@pytest.fixture(scope="module")
def place(trains, tmp_path_factory) -> Path:
    """Data of both kinds, and a teacher of each; two detectors whose classes are other ones."""
    folder = tmp_path_factory.mktemp("scenes")
    boxes_folder(folder / BOXES)
    masks_folder(folder / MASKS)
    boxes_folder(folder / "renamed", classes=("green", "blue"))
    boxes_folder(folder / "three", classes=("red", "blue", "green"))
    quick = ("epochs=1", "batch_size=8", "log.evaluate=1")
    for name in (BOXES, "renamed", "three"):
        trains("train", *DETECTION, *quick, f"data.path={folder / name}", f"run={folder / f'{name}-teacher'}")
    trains("train", *SEGMENTATION, *quick, f"data.path={folder / MASKS}", f"run={folder / f'{MASKS}-teacher'}")
    return folder


@pytest.fixture
def detection(refused, place, tmp_path) -> Refuse:
    """What is said to a run of detection with these values."""
    return _refusing(refused, tmp_path / "run", *DETECTION, f"data.path={place / BOXES}")


@pytest.fixture
def segmentation(refused, place, tmp_path) -> Refuse:
    """What is said to a run of segmentation with these values."""
    return _refusing(refused, tmp_path / "run", *SEGMENTATION, f"data.path={place / MASKS}")


def _refusing(refused: Refuse, run: Path, *common: str) -> Refuse:
    def say(*values: str, command: str = "train") -> str:
        said = refused(command, *common, *values, f"run={run}")
        assert not run.exists()
        return said

    return say


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("data.crop=pad", "data.crop=pad does nothing with task=detection: detection shows whole images"),
        ("data.padding=2", "data.padding=2 does nothing with task=detection"),
        ("data.scale=[0.5, 1.0]", "data.scale=(0.5, 1.0) does nothing with task=detection"),
        ("data.ratio=[0.5, 1.0]", "data.ratio=(0.5, 1.0) does nothing with task=detection"),
        ("data.mixup=0.2", "data.mixup=0.2 does nothing with task=detection: boxes and masks are not mixed"),
        ("data.cutmix=0.2", "data.cutmix=0.2 does nothing with task=detection"),
        ("data.loader=resident", "data.loader=resident does nothing with task=detection"),
        ("data.order=groups", "data.order=groups does nothing with task=detection"),
        ("data.image_column=image", "data.image_column=image does nothing with task=detection"),
        ("data.far=0.1", "data.far=0.1 does nothing with task=detection: it is for task=faces"),
        ("data.split_seed=4", "brings a part to judge by, so there is no split to choose"),
        ("data.source=cifar10", "data.source=cifar10 is no data for task=detection; take coco, voc or masks."),
        ("data.source=masks", "detection has no data source 'masks'; it has auto, coco, voc."),
        ("data.sizes=[0]", "data.sizes"),
        ("data.longest=32", "longest=32 is less than the short side of 64"),
        ("compile=true", "compile=true cannot be with task=detection: a detector's lists change their lengths."),
        ("graph=true", "graph=true cannot be"),
    ],
)
def test_a_setting_that_nothing_would_read(detection, value, reason):
    assert reason in detection(value)


def test_several_settings_are_told_of_at_once(detection):
    said = detection("data.crop=pad", "data.mixup=0.2", "data.loader=resident")
    assert all(f"data.{name}" in said for name in ("crop=pad", "mixup=0.2", "loader=resident"))


def test_data_that_are_not_there(refused, tmp_path):
    for task, common in (("detection", DETECTION), ("segmentation", SEGMENTATION)):
        run = f"run={tmp_path / 'run'}"
        assert f"task={task} needs data.path" in refused("train", *common, run)
        assert str(tmp_path / "nowhere") in refused("train", *common, f"data.path={tmp_path / 'nowhere'}", run)
    assert list(tmp_path.iterdir()) == []


def test_masks_where_boxes_are_asked_for_and_boxes_where_masks_are(refused, place, tmp_path):
    run = f"run={tmp_path / 'run'}"
    assert "detection" in refused("train", *DETECTION, f"data.path={place / MASKS}", run)
    assert "segmentation" in refused("train", *SEGMENTATION, f"data.path={place / BOXES}", run)


def test_a_part_to_judge_by_that_there_is_not(refused, place, tmp_path):
    folder = tmp_path / "boxes"
    boxes_folder(folder, test=1)
    (folder / "annotations" / "instances_test2017.json").unlink()
    said = refused("train", *DETECTION, f"data.path={folder}", "data.judged=test", f"run={tmp_path / 'run'}")
    assert "has no part 'test' to judge by; it has train, val." in said


@pytest.mark.parametrize("model", ["resnet8", "timm/test_resnet", "fcn/test_resnet.r160_in1k"])
def test_a_network_that_is_no_detector(detection, model):
    said = detection(f"student.model={model}", "student.args={}")
    assert "task=detection, but the student is a " in said
    assert "fasterrcnn/BACKBONE, retinanet/BACKBONE or fcos/BACKBONE (task=detection)" in said


def test_a_detector_that_is_to_name_pixels_or_images(segmentation, refused, digits, tmp_path):
    said = segmentation(*DETECTOR)
    assert "task=segmentation, but the student is a FasterRCNN." in said
    run = f"run={tmp_path / 'run'}"
    said = refused("train", *digits, *DETECTOR, "data.size=64", "epochs=1", "device=cpu", run)
    assert "task=classification, but the student is a FasterRCNN." in said


def test_a_detector_that_torchvision_cannot_build(detection):
    assert "neck" in detection("student.args={neck: 3}")
    assert "anchors" in detection("student.args={anchors: wide}")
    assert "no_such_backbone" in detection("student.model=fasterrcnn/no_such_backbone")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["teacher.store=store"], "work with a live teacher only"),
        (["teacher.store=store", "store.fill=true"], "work with a live teacher only"),
        (["teacher.size=96"], "teacher.size=96 cannot be"),
        (["objective={task: 1, crd: 1}"], "crd of the objective is for whole images; a detector's rows are regions."),
        (["objective={task: 1, cid: 1}"], "cid of the objective is for whole images"),
        (["objective={task: 1, reviewkd: 1}"], "set reviewkd: {weight: 1, embedding: false}"),
        (["objective={task: 1, arcface: 1}"], "arcface reads cosines"),
        (["objective={task: 1}"], "no method of the objective (task) reads it"),
        (
            [*RETINANET, "objective={task: 1, kd: 1}"],
            "kd of the objective reads regions, and the student looks at none",
        ),
        (
            [*RETINANET, "objective={task: 1, nd: 1}"],
            "nd of the objective reads regions, and the student looks at none",
        ),
        ([*RETINANET, "procedure.name=stagewise", "epochs=9"], "the student shows 3 stages and the teacher 4"),
        (["procedure.name=stagewise", "epochs=5"], "epochs=5 does not suffice for 5 stages"),
        (["procedure.name=stagewise", "epochs=9", "procedure.stem=true"], "procedure.stem=true cannot be"),
        (
            ["procedure.name=mutual", f"procedure.peers=[{RETINANET[0][14:]}]", "objective={task: 1, mutual: 1}"],
            "procedure.name=mutual compares the peers' logits of whole images, which task=detection does not have",
        ),
        (["teacher.class_means=clean", "objective={task: 1, kd: 1}"], "teacher.class_means=clean does nothing"),
    ],
)
def test_a_teacher_that_a_detector_cannot_learn_from_so(detection, place, values, reason):
    teacher = f"teacher.weights={place / f'{BOXES}-teacher'}"
    assert reason in detection(teacher, *values, command="distill")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["teacher.store=store"], "work with a live teacher only"),
        (["objective={ce: 1, nd: 1}"], "nd of the objective compares images by their classes"),
        (["objective={ce: 1, crd: 1}"], "crd of the objective compares images by their classes"),
        (["objective={ce: 1, cid: 1}"], "cid of the objective compares images by their classes"),
        (["objective={task: 1, kd: 1}"], "task of the objective is for task=detection; with task=segmentation"),
        (["objective={ce: 1, afd: 1}"], "afd"),
    ],
)
def test_a_teacher_that_a_network_for_pixels_cannot_learn_from_so(segmentation, place, values, reason):
    teacher = f"teacher.weights={place / f'{MASKS}-teacher'}"
    assert reason in segmentation(teacher, *values, command="distill")


@pytest.mark.parametrize("term", ["kd", "pefd", "pefd_maps"])
def test_a_teacher_of_another_task(detection, segmentation, place, term):
    pixels, boxes = (f"teacher.weights={place / f'{name}-teacher'}" for name in (MASKS, BOXES))
    said = detection(pixels, f"objective={{task: 1, {term}: 1}}", command="distill")
    assert "task=detection, but the teacher is a FCN, which is for another task" in said
    said = segmentation(boxes, f"objective={{ce: 1, {term}: 1}}", command="distill")
    assert "task=segmentation, but the teacher is a FasterRCNN, which is for another task" in said


def test_a_teacher_of_other_classes(detection, place):
    renamed, three = (f"teacher.weights={place / f'{name}-teacher'}" for name in ("renamed", "three"))
    terms = "objective={task: 1, kd: 1}"
    assert "The teacher's classes are not the data's: it has 'green' for 'red'" in detection(
        renamed, terms, command="distill"
    )
    said = detection(three, terms, command="distill")
    assert "kd compares logits, but the student has 3 classes and the teacher 4." in said  # background is one


def test_a_teacher_of_other_classes_teaches_its_pyramid(trains, place, tmp_path):
    run = tmp_path / "run"
    terms = ("objective={task: 1, pefd_maps: 1}", f"teacher.weights={place / 'three-teacher'}", "epochs=1")
    trains("distill", *DETECTION, f"data.path={place / BOXES}", *terms, f"run={run}")
    result = json.loads((run / "result.json").read_text())
    assert "ap" in result["rows"]["student"]
    assert "ap" not in result["rows"]["teacher"]  # whose classes cannot be told apart here
    assert set(result["per_class"]) == {"student"}


def test_a_factor_for_a_loss_that_there_is_not(refused, place, tmp_path):
    terms = "objective={task: {weight: 1, parts: {clases: 2}}}"
    said = refused("train", *DETECTION, f"data.path={place / BOXES}", terms, f"run={tmp_path / 'run'}")
    assert "Did you mean 'classes'? There are objectness, proposals, classes, boxes." in said


def test_an_objective_without_the_detectors_own_losses_is_warned_of(potstill, place, tmp_path):
    common = ("distill", *DETECTION, "epochs=1", f"data.path={place / BOXES}")
    values = (f"teacher.weights={place / f'{BOXES}-teacher'}", "objective={pefd_maps: 1}", f"run={tmp_path / 'run'}")
    result = potstill(*common, *values)
    assert result.exit_code == 0, result.output
    assert "its proposals and boxes stay as they were drawn. Add task." in " ".join(result.output.split())


def test_judging_a_detector_by_what_it_does_not_know(refused, place):
    run = place / f"{BOXES}-teacher"
    said = refused("evaluate", str(run), f"data.path={place / 'renamed'}")
    assert "has the classes green, blue, and the network red, blue" in said
    assert "size" in refused("evaluate", str(run), "data.size=2000")


def test_analysing_a_detector(refused, place):
    assert "measures embeddings of classes" in refused("analyze", str(place / f"{BOXES}-teacher"))


def test_an_image_that_is_damaged_stops_the_run_or_is_left_out(refused, trains, potstill, tmp_path):
    folder = boxes_folder(tmp_path / BOXES)
    damaged = folder / "train2017" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    common = ("train", *DETECTION, *LEARNS, "epochs=1", f"data.path={folder}")
    assert str(damaged) in refused(*common, f"run={tmp_path / 'stopped'}")
    result = potstill(*common, "data.on_error=skip", f"run={tmp_path / 'skipped'}")
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "skipped" / "result.json").read_text())
    assert str(damaged) in json.dumps(said["data"])
