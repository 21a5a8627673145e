"""The teacher on the validation images: it is frozen and they are the same each time, so it sees each of them once."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.data.resident import ResidentLoader
from potstill.data.streaming import StreamingLoader
from potstill.networks.teacher import Teacher
from potstill.tasks.classification import Accuracies, named

__all__ = ["MEASURED", "TaughtImages", "measured", "slots", "taught_images"]

MEASURED = 10_000
"""Validation images that the measures of features are taken on, at most, and whose embeddings are kept."""

EvaluationLoader = ResidentLoader | StreamingLoader


def measured(images: int) -> Tensor:
    """Which of so many images the measures are taken on: all, or a draw of :data:`MEASURED` that is always the same.

    Returns:
        Their indices, int64, ascending.

    Example:
        >>> measured(3).tolist(), len(measured(50_000))
        ([0, 1, 2], 10000)
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[:MEASURED].sort().values


def slots(chosen: Tensor, images: int, device: torch.device) -> Tensor:
    """The place of each of so many images among the chosen ones, ``(images,)`` int64; -1 for the others.

    Example:
        >>> slots(torch.tensor([0, 2]), 4, torch.device("cpu")).tolist()
        [0, -1, 1, -1]
    """
    places = torch.full((images,), -1)
    places[chosen] = torch.arange(len(chosen))
    return places.to(device)


class TaughtImages:
    """What a teacher shows of the validation images, computed when an image is first asked for and kept.

    Kept on the device are a class, a confidence and a mark for each image, and the float32 embeddings of those that
    the measures are taken on: 82 MB for 10,000 of length 2048.

    Args:
        teacher: computes them.
        images: how many there are.
        classes: C; the teacher's predictions are kept where it has as many.

    Attributes:
        embedding: ``(n, D)`` float32, of the ``measured`` images; each process has those of its own batches.
        predicted: ``(images,)`` int32; -1 for images that it has not seen, and where its classes are others.
        confidence: ``(images,)`` float16, the softmax probability of that class.
    """

    def __init__(self, teacher: Teacher, images: int, classes: int) -> None:
        self.teacher, self.comparable = teacher, teacher.spec.classes == classes > 0
        chosen, device = measured(images), teacher.device
        self.embedding = torch.zeros(len(chosen), teacher.spec.embedding_dim, device=device)
        self.predicted = torch.full((images,), -1, dtype=torch.int32, device=device)
        self.confidence = torch.zeros(images, dtype=torch.float16, device=device)
        self.accuracies = Accuracies(device)
        self._slots = slots(chosen, images, device)
        self._seen = torch.zeros(images, dtype=torch.bool, device=device)

    @torch.no_grad()
    def see(self, batch: Batch) -> None:
        """Take in what was not seen before; the second time a batch comes this is a look at its marks.

        Args:
            batch: of the evaluation's loader, with targets.
        """
        new = ~self._seen[batch.index]
        if batch.targets is None or not new.any():
            return
        index, targets = batch.index[new], batch.targets[new]
        features = self.teacher(batch.images[new])
        places = self._slots[index]
        kept = places >= 0
        self.embedding[places[kept]] = features.embedding[kept]
        if self.comparable:
            self.predicted[index], self.confidence[index] = named(features.logits)
            self.accuracies.add(features.logits, targets)
        self._seen[index] = True

    def embeddings(self, index: Tensor) -> Tensor:
        """The embeddings ``(B, D)`` of images that are measured and were seen."""
        return self.embedding[self._slots[index]]


_KEPT: WeakKeyDictionary[EvaluationLoader, TaughtImages] = WeakKeyDictionary()


def taught_images(teacher: Teacher, loader: EvaluationLoader, classes: int) -> TaughtImages:
    """The teacher's outputs for a loader's images: for students that train side by side, the same ones.

    They live as long as the loader, or until another teacher comes to it (in a chain of assistants).

    Args:
        teacher: of the run.
        loader: of its evaluations, with labels.
        classes: of the data.
    """
    kept = _KEPT.get(loader)
    if kept is None or kept.teacher is not teacher:
        images = 0 if loader.labels is None else len(loader.labels)
        kept = _KEPT[loader] = TaughtImages(teacher, images, classes)
    return kept
