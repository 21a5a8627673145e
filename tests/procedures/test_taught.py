"""A teacher's outputs are computed once for each image, whichever batches it comes in."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from potstill.batch import Batch
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.networks.features import Features
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher
from potstill.procedures import taught
from potstill.procedures.taught import TaughtImages, taught_images

HALF = (0.5, 0.5, 0.5)


def a_teacher(classes: int = 4) -> Teacher:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, classes))
    return Teacher(tap(layers, input_size=(3, 2, 2)), mean=HALF, std=HALF, student_mean=HALF, student_std=HALF)


def a_loader(images: int) -> ResidentLoader:
    plan = Plan(length=images, batch_size=4, seed=0, shuffle=False)
    return ResidentLoader(np.zeros((images, 2, 2, 3), np.uint8), np.arange(images) % 4, plan, None, HALF, HALF)


def batch(images: torch.Tensor, targets: torch.Tensor, index: list[int]) -> Batch:
    rows = torch.tensor(index)
    return Batch(images[rows], targets[rows], rows, torch.zeros_like(rows))


def test_an_image_that_comes_again_is_neither_computed_nor_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, images, targets = a_teacher(), torch.randn(9, 3, 2, 2), torch.arange(9) % 4
    expected = teacher(images)
    seen, call = [], Teacher.__call__

    def counted(self: Teacher, images: torch.Tensor) -> Features:
        seen.append(len(images))
        return call(self, images)

    monkeypatch.setattr(Teacher, "__call__", counted)
    found = TaughtImages(teacher, 10, classes=4)
    for index in ([0, 1, 2], [8, 4], [0, 1, 2], [2, 3, 4, 5], [6, 7]):
        found.see(batch(images, targets, index))
    assert seen == [3, 2, 2, 2]
    assert torch.allclose(found.embeddings(torch.arange(9)), expected.embedding)
    assert found.predicted.tolist() == [*expected.logits.argmax(1).tolist(), -1]  # the last was not asked for
    right = (expected.logits.argmax(1) == targets).double().mean().item()
    assert found.accuracies.values(lambda sums: sums)["top1"] == pytest.approx(100 * right)


def test_only_what_is_measured_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taught, "MEASURED", 5)
    teacher, images, targets = a_teacher(), torch.randn(9, 3, 2, 2), torch.arange(9) % 4
    found = TaughtImages(teacher, 9, classes=4)
    found.see(batch(images, targets, list(range(9))))
    chosen = taught.measured(9)
    assert found.embedding.shape == (5, 6)
    assert torch.allclose(found.embeddings(chosen), teacher(images).embedding[chosen])
    assert (found.predicted >= 0).all()  # of all


def test_predictions_of_other_classes_are_not_kept() -> None:
    for classes in (3, 0):
        found = TaughtImages(a_teacher(), 9, classes)
        found.see(batch(torch.randn(9, 3, 2, 2), torch.arange(9) % 3, list(range(9))))
        assert not found.comparable
        assert found.predicted.unique().tolist() == [-1]


def test_students_of_one_teacher_share_them_as_long_as_there_is_a_loader() -> None:
    one, other, loader, elsewhere = a_teacher(), a_teacher(), a_loader(8), a_loader(8)
    kept = taught_images(one, loader, 4)
    assert taught_images(one, loader, 4) is kept
    assert taught_images(one, elsewhere, 4) is not kept
    assert taught_images(other, loader, 4).teacher is other  # the next of a chain of assistants
    assert taught_images(one, loader, 4) is not kept
    gone = weakref.ref(taught_images(one, loader, 4))
    del loader
    gc.collect()
    assert gone() is None
