"""Every recipe that ships: as its script writes it, valid, and good for a step on images of the right shape."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from potstill.batch import Batch
from potstill.config import Recipe
from potstill.methods.base import Known
from potstill.networks.teacher import Teacher
from potstill.procedures.data import DataFacts
from potstill.procedures.networks import build_objective, build_setting, network_of
from potstill.recipe import load_recipe
from potstill.training.distributed import Processes
from potstill.training.optimizers import make_optimizer
from potstill.training.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent / "recipes"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("*/*/*.yaml"))
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
IMAGES = 4


def generated() -> dict[Path, str]:
    """What the kept script would write."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {path.relative_to(ROOT): text for path, text in module.recipes().items()}


def test_the_families_are_what_their_script_writes():
    expected = generated()
    assert set(FILES) == set(expected)
    for path, text in expected.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run python recipes/generate.py"


def facts(recipe: Recipe) -> DataFacts:
    """A data set of the right shape: CIFAR-100 or ImageNet with a few images a class."""
    cifar = recipe.data.source == "cifar100"
    classes = tuple(map(str, range(100 if cifar else 1000)))
    return DataFacts(
        classes=classes, mean=MEAN, std=STD, size=32 if cifar else 224, notes=(), found=(4 * len(classes), 8),
        identity="none",
    )  # fmt: skip


# Large networks, as far as smaller ones step through the same method.
LARGE = ("/r101-", "/r152-", "/vit_b-", "/d201-")


@pytest.mark.parametrize(
    "path",
    [pytest.param(f, marks=pytest.mark.long if any(name in str(f) for name in LARGE) else ()) for f in FILES],
    ids=str,
)
def test_a_step(path: Path):
    """Networks, objective and one step of the optimiser, with weights as they are drawn."""
    recipe, processes = load_recipe(ROOT / path), Processes(torch.device("cpu"))
    data = facts(recipe)
    torch.manual_seed(0)
    student, teacher = network_of(recipe.student, len(data.classes), data.size), None
    if recipe.teacher is not None:
        drawn = recipe.teacher.model_copy(update={"pretrained": False})
        network = network_of(drawn, len(data.classes), data.size)
        teacher = Teacher(network, mean=MEAN, std=STD, student_mean=MEAN, student_std=STD)
    objective = build_objective(recipe, build_setting(recipe, student, teacher, data, processes), data)
    targets = torch.arange(IMAGES) % 3
    means = torch.rand(len(data.classes), teacher.spec.embedding_dim) if teacher else None
    objective.prepare(Known(torch.arange(data.found[0]) % len(data.classes), means))
    objective.start_epoch(recipe.epochs - 1)  # past every warm-up
    step, optimizer = (
        TrainingStep(student, objective),
        make_optimizer([student, objective], **recipe.optimizer.model_dump()),
    )
    step.train()
    index = torch.arange(IMAGES)
    batch = Batch(torch.randn(IMAGES, 3, data.size, data.size), targets, index, torch.zeros_like(index))
    seen = teacher(batch.images, **objective.needs.on_demand("teacher")) if teacher else None
    losses, _ = step(batch, seen)
    losses["total"].backward()
    before = [p.detach().clone() for p in student.parameters()]
    optimizer.step()
    assert set(losses) == {*recipe.objective, "total"}
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    moved = [not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True)]
    assert all(moved), f"{moved.count(False)} of the student's {len(moved)} parameters did not train"
