"""Runs of segmentation through the command: what they leave, and that an interrupted one is the same."""

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.procedures.running import call
from tests.procedures.tiny_scenes import CLASSES, LEARNS, SEGMENTATION, masks_folder
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from typer.testing import CliRunner

from potstill.cli import app
from potstill.networks.ship import load_student
from potstill.networks.stages import stage_parameters
from potstill.networks.teacher import fingerprint
from potstill.training.checkpoints import Checkpoints

NAMES = ("ground", *CLASSES)
PIXELS = "objective={ce: 1, kd: 1, pefd_maps: 2}"
COSTS = {"parameters", "macs", "latency_ms", "bytes"}
Distill = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masks_folder(tmp_path_factory.mktemp("scenes") / "masks")


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network that tells the squares from the ground, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *SEGMENTATION, *LEARNS, f"data.path={data}", "seed=1", f"run={folder}")
    return folder


@pytest.fixture(scope="module")
def distill(data: Path, teacher: Path) -> Distill:
    return lambda *values: call("distill", *SEGMENTATION, f"data.path={data}", f"teacher.weights={teacher}", *values)


@pytest.fixture(scope="module")
def run(distill: Distill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that learns from pixels and maps, beside its control."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    values = ["epochs=6", "optimizer.lr=0.005", "log.shares=1", "log.report=true", "control=true"]
    distill(PIXELS, *values, f"run={folder}")
    return folder


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def metrics_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def named(run: Path, data: Path, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The classes that a shipped network names, and those of the mask, of each image by itself at the size it sees."""
    network = load_student(run)
    network.eval()
    mean, std = network.normalisation
    found = []
    for path in sorted((data / "images" / part).iterdir()):
        pixels = transforms.pil_to_tensor(Image.open(path).convert("RGB"))
        mask = torch.from_numpy(np.array(Image.open(data / "masks" / part / path.name)))
        height, width = pixels.shape[1:]
        scale = 64 / min(height, width)  # data.size; the longer side stays below data.longest
        size = [round(height * scale), round(width * scale)]
        seen = transforms.normalize(transforms.to_dtype(transforms.resize(pixels, size), scale=True), mean, std)
        seen = torch.nn.functional.pad(seen, (0, -size[1] % 32, 0, -size[0] % 32))
        with torch.no_grad():
            logits = network(seen[None]).logits[0, :, : size[0], : size[1]]
        truth = transforms.resize(mask[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        found.append((logits.argmax(0).numpy(), truth.numpy()))
    return found


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, dict[str, float]]:
    """Mean IoU, pixel accuracy and the IoU of each class, in percent, counted out."""
    said = np.concatenate([said.ravel() for said, _ in pairs])
    true = np.concatenate([true.ravel() for _, true in pairs])
    said, true = said[true != 255], true[true != 255]
    each = {
        name: 100 * np.sum((said == k) & (true == k)) / np.sum((said == k) | (true == k))
        for k, name in enumerate(NAMES)
    }
    return float(np.mean(list(each.values()))), float(100 * np.mean(said == true)), each


def test_a_run_leaves_the_mean_iou_of_all_its_networks(run: Path, teacher: Path):
    result, rows = result_of(run), metrics_of(run)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 7)]
    student = result["rows"]["student"]
    assert set(student) == {"miou", "pixel_accuracy"} | COSTS
    assert float(rows[-1]["miou"]) == student["miou"]
    assert result["rows"]["teacher"]["miou"] == result_of(teacher)["rows"]["student"]["miou"] > 40
    for who in ("student", "teacher"):
        per_class = result["per_class"][who]
        assert set(per_class) == set(NAMES)
        assert np.mean(list(per_class.values())) == pytest.approx(result["rows"][who]["miou"])
    tops = [float(row["miou"]) for row in rows]
    assert result["best"] == {"epoch": 1 + tops.index(max(tops)), "miou": max(tops)}
    assert (result["classes"], result["teacher_fingerprint"]) == (
        list(NAMES), fingerprint(load_file(teacher / "student.safetensors")),
    )  # fmt: skip
    assert "mIoU" in (run / "report.html").read_text()


def test_the_mean_iou_is_that_of_the_pixels_counted_out(run: Path, teacher: Path, data: Path):
    for who, folder in (("student", run), ("teacher", teacher)):
        miou, accuracy, each = mean_iou(named(folder, data, "val"))
        row = result_of(run)["rows"][who]
        assert row["miou"] == pytest.approx(miou, abs=0.05)  # one pixel in 19,000 may be undecided
        assert row["pixel_accuracy"] == pytest.approx(accuracy, abs=0.05)
        assert result_of(run)["per_class"][who] == pytest.approx(each, abs=0.2)


def test_the_written_masks_are_what_the_networks_name(run: Path, teacher: Path, data: Path):
    pictures = json.loads((run / "pictures" / "pictures.json").read_text())
    assert [Path(one["name"]).name for one in pictures] == ["008.png", "009.png", "010.png", "011.png"]
    for who, folder in (("student", run), ("teacher", teacher)):
        for one, (said, _) in zip(pictures, named(folder, data, "val"), strict=True):
            width, height = Image.open(run / one["file"]).size
            written = Image.open(run / one[who])
            assert written.size == (width, height)
            expected = np.asarray(Image.fromarray(said.astype(np.uint8)).resize((width, height), 0))
            assert (np.asarray(written) == expected).mean() > 0.999
    for one in pictures:
        truth = data / "masks" / "val" / Path(one["name"]).name
        assert np.array_equal(np.asarray(Image.open(run / one["truth"])), np.asarray(Image.open(truth)))


@pytest.mark.parametrize(("part", "batch_size"), [("val", 4), ("val", 1), ("test", 2)])
def test_evaluate_gives_the_same_whatever_the_batches(teacher: Path, data: Path, part, batch_size):
    found = json.loads(call("evaluate", str(teacher), f"data.judged={part}", f"batch_size={batch_size}", "--json"))
    miou, accuracy, _ = mean_iou(named(teacher, data, part))
    assert found["miou"] == pytest.approx(miou, abs=0.05)
    assert found["pixel_accuracy"] == pytest.approx(accuracy, abs=0.05)
    assert found["images"] == {"val": 4, "test": 3}[part]
    if part == "val":
        assert found["miou"] == pytest.approx(result_of(teacher)["rows"]["student"]["miou"], abs=0.01)


def test_the_control_learns_from_the_masks_alone(run: Path):
    recipe = yaml.safe_load((run / "control" / "recipe.yaml").read_text())
    assert (recipe["objective"], recipe["teacher"], recipe["task"]) == ({"ce": 1.0}, None, "segmentation")
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for step in steps:
        shares = {name: value for name, value in step.items() if name.startswith("share_")}
        assert set(shares) == {"share_ce", "share_kd", "share_pefd_maps"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert step["total"] == pytest.approx(step["ce"] + step["kd"] + 2 * step["pefd_maps"], rel=1e-5)


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "values",
    [
        [PIXELS, "ema=0.9", "accumulate=2", "data.sizes=[48,64]"],
        pytest.param(["procedure.name=stagewise", "epochs=7"], marks=pytest.mark.long),
    ],
    ids=["pixels", "stagewise"],
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
        command = ["distill", *SEGMENTATION, f"data.path={data}", f"teacher.weights={teacher}", *values]
        assert CliRunner().invoke(app, [*command, f"run={tmp_path / 'cut'}"]).exit_code == 130
    distill(*values, f"run={tmp_path / 'cut'}")
    whole, cut = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole
    assert result_of(tmp_path / "cut")["per_class"] == result_of(tmp_path / "whole")["per_class"]


def test_stage_by_stage_each_phase_trains_its_own_part(distill: Distill, tmp_path: Path):
    run = tmp_path / "run"
    distill("procedure.name=stagewise", "epochs=5", "checkpoint.keep=50", f"run={run}")
    stem, one, *stages, head = map(set, stage_parameters(load_student(run)))
    parts = {f"stage {k}": part for k, part in enumerate([stem | one, *stages], start=1)} | {"head": head}
    checkpoints = Checkpoints(run / "checkpoints")
    loaded = [checkpoints.load(path) for path in sorted(checkpoints.folder.iterdir())]
    assert [state["phase"] for state in loaded] == list(parts)
    for before, after in itertools.pairwise(loaded):
        part = parts[after["phase"]]
        moved = {n for n, v in after["student"].items() if not torch.equal(v, before["student"][n])}
        assert moved <= part, after["phase"]
        assert {name for name in part if name.endswith(("weight", "bias"))} <= moved, after["phase"]
    assert [bool(row["miou"]) for row in metrics_of(run)] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("model", ["lraspp", pytest.param("deeplabv3", marks=pytest.mark.long)])
def test_other_heads_learn_from_a_teacher_of_another_kind(distill: Distill, tmp_path: Path, model):
    run = tmp_path / "run"
    distill(f"student.model={model}/test_resnet.r160_in1k", PIXELS, "epochs=2", f"run={run}")
    rows = metrics_of(run)
    assert float(rows[1]["pefd_maps"]) < float(rows[0]["pefd_maps"])
    found = json.loads(call("evaluate", str(run), "batch_size=1", "--json"))
    assert found["miou"] == pytest.approx(result_of(run)["rows"]["student"]["miou"], abs=0.05)


@pytest.mark.long
def test_students_side_by_side_are_each_what_it_is_alone(distill: Distill, tmp_path: Path):
    distill(PIXELS, "students=[{name: one}, {name: two, seed: 3}]", "epochs=1", f"run={tmp_path / 'both'}")
    for name, values in {"one": [], "two": ["seed=3", "data.order_seed=0", "data.view_seed=0"]}.items():
        distill(PIXELS, *values, "epochs=1", f"run={tmp_path / name}")
        alone, beside = ((tmp_path / place / "student.safetensors").read_bytes() for place in (name, f"both/{name}"))
        assert beside == alone, name


def test_where_no_pixel_of_a_batch_counts_the_run_says_so(data: Path, tmp_path: Path):
    folder = masks_folder(tmp_path / "masks")
    for path in (folder / "masks" / "train").iterdir():
        Image.fromarray(np.full(np.asarray(Image.open(path)).shape, 255, np.uint8)).save(path)
    said = call("train", *SEGMENTATION, f"data.path={folder}", f"run={tmp_path / 'run'}", code=2)
    assert "No pixel of a batch counts: its masks are 255 all over." in " ".join(said.split())


@pytest.mark.long
def test_a_race_is_decided_by_mean_iou(data, teacher, tmp_path):
    candidates = "candidates=[{name: alone, objective: {ce: 1}}, {name: taught, objective: {ce: 1, kd: 1}}]"
    values = (f"data.path={data}", f"teacher.weights={teacher}", candidates, "race.min_epochs=1", "race.factor=2")
    found = json.loads(call("race", *SEGMENTATION, *values, f"run={tmp_path / 'race'}", "--json"))
    winner = next(one for one in found["candidates"] if one["rank"] == 1)
    assert winner["miou"] == result_of(tmp_path / "race" / winner["name"])["rows"]["student"]["miou"]
