"""The settings of speed: what "auto" comes to, and that none of them changes what a run learns."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tests.procedures.running import call

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.procedures import speed
from potstill.procedures.speed import resolve_speed
from potstill.recipe import load_recipe
from potstill.training.distributed import Processes

TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "student.model=resnet8", "device=cpu",
    "schedule.name=constant", "log.every=1", "epochs=2",
)  # fmt: skip
# As one would write it for one experiment: float32, eager, contiguous, the teacher as it was trained.
PLAIN = ("precision=fp32", "channels_last=false", "compile=false", "teacher.fold=false")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *TINY, "student.model=resnet14", "epochs=2", "precision=fp32", f"run={folder}")
    return folder


@pytest.fixture(scope="module")
def curve(teacher: Path, tmp_path_factory: pytest.TempPathFactory):
    """The losses of a run's six steps, with some settings."""

    def losses(*values: str) -> list[float]:
        run = tmp_path_factory.mktemp("run") / "run"
        call("distill", *TINY, f"teacher.weights={teacher}", "objective={ce: 1, pefd: 25}", *values, f"run={run}")
        return [json.loads(line)["total"] for line in (run / "steps.jsonl").read_text().splitlines()]

    return losses


@pytest.fixture(scope="module")
def plain(curve) -> list[float]:
    return curve(*PLAIN)


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        (["channels_last=true"], 5e-3),
        (["teacher.fold=true"], 5e-3),
        (["teacher.precision=bf16"], 2e-2),
        (["teacher.precision=bf16", "teacher.fold=true"], 2e-2),
        (["precision=bf16", "teacher.precision=fp32"], 5e-2),
        (["precision=bf16", "channels_last=true", "teacher.fold=true"], 5e-2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_of_speed_keeps_the_loss_curve(curve, plain, values: list[str], tolerance: float) -> None:
    own = dict(value.split("=") for value in PLAIN) | dict(value.split("=") for value in values)
    found = curve(*(f"{key}={value}" for key, value in own.items()))
    assert found == pytest.approx(plain, rel=tolerance)
    assert found != plain  # the setting did something


def test_the_times_of_a_run_are_its_parts(teacher: Path, tmp_path: Path) -> None:
    call("distill", *TINY, f"teacher.weights={teacher}", f"run={tmp_path / 'run'}")
    rows = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    for row in rows:
        assert set(row["ms"]) <= {"data", "teacher", "forward", "backward", "optimizer", "host"}
        assert row["ms"]["teacher"] > 0
        assert sum(row["ms"].values()) == pytest.approx(1000 / row["steps_per_second"], rel=0.05)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    training = sum(seconds for part, seconds in result["times"].items() if part != "evaluation")
    assert training >= result["seconds"] * 0.95
    assert result["times"]["evaluation"] > 0


def recipe(**values: object) -> Recipe:
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]
    return load_recipe(None, ["data.loader=resident", *overrides])


CPU, GPU = (Processes(torch.device(name)) for name in ("cpu", "cuda"))


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_the_processors_own(monkeypatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(speed, "native_bf16", lambda device: native)
    assert resolve_speed(recipe(), CPU, 1000).precision == expected
    assert resolve_speed(recipe(precision="fp16"), CPU, 1000).precision == "fp16"


@pytest.mark.parametrize(
    ("processes", "images", "expected"), [(CPU, 50_000, False), (GPU, 50_000, True), (GPU, 1000, False)]
)
def test_compiling_is_for_long_runs_on_a_gpu(monkeypatch, processes, images: int, expected: bool) -> None:
    monkeypatch.setattr(speed, "native_bf16", lambda device: True)
    assert resolve_speed(recipe(epochs=10), processes, images).compile is expected
    assert resolve_speed(recipe(epochs=10, compile=not expected), processes, images).compile is not expected


def test_a_graph_is_for_what_stays_on_the_gpu(monkeypatch) -> None:
    monkeypatch.setattr(speed, "native_bf16", lambda device: True)
    assert resolve_speed(recipe(), GPU, 1000).graph is True
    for values in ({"accumulate": 2}, {"precision": "fp16"}, {"data__mixup": 0.2}, {"data__loader": "streaming"}):
        assert resolve_speed(recipe(**values), GPU, 1000).graph is False
    assert resolve_speed(recipe(), Processes(torch.device("cuda"), 0, 2), 1000).graph is False
    with pytest.raises(RecipeError, match="graph=true cannot be: it runs on cpu"):
        resolve_speed(recipe(graph=True), CPU, 1000)


def test_a_run_that_goes_on_keeps_what_auto_was(teacher: Path, tmp_path: Path, monkeypatch) -> None:
    """On a machine with another processor, or a library with another rule, its numbers would be others."""
    monkeypatch.setattr(speed, "native_bf16", lambda device: True)
    call("distill", *TINY, f"teacher.weights={teacher}", f"run={tmp_path / 'run'}", "epochs=2")
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["precision"] == "bf16"
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(speed, "native_bf16", lambda device: False)
    call("distill", *TINY, f"teacher.weights={teacher}", f"run={tmp_path / 'run'}", "epochs=2")
    said = call("distill", *TINY, f"teacher.weights={teacher}", f"run={tmp_path / 'run'}", "precision=fp32", code=2)
    assert "precision was 'bf16', now 'fp32'" in said
