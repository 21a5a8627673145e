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
from potstill.objects import Objects
from potstill.procedures.data import DataFacts
from potstill.procedures.networks import build_objective, build_setting, network_of
from potstill.procedures.phases import Phase
from potstill.procedures.tasks import must_fit, step_of, terms_of
from potstill.recipe import load_recipe
from potstill.training.distributed import Processes
from potstill.training.optimizers import make_optimizer
from potstill.training.step import TrainingStep

ROOT = Path(__file__).resolve().parent.parent / "recipes"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("*/*/*.yaml"))
TASKS = ("detection", "segmentation", "faces")
OTHERS = sorted(path.relative_to(ROOT) for task in TASKS for path in (ROOT / task).glob("*.yaml"))
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
LARGE = ("/r50-", "/r101-", "/r152-", "/vit_", "/d201-")


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


SIDE = 64
SMALLER = [f"data.size={SIDE}", "student.pretrained=false", "precision=fp32", "teacher.fold=false"]


def drawn(task: str, images: torch.Tensor) -> Batch:
    """A batch of two images of different sizes with an object each, of two people, or with a class for each pixel."""
    index = torch.arange(len(images))
    if task == "faces":
        return Batch(images, index, index, torch.zeros_like(index))
    if task == "segmentation":
        return Batch(images, torch.randint(3, (len(images), *images.shape[2:])), index, torch.zeros_like(index))
    boxes = tuple(torch.tensor([[8.0, 8.0, 40.0 + 4 * k, 48.0]]) for k in range(len(images)))
    sizes = tuple((SIDE, 80 + 8 * k) for k in range(len(images)))
    objects = Objects(boxes, tuple(torch.tensor([k]) for k in range(len(images))), sizes, sizes)
    return Batch(images, None, index, torch.zeros_like(index), objects=objects)


@pytest.mark.parametrize(
    "path", [pytest.param(f, marks=pytest.mark.long if "r101" in f.name else ()) for f in OTHERS], ids=str
)
def test_a_step_of_another_task(path: Path):
    """As above, of detectors, of networks for segmentation and for faces; the images are smaller than the recipe's."""
    taught = "teacher:" in (ROOT / path).read_text(encoding="utf-8")
    recipe, processes = load_recipe(ROOT / path, SMALLER if taught else SMALLER[:-1]), Processes(torch.device("cpu"))
    recipe = recipe.model_copy(update={"objective": recipe.objective or terms_of(recipe.task, taught=False)})
    longest = None if recipe.task == "faces" else 107
    data = DataFacts(
        classes=("a", "b", "c"), mean=MEAN, std=STD, size=SIDE, notes=(), found=(8, 4), identity="none", longest=longest
    )
    torch.manual_seed(0)
    student, teacher = network_of(recipe.student, len(data.classes), data.input_size[1:]), None
    must_fit(recipe, student)
    if recipe.teacher is not None:
        network = network_of(recipe.teacher, len(data.classes), data.input_size[1:])
        teacher = Teacher(network, mean=MEAN, std=STD, student_mean=MEAN, student_std=STD, fold=False)
    objective = build_objective(recipe, build_setting(recipe, student, teacher, data, processes), data)
    means = torch.rand(len(data.classes) + 1, teacher.spec.embedding_dim) if teacher else None  # and background's
    objective.prepare(Known(None, means))
    objective.start_epoch(recipe.epochs - 1)
    step = step_of(recipe, student, Phase("joint", objective, recipe.epochs), teacher)
    step.train()
    batch = drawn(recipe.task, torch.randn(2, *data.input_size))
    losses, _ = step(batch, teacher(batch.images, **step.teacher_reads) if teacher else None)
    losses["total"].backward()
    assert set(losses) == {*recipe.objective, "total"}
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    still = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert not still, f"no gradient reaches {still}"
