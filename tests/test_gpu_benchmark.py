"""benchmarks/gpu.py on a CPU, with tiny numbers: the table is there, and what needs a GPU is named and not made up."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from potstill.recipe import load_recipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ["--device", "cpu", "--steps", "1", "--rounds", "2", "--batch", "8", "4", "--images", "32"]
SMALL = ["--networks", "resnet14", "resnet8"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_it_measures_what_a_cpu_can_and_names_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    ended = run(*TINY, *SMALL, "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert set(report["left_out"]) == {"compiled", "graph", "graph+compiled"}
    assert "CUDA graphs need a CUDA device, and this is cpu" in report["left_out"]["graph"]
    assert report["precision"] == "float32"
    for batch in ("8", "4"):
        rows = report["batches"][batch]
        assert set(rows) == {"plain", "eager"}
        for row in rows.values():
            assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
            assert row["images_per_second"] == pytest.approx(1000 * int(batch) / row["ms"]["median"])
            assert row["times_plain"]["median"] > 0
            assert row["memory_mib"] is None  # of a device that is not there
        assert rows["plain"]["times_plain"] == {"low": 1.0, "median": 1.0, "high": 1.0}
        assert f"{rows['eager']['ms']['median']:.2f}" in ended.stdout
    assert "left out: graph (CUDA graphs need a CUDA device" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "quartiles take two rounds"),
        (["--batch", "64", "--images", "32"], "a whole batch of images"),
        (["--full"], "--full trains on real images: give --data"),
        (["--modes", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_what_it_cannot_do_it_says(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert message in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("gpu")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.parametrize("given", [None, Path("a-teacher")])
def test_the_whole_run_is_the_shipped_recipes(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: Path | None
) -> None:
    """Its commands, each as a recipe that would be run; the runs themselves take hours."""
    commands: list[list[str]] = []

    def pretend(command: list[str]) -> Any:
        commands.append(command)
        folder = Path(command[-1].removeprefix("run="))
        folder.mkdir(parents=True)
        rows = {"student": {"top1": 76.0}}
        (folder / "result.json").write_text(json.dumps({"epochs": 240, "seconds": 9.0, "times": {}, "rows": rows}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu.subprocess, "run", pretend)
    arguments = argparse.Namespace(
        data=Path("cifar"), runs=tmp_path / "runs", teacher=given, networks=["resnet32x4", "resnet8x4"], override=[]
    )
    found = gpu.full(arguments, torch.device("cpu"))
    assert list(found) == (["student"] if given else ["teacher", "student"])
    assert found["student"]["student"] == {"top1": 76.0}
    assert [command[3] for command in commands] == (["distill"] if given else ["train", "distill"])
    recipe = load_recipe(commands[-1][4], commands[-1][5:])
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.lr, recipe.optimizer.weight_decay) == (
        240,
        64,
        0.05,
        5e-4,
    )
    assert recipe.objective == {"ce": 1.0, "pefd": {"weight": 25.0, "projectors": 3}}
    assert (recipe.student.model, recipe.teacher.model) == ("resnet8x4", "resnet32x4")
    assert recipe.teacher.weights == str(given or tmp_path / "runs" / "teacher")
    if not given:
        alone = load_recipe(commands[0][4], commands[0][5:])
        assert (alone.student.model, alone.teacher, alone.epochs) == ("resnet32x4", None, 240)
        assert alone.run == recipe.teacher.weights
