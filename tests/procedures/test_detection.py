"""Runs of detection through the command: what they leave, what trains when, and that an interrupted one is the same."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from tests.procedures.running import call
from tests.procedures.tiny_scenes import CLASSES, DETECTION, LEARNS, boxes_folder
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as transforms
from typer.testing import CliRunner

from potstill.cli import app
from potstill.networks.build import build_network
from potstill.networks.ship import load_student
from potstill.networks.stages import stage_parameters
from potstill.networks.teacher import Teacher, fingerprint
from potstill.procedures.class_means import collect_class_means
from potstill.procedures.data import Data, describe_data, prepare_data
from potstill.procedures.networks import build_teacher
from potstill.procedures.opening import open_split
from potstill.procedures.run import resolve_with
from potstill.recipe import lay_over, load_recipe
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes

REGIONS = "objective={task: 1, nd: 1, kd: 1, pefd_maps: 1}"
COSTS = {"parameters", "macs", "latency_ms", "bytes"}
Distill = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxes_folder(tmp_path_factory.mktemp("scenes") / "boxes")


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a detector that finds some of the squares, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *DETECTION, *LEARNS, f"data.path={data}", "seed=1", f"run={folder}")
    return folder


@pytest.fixture(scope="module")
def distill(data: Path, teacher: Path) -> Distill:
    return lambda *values: call("distill", *DETECTION, f"data.path={data}", f"teacher.weights={teacher}", *values)


@pytest.fixture(scope="module")
def run(distill: Distill, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the teacher's weights that learns from regions and pyramids, beside its control."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    values = ["optimizer.lr=0.0002", "log.shares=1", "log.report=true", "control=true"]
    distill(f"student.weights={teacher}", "student.model=null", "student.args={}", REGIONS, *values, f"run={folder}")
    return folder


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def metrics_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def steps_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def states(run: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Phase and student of each checkpoint."""
    checkpoints = Checkpoints(run / "checkpoints")
    loaded = [checkpoints.load(path) for path in sorted(checkpoints.folder.iterdir())]
    return [(state["phase"], state["student"]) for state in loaded]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def drawn(run: Path) -> dict[str, Tensor]:
    """The student as its run drew it."""
    torch.manual_seed(0)
    config = yaml.safe_load((run / "recipe.yaml").read_text())["student"]
    network = build_network(config["model"], classes=2, args=config["args"], input_size=(3, 64, 96))
    return network.network.state_dict()


def precision(run: Path, data: Path, part: str) -> dict[str, float]:
    """COCO's own average precision of a shipped detector, in percent; each image is seen by itself."""
    network, truth = load_student(run), COCO(str(data / "annotations" / f"instances_{part}.json"))
    network.eval()
    mean, std = network.normalisation
    rows = []
    for image in truth.dataset["images"]:
        pixels = transforms.pil_to_tensor(Image.open(data / part / image["file_name"]).convert("RGB"))
        height, width = pixels.shape[1:]
        scale = min(64 / min(height, width), 107 / max(height, width))  # data.size and what data.longest comes to
        size = (round(height * scale), round(width * scale))
        seen = transforms.normalize(transforms.to_dtype(transforms.resize(pixels, size), scale=True), mean, std)
        seen = torch.nn.functional.pad(seen, (0, -size[1] % 32, 0, -size[0] % 32))
        (found,) = network.detect(seen[None], (size,))
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            x1, y1, x2, y2 = (box * torch.tensor([width / size[1], height / size[0]] * 2)).tolist()
            row = {"image_id": image["id"], "category_id": 10 + int(label), "score": float(score)}
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    judged = COCOeval(truth, truth.loadRes(rows), "bbox")
    judged.evaluate(), judged.accumulate(), judged.summarize()
    return {name: 100 * value for name, value in zip(("ap", "ap50", "ap75"), judged.stats, strict=False)}


def test_a_run_leaves_the_average_precision_of_all_its_networks(run: Path, teacher: Path):
    result, rows = result_of(run), metrics_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    values = {"ap", "ap50", "ap75", "ap_small", "ar"}  # there are no larger squares
    student = result["rows"]["student"]
    assert set(student) == values | COSTS
    assert {name: float(rows[-1][name]) for name in values} == {name: student[name] for name in values}
    assert result["rows"]["teacher"]["ap"] == result_of(teacher)["rows"]["student"]["ap"] > 5
    tops = [float(row["ap"]) for row in rows]
    assert result["best"] == {"epoch": 1 + tops.index(max(tops)), "ap": max(tops)}
    for who in ("student", "teacher"):
        per_class = result["per_class"][who]
        assert set(per_class) == set(CLASSES)
        assert sum(per_class.values()) / 2 == pytest.approx(result["rows"][who]["ap"], abs=1e-9)
    assert result["classes"] == list(CLASSES)
    assert (result["data"]["train"], result["data"]["val"]) == (8, 4)


