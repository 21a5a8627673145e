"""A student belongs to its user: it loads, and answers to the bit as before, where Potstill cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.ship import ship_student

SIZE = (3, 32, 32)
STUDENTS = ["resnet10t", "resnet8", "cifar/vgg11", "ShuffleV2", "torchvision/mobilenet_v3_small", "own_network:make"]

OWN = """
from torch import nn

def make(num_classes, width=4):
    pooled = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*pooled, nn.Linear(width, num_classes))
"""

# Runs in a process of its own. It first makes sure that `import potstill` fails there, installed or not; then it
# executes each card's own line in the card's folder.
USER = """
import json, os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "potstill":
            raise ModuleNotFoundError("potstill is not here")

sys.meta_path.insert(0, Absent())
try:
    import potstill
except ModuleNotFoundError:
    print("potstill cannot be imported")

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
base = sys.argv[1]
images = load_file(os.path.join(base, "images.safetensors"))["images"]
logits = {}
for folder in sys.argv[2:]:
    os.chdir(os.path.join(base, folder))
    sys.path.insert(0, os.getcwd())
    # every folder's package has the same name, and a user has one folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "student_network"]:
        del sys.modules[name]
    with open("student.json") as file:
        made = {}
        exec(json.load(file)["load"], made)
    with torch.no_grad():
        logits[folder] = made["network"](images)
    sys.path.pop(0)
assert not any(name.partition(".")[0] == "potstill" for name in sys.modules)
save_file(logits, os.path.join(base, "logits.safetensors"))
"""


def folder_of(model: str) -> str:
    return model.replace("/", "-").replace(":", "-")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Each student's logits here, its logits in a process without Potstill, and what that process printed."""
    base = tmp_path_factory.mktemp("students")
    torch.manual_seed(0)
    images = torch.randn(3, *SIZE)
    save_file({"images": images}, base / "images.safetensors")
    (base / folder_of(STUDENTS[-1])).mkdir()
    (base / folder_of(STUDENTS[-1]) / "own_network.py").write_text(OWN)
    here = {}
    sys.path.insert(0, str(base / folder_of(STUDENTS[-1])))
    try:
        for model in STUDENTS:
            tapped = build_network(model, classes=10, input_size=SIZE)
            with torch.no_grad():
                tapped.train()(torch.randn(8, *SIZE))  # moves the statistics of the batch norms off their start
                here[folder_of(model)] = tapped.eval()(images).logits
            ship_student(base / folder_of(model), tapped, NetworkCard(model, 10, (0.5,) * 3, (0.25,) * 3, SIZE))
    finally:
        sys.path.pop(0)
        sys.modules.pop("own_network", None)
    run = subprocess.run(
        [sys.executable, "-I", "-c", USER, str(base), *map(folder_of, STUDENTS)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return here, load_file(base / "logits.safetensors"), run.stdout


def test_potstill_cannot_be_imported_there(answers):
    assert answers[2] == "potstill cannot be imported\n"


@pytest.mark.parametrize("model", STUDENTS)
def test_the_logits_are_the_same_to_the_bit(answers, model):
    here, there, _ = answers
    assert here[folder_of(model)].shape == (3, 10)
    assert here[folder_of(model)].std() > 0
    assert torch.equal(here[folder_of(model)], there[folder_of(model)])


def test_the_files_of_the_package_name_no_potstill(tmp_path: Path):
    tapped = build_network("resnet8", classes=10, input_size=SIZE)
    ship_student(tmp_path, tapped, NetworkCard("resnet8", 10, (0.5,) * 3, (0.25,) * 3, SIZE))
    package = sorted((tmp_path / "student_network").glob("*.py"))
    assert [path.name for path in package] == ["__init__.py", "base.py", "resnet.py"]
    assert not any("import potstill" in text or "from potstill" in text for text in map(Path.read_text, package))
    assert "potstill" not in json.loads((tmp_path / "student.json").read_text())["load"]
