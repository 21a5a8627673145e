"""Two processes under torchrun train as one does with the same global batch; the teacher is in no wrapper."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.networks.teacher import fingerprint
from potstill.networks.weights import read_weights, save_weights

# A network without batch norm, whose loss is a mean over samples however they are dealt out. As it is imported it also
# takes down what DDP is given to hold.
NETWORK = """
import os
from torch import nn
from torch.nn.parallel import DistributedDataParallel

def plain(num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )

init = DistributedDataParallel.__init__

def noting(self, module, **others):
    init(self, module, **others)
    with open(f"ddp-{os.environ['RANK']}.txt", "w") as file:
        print(*[name for name, _ in module.named_parameters()], file=file)
        print(*sorted({type(m).__name__ for m in module.modules()}), file=file)

DistributedDataParallel.__init__ = noting
"""

RECIPE = [
    "data.source=digits", "data.size=8", "epochs=1", "batch_size=60", "optimizer.lr=0.05", "log.every=1",
    "data.flip=true", "device=cpu", "log.shares=10", "precision=fp32",
]  # fmt: skip
TEACHER = ["teacher.model=own:plain", "teacher.args={width: 16}", "teacher.weights=t.safetensors"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network's definition and a teacher of that kind."""
    place = tmp_path_factory.mktemp("torchrun")
    (place / "own.py").write_text(NETWORK)
    torch.manual_seed(5)
    # The definition itself is not imported here: it would patch DDP for all other tests.
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    save_weights(nn.Sequential(*layers), place / "t.safetensors")
    return place


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}


def run(place: Path, name: str, processes: int, *overrides: str) -> list[dict[str, float]]:
    """The rows of steps.jsonl of a run with so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "potstill", "distill", *RECIPE, *overrides, f"run={name}"]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (place / name / "steps.jsonl").read_text().splitlines()]


def test_two_processes_follow_the_curve_of_one(place: Path) -> None:
    networks = ["student.model=own:plain", *TEACHER]
    one, two = run(place, "one", 1, *networks), run(place, "two", 2, *networks)
    assert len(one) == len(two) == 24  # 1438 images in steps of 60; the last one of 58
    for term in ("ce", "pefd", "total"):
        assert [row[term] for row in two] == pytest.approx([row[term] for row in one], rel=2e-4)
    a, b = (read_weights(place / name / "student.safetensors") for name in ("one", "two"))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-3, atol=1e-5)
    results = [json.loads((place / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["rows"]["student"]["top1"] == pytest.approx(results[1]["rows"]["student"]["top1"], abs=0.6)
    # The teacher: unchanged, and not among what DDP holds.
    expected = fingerprint(read_weights(place / "t.safetensors"))
    assert [result["teacher_fingerprint"] for result in results] == [expected, expected]
    for rank in (0, 1):
        names, kinds = ((place / f"ddp-{rank}.txt").read_text()).splitlines()
        assert {name.split(".")[0] for name in names.split()} == {"student", "objective"}
        assert len(names.split()) == 4 + 2  # two layers of the student, one stacked layer of projectors
        assert "Teacher" not in kinds
    assert not (place / "ddp-2.txt").exists()


@pytest.mark.long
def test_with_batch_norm_the_curve_is_close(place: Path) -> None:
    """Each process normalises by its own half of the batch: the same training, not the same numbers."""
    networks = ["student.model=resnet8", *TEACHER]
    one, two = run(place, "bn-one", 1, *networks), run(place, "bn-two", 2, *networks)
    assert [row["total"] for row in two] == pytest.approx([row["total"] for row in one], rel=0.1)
    assert two[0]["total"] == pytest.approx(one[0]["total"], rel=0.02)
    # Both processes judge the network that ships: with the first one's running statistics, not each with its own.
    judged = json.loads((place / "bn-two" / "result.json").read_text())["rows"]["student"]
    shipped = subprocess.run(
        [sys.executable, "-m", "potstill", "evaluate", "bn-two", "--json"],
        cwd=place, env=environment(place), capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert json.loads(shipped.stdout)["top1"] == pytest.approx(judged["top1"])