def test_the_pictures_show_boxes_in_pixels_of_the_pictures(run: Path, data: Path):
    pictures = json.loads((run / "pictures" / "pictures.json").read_text())
    truth = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    assert [Path(one["name"]).name for one in pictures] == [one["file_name"] for one in truth["images"]]
    for number, one in enumerate(pictures):
        assert one["size"] == [truth["images"][number][side] for side in ("width", "height")]
        boxes = [row["bbox"] for row in truth["annotations"] if row["image_id"] == truth["images"][number]["id"]]
        expected = [[x, y, x + w, y + h, name] for (x, y, w, h), name in zip(boxes, CLASSES, strict=True)]
        assert one["truth"] == expected
        for who in ("student", "teacher"):
            assert all(row[4] in CLASSES and 0.05 <= row[5] <= 1 for row in one[who])
            assert [row[5] for row in one[who]] == sorted((row[5] for row in one[who]), reverse=True)
    assert any(one["teacher"] for one in pictures)
    page = (run / "report.html").read_text()
    assert "AP" in page
    assert "data:image" in page


def test_the_control_trains_on_the_detectors_own_losses(run: Path):
    recipe = yaml.safe_load((run / "control" / "recipe.yaml").read_text())
    assert (recipe["objective"], recipe["teacher"], recipe["task"]) == ({"task": 1.0}, None, "detection")
    assert {"task", "total"} <= metrics_of(run / "control")[0].keys()
    assert not {"nd", "kd", "pefd_maps"} & metrics_of(run / "control")[0].keys()
    assert set(result_of(run / "control")["per_class"]) == {"student"}
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (run, run / "control"))
    assert changed(ours, theirs)


