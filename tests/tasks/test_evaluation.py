"""Accuracies and transfer losses, against counts made by hand."""

import pytest
import torch
from torch import nn

from potstill.batch import Batch
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.methods.pefd import pefd
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher
from potstill.tasks.classification import Accuracies, accuracy_counts, evaluate, named
from potstill.tasks.transfer import evaluate_transfer
from potstill.training.distributed import Processes
from potstill.training.step import TrainingStep

HERE = Processes(torch.device("cpu"))
HALF = (0.5, 0.5, 0.5)


def batch(images: torch.Tensor, targets: torch.Tensor | None, weight: float = 1.0) -> Batch:
    index = torch.arange(len(images))
    return Batch(images, targets, index, torch.zeros_like(index), weight)


def test_counts_with_fewer_classes_than_five() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    assert accuracy_counts(logits, torch.tensor([1, 1, 1])).tolist() == [1, 3, 3]


def test_accuracy_over_unequal_batches_and_fillers() -> None:
    torch.manual_seed(0)
    network = tap(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 10)), input_size=(3, 2, 2)).train()
    images, targets = torch.randn(70, 3, 2, 2), torch.randint(0, 10, (70,))
    steps = [[batch(images[:50], targets[:50])], [batch(images[50:], targets[50:], 0.3)], []]
    steps[2] = [batch(images[:1], targets[:1], weight=0.0)]  # a filler: counts for nothing
    found = evaluate(network, steps, HERE)
    network.eval()
    logits = network.network(images)
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == targets).float().mean().item())
    five = (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item()
    assert found["top5"] == pytest.approx(100 * five)
    assert found["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_what_is_named_is_what_is_counted_as_right() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 7).round()  # with many that are equally large
    targets = torch.randint(0, 7, (500,))
    classes, confidence = named(logits)
    assert (classes.dtype, confidence.dtype) == (torch.int32, torch.float16)
    assert (classes == targets).sum() == accuracy_counts(logits, targets)[0]
    assert torch.equal(confidence, logits.softmax(1).max(1).values.half())
    assert named(torch.tensor([[3.0], [-1.0]]))[1].tolist() == [1, 1]  # of one class


def test_accuracies_of_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(90, 10).bfloat16(), torch.randint(0, 10, (90,))
    found = Accuracies(torch.device("cpu"))
    for part in torch.arange(90).split(40):
        found.add(logits[part], targets[part])
    values = found.values(lambda sums: 2 * sums)  # two processes that saw the same
    first, five, count = accuracy_counts(logits, targets).tolist()
    assert values["top1"] == pytest.approx(100 * first / count)
    assert values["top5"] == pytest.approx(100 * five / count)
    assert values["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits.float(), targets).item(), rel=1e-5)


def test_transfer_is_the_objectives_mean_over_images() -> None:
    torch.manual_seed(0)
    student, teacher = (
        tap(nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 10)), input_size=(3, 2, 2))
        for width in (6, 8)
    )
    owner = Teacher(teacher, mean=HALF, std=HALF, student_mean=HALF, student_std=HALF)
    objective = Objective(Setting(student.spec, teacher.spec), {"pefd": 25})
    images = torch.randn(30, 3, 2, 2)
    steps = [[batch(images[:20], None)], [batch(images[20:], None)], [batch(images[:1], None, weight=0.0)]]
    found = evaluate_transfer(TrainingStep(student, objective), owner, steps, HERE)
    expected = pefd(objective.methods["pefd"].projector(student(images).embedding), teacher(images).embedding).item()
    assert found == {"val_pefd": pytest.approx(expected, rel=1e-5), "val_total": pytest.approx(25 * expected, rel=1e-5)}