def test_the_shares_of_all_terms_are_measured_at_the_pyramid(run: Path):
    for step in steps_of(run):
        shares = {name: value for name, value in step.items() if name.startswith("share_")}
        assert set(shares) == {"share_task", "share_nd", "share_kd", "share_pefd_maps"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert min(shares.values()) > 0
        total = step["task"] + step["nd"] + step["kd"] + step["pefd_maps"]
        assert step["total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("part", "batch_size"), [("val", 4), ("val", 1), ("test", 3)])
def test_evaluate_gives_what_coco_itself_gives(teacher: Path, data: Path, part, batch_size):
    found = json.loads(call("evaluate", str(teacher), f"data.judged={part}", f"batch_size={batch_size}", "--json"))
    expected = precision(teacher, data, f"{part}2017")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["images"] == {"val": 4, "test": 3}[part]
    if part == "val":
        assert found["ap"] == pytest.approx(result_of(teacher)["rows"]["student"]["ap"], abs=1e-9)


def test_the_teacher_is_as_it_was_and_the_whole_student_trains(run: Path, teacher: Path):
    before, after = (load_file(folder / "student.safetensors") for folder in (teacher, run))
    assert result_of(run)["teacher_fingerprint"] == fingerprint(before)
    assert fingerprint(load_student(teacher).network.state_dict()) == fingerprint(before)
    trained = {name for name, _ in load_student(run).network.named_parameters()}
    assert trained <= changed(before, after)  # the student began as the teacher


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "values",
    [
        [REGIONS, "ema=0.9", "accumulate=2"],
        pytest.param(["procedure.name=stagewise", "epochs=7"], marks=pytest.mark.long),
        pytest.param([REGIONS, "data.sizes=[48,64]", "checkpoint.every_steps=1"], marks=pytest.mark.long),
    ],
    ids=["regions", "stagewise", "sizes"],
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(distill, data, teacher, monkeypatch, tmp_path, values, saves):
    distill(*values, f"run={tmp_path / 'whole'}")
    save, count = Checkpoints.save, iter(range(1, 100))

    def then_die(self: Checkpoints, step: int, state: dict) -> Path:
        path = save(self, step, state)
        if next(count) == saves:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", then_die)
        command = ["distill", *DETECTION, f"data.path={data}", f"teacher.weights={teacher}", *values]
        assert CliRunner().invoke(app, [*command, f"run={tmp_path / 'cut'}"]).exit_code == 130
    assert not (tmp_path / "cut" / "result.json").exists()
    distill(*values, f"run={tmp_path / 'cut'}")
    whole, cut = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole
    ours, theirs = (result_of(tmp_path / name) for name in ("whole", "cut"))
    assert ours["rows"]["student"]["ap"] == theirs["rows"]["student"]["ap"]
    assert ours["per_class"] == theirs["per_class"]


def test_stage_by_stage_each_phase_trains_its_own_part(distill: Distill, tmp_path: Path):
    run = tmp_path / "run"
    said = distill("procedure.name=stagewise", "epochs=6", "checkpoint.keep=50", f"run={run}")
    assert "student, stage 5  epoch 5/5  done" in said
    assert "student, head  epoch 6/6  done" in said
    student = load_student(run)
    one, two, three, four, pyramid, head = map(set, stage_parameters(student))
    assert all(name.startswith("backbone.fpn.") for name in pyramid)
    assert {name.split(".")[0] for name in head} == {"rpn", "roi_heads"}
    parts = {"stage 1": one, "stage 2": two, "stage 3": three, "stage 4": four, "stage 5": pyramid, "head": head}
    before = drawn(run)
    for phase, after in states(run):
        moved = changed(before, after)
        assert moved <= parts[phase], phase  # batch norms' statistics stand still too
        assert {name for name in parts[phase] if name.endswith(("weight", "bias"))} <= moved, phase
        before = after
    rows = metrics_of(run)
    assert [row["phase"] for row in rows] == [f"stage {k}" for k in range(1, 6)] + ["head"]
    assert [bool(row["ap"]) for row in rows] == [False] * 5 + [True]
    assert [bool(row["mimic"]) for row in rows] == [True] * 5 + [False]
    assert [bool(row["task"]) for row in rows] == [False] * 5 + [True]


def test_a_hint_of_the_pyramid_trains_all_that_leads_to_it(distill: Distill, tmp_path: Path):
    run = tmp_path / "run"
    terms = "objective={task: 1, fitnets: {weight: 1, layer: 1}}"
    distill("procedure.name=hint", terms, "procedure.stage_epochs=1", "checkpoint.keep=9", f"run={run}")
    *before, _ = map(set, stage_parameters(load_student(run)))
    (first, hinted), (second, after) = states(run)
    assert (first, second) == ("hint", "kd")
    moved = changed(hinted, after)
    assert {name for name in after if name.endswith(("weight", "bias"))} <= moved
    moved = changed(drawn(run), hinted)
    assert moved <= set().union(*before)
    assert {"backbone.fpn.inner_blocks.1.0.weight", "backbone.body.network.layer4.0.conv1.weight"} <= moved


class _Half(Processes):
    """One of two processes that sum what each has, and that run one after the other."""

    parts: ClassVar[list[list[Tensor]]] = []

    def sum(self, values: Tensor) -> Tensor:
        self.parts[self.rank].append(values)
        return values


def opened(data: Path, teacher: Path, processes: Processes, *values: str) -> tuple[Data, Teacher]:
    """Data and teacher of a run."""
    paths = (f"data.path={data}", f"teacher.weights={teacher}")
    recipe = load_recipe(None, [*DETECTION, *paths, "objective={task: 1, nd: 1}", *values])
    split = open_split(recipe)
    recipe = resolve_with(recipe, split, processes)
    facts = describe_data(recipe, split)
    return prepare_data(recipe, split, processes), build_teacher(recipe, facts, processes)


@pytest.mark.parametrize(("policy", "batch_size"), [("clean", 3), ("augmented", 4)])
def test_class_means_do_not_depend_on_batches_and_processes(data: Path, teacher: Path, policy, batch_size):
    cpu, values = torch.device("cpu"), ("data.sizes=[24,64]", f"batch_size={batch_size}")
    loaded, network = opened(data, teacher, Processes(cpu), *values)
    whole = collect_class_means(network, loaded, policy, Processes(cpu))
    assert whole.shape == (3, 16)  # background is the last class
    _Half.parts = [[], []]
    for rank in range(2):
        half = _Half(cpu, rank, 2)
        loaded, network = opened(data, teacher, half, *values)
        collect_class_means(network, loaded, policy, half)
    sums, counts = (first + second for first, second in zip(*_Half.parts, strict=True))
    torch.testing.assert_close((sums / counts[:, None]).float(), whole, rtol=1e-5, atol=1e-6)


def test_class_means_are_of_all_that_the_teacher_proposes_and_of_the_objects(
    data: Path, teacher: Path, distill, tmp_path
):
    run = tmp_path / "run"
    distill("objective={task: 1, nd: 1}", "teacher.class_means=clean", "epochs=1", f"run={run}")
    found = load_file(run / "class_means.safetensors")["class_means"]
    loaded, _ = opened(data, teacher, Processes(torch.device("cpu")), "batch_size=1")
    detector = load_student(teacher).network.eval()
    embeddings, labels = [], []
    for ((batch,),) in zip(loaded.clean().epoch(0)):
        levels = detector.backbone(batch.images)
        with torch.no_grad():
            (proposed,), _ = detector.rpn(ImageList(batch.images, list(batch.objects.sizes)), levels)
            boxes = torch.cat([proposed, batch.objects.boxes[0]])
            pooled = detector.roi_heads.box_roi_pool(levels, [boxes], list(batch.objects.sizes))
            embeddings.append(detector.roi_heads.box_head(pooled))
        overlap, which = box_iou(boxes, batch.objects.boxes[0]).max(1)
        labels.append(torch.where(overlap >= 0.5, batch.objects.labels[0][which], 2))
    embedding, label = torch.cat(embeddings), torch.cat(labels)
    expected = torch.stack([embedding[label == k].mean(0) for k in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_students_side_by_side_are_each_what_it_is_alone(distill: Distill, tmp_path: Path):
    students = "students=[{name: regions}, {name: pyramid, objective: {task: 1, pefd_maps: 1}, seed: 3}]"
    distill(REGIONS, students, "epochs=1", f"run={tmp_path / 'both'}")
    for name, values in {
        "regions": [REGIONS],
        "pyramid": ["objective={task: 1, pefd_maps: 1}", "seed=3", "data.order_seed=0", "data.view_seed=0"],
    }.items():
        distill(*values, "epochs=1", f"run={tmp_path / name}")
        alone, beside = ((tmp_path / place / "student.safetensors").read_bytes() for place in (name, f"both/{name}"))
        assert beside == alone, name
        ours, theirs = (result_of(tmp_path / place)["rows"] for place in (name, f"both/{name}"))
        assert ours["teacher"]["ap"] == theirs["teacher"]["ap"]


@pytest.mark.parametrize(
    ("model", "args"),
    [("retinanet", "{pyramid: 32, anchors: [8, 16, 32, 64, 128]}"), ("fcos", "{pyramid: 64, convolutions: 1}")],
)
def test_detectors_of_one_stage_learn_from_the_pyramid_of_one_of_two(distill: Distill, tmp_path: Path, model, args):
    run = tmp_path / "run"
    networks = [f"student.model={model}/test_resnet.r160_in1k", f"student.args={args}"]
    distill(*networks, "objective={task: 1, pefd_maps: 5}", "epochs=3", "log.shares=1", f"run={run}")
    rows, steps = metrics_of(run), steps_of(run)
    assert float(rows[-1]["pefd_maps"]) < float(rows[0]["pefd_maps"])
    assert float(rows[-1]["task"]) < float(rows[0]["task"])
    assert "ap" in result_of(run)["rows"]["student"]
    assert all(step["share_task"] + step["share_pefd_maps"] == pytest.approx(1, abs=1e-5) for step in steps)
    found = json.loads(call("evaluate", str(run), "--json"))
    assert found["ap"] == pytest.approx(result_of(run)["rows"]["student"]["ap"], abs=1e-9)


def test_what_ships_is_the_average_of_the_weights(distill: Distill, tmp_path: Path):
    run = tmp_path / "run"
    distill(REGIONS, "ema=0.9", f"run={run}")
    newest = Checkpoints(run / "checkpoints")
    state = newest.load(newest.newest())
    shipped = load_file(run / "student.safetensors")
    assert {name for name in shipped if name.endswith(("weight", "running_mean"))} <= changed(shipped, state["student"])
    found = json.loads(call("evaluate", str(run), "--json"))
    assert found["ap"] == pytest.approx(result_of(run)["rows"]["student"]["ap"], abs=1e-9)


def torchrun(place: Path, *arguments: str) -> None:
    """A command in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_two_processes_train_and_judge_as_one(run, data, teacher, tmp_path):
    paths = (f"data.path={data}", f"teacher.weights={teacher}")
    torchrun(tmp_path, "potstill", "distill", *DETECTION, *paths, REGIONS, "batch_size=3", "run=two")
    two, one = result_of(tmp_path / "two"), result_of(run)
    assert two["rows"]["student"].keys() == one["rows"]["student"].keys()
    assert two["rows"]["teacher"]["ap"] == pytest.approx(one["rows"]["teacher"]["ap"], abs=1e-9)
    found = json.loads(call("evaluate", str(tmp_path / "two"), "--json"))
    assert found["ap"] == pytest.approx(two["rows"]["student"]["ap"], abs=1e-9)
    shown = json.loads((tmp_path / "two" / "pictures" / "pictures.json").read_text())
    assert len(shown) == 4
    assert all({"truth", "student", "teacher"} <= one.keys() for one in shown)


MEANS = """
import sys
import torch
from safetensors.torch import save_file
from potstill.networks.teacher import Teacher, fingerprint
from potstill.procedures.class_means import collect_class_means
from potstill.procedures.data import describe_data, prepare_data
from potstill.procedures.networks import build_teacher
from potstill.procedures.opening import open_split
from potstill.procedures.run import resolve_with
from potstill.recipe import lay_over, load_recipe
from potstill.training.distributed import joined

torch.set_num_threads(1)
with joined("cpu") as processes:
    recipe = load_recipe(None, sys.argv[2:])
    split = open_split(recipe)
    recipe = resolve_with(recipe, split, processes)
    teacher = build_teacher(recipe, describe_data(recipe, split), processes)
    means = collect_class_means(teacher, prepare_data(recipe, split, processes), "augmented", processes)
    if processes.main:
        save_file({"means": means}, f"{sys.argv[1]}-{processes.world}.safetensors")
"""


@pytest.mark.long
def test_class_means_of_real_images_are_the_same_for_one_and_two_processes(shared_data, tmp_path):
    values = [*DETECTION, f"data.path={shared_data('bccd')}", "data.size=96", "data.sizes=[64,80,96]", "batch_size=8"]
    run = tmp_path / "teacher"
    call("train", *values, "epochs=1", "log.every=50", f"run={run}")
    (tmp_path / "means.py").write_text(MEANS)
    values += [f"teacher.weights={run}", "objective={task: 1, nd: 1}"]
    torchrun(tmp_path, "means", "means", *values)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-m", "means", "means", *values], cwd=tmp_path, env=environment, check=True)
    one, two = (load_file(tmp_path / f"means-{count}.safetensors")["means"] for count in (1, 2))
    assert one.shape == (4, 16)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_study_of_two_cells_has_a_table_of_average_precision(data, teacher, tmp_path):
    recipe: dict = {}
    for value in (*DETECTION, f"data.path={data}"):
        lay_over(recipe, value)
    alone, taught = {"objective": {"task": 1}}, {"teacher": "large", "objective": {"task": 1, "kd": 1}}
    study = {
        "recipe": recipe, "teachers": {"large": {"weights": str(teacher)}},
        "grid": {"method": {"alone": alone, "KD": taught}}, "control": {"method": "alone"}, "seeds": [0],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = call("study", str(tmp_path / "study.yaml"), f"run={tmp_path / 'study'}", "study.workers=1", "--json")
    rows = json.loads(found)
    assert "ap" in json.dumps(rows)
    assert not list((tmp_path / "study").rglob("manifest.json"))  # regions cannot be stored


def test_a_race_is_decided_by_average_precision(data, teacher, tmp_path):
    candidates = "candidates=[{name: alone, objective: {task: 1}}, {name: taught, objective: {task: 1, kd: 1}}]"
    values = (f"data.path={data}", f"teacher.weights={teacher}", candidates, "race.min_epochs=1", "race.factor=2")
    found = json.loads(call("race", *DETECTION, *values, f"run={tmp_path / 'race'}", "--json"))
    assert set(found["rungs"][0]["ap"]) == {"alone", "taught"}
    winner = next(one for one in found["candidates"] if one["rank"] == 1)
    assert winner["ap"] == result_of(tmp_path / "race" / winner["name"])["rows"]["student"]["ap"]


@pytest.mark.long
@pytest.mark.parametrize("terms", ["{task: 1, nd: 1, pefd_maps: 1}", "{task: 1, kd: 1}"])
def test_a_profile_tries_what_a_detector_can_have(data, teacher, terms):
    values = (f"data.path={data}", f"teacher.weights={teacher}", f"objective={terms}")
    found = json.loads(call("profile", *DETECTION, *values, "--steps", "5", "--seconds", "1", "--json"))
    tried = {one["setting"] for one in found["tried"]}
    assert "channels_last=false" in tried
    assert not {one for one in tried if one.startswith(("data.loader", "data.draft", "teacher.store", "compile"))}
    assert found["twice_the_batch"] is not None
