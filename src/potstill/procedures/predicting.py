"""The last look of a run at its validation images: what both networks say of each, and where it lies."""

import logging

import torch
from torch import Tensor

from potstill.analysis.embedding_map import balanced_rows, principal
from potstill.analysis.predictions import Predictions
from potstill.batch import Batch
from potstill.networks.features import Features
from potstill.networks.tapped import Tapped
from potstill.procedures.data import Data
from potstill.procedures.taught import TaughtImages, measured, slots
from potstill.tasks.classification import evaluate, named
from potstill.training.distributed import Processes

__all__ = ["predict"]

log = logging.getLogger(__name__)

_ON_THE_MAP = 1000  # images
_COLUMNS = 32  # of their coordinates


def predict(
    network: Tapped,
    data: Data,
    taught: TaughtImages | None,
    same_classes: bool,
    processes: Processes,
    autocast: torch.dtype | None,
) -> Predictions | None:
    """One pass of the student over the validation images, and of the teacher over those that it has not seen.

    Every process must call it; each looks at its part, and all have the whole.

    Args:
        network: what ships.
        data: with the validation images.
        taught: what the teacher shows of them; None without a teacher.
        same_classes: whether the teacher's classes, as far as their names are known, are the data's.
        processes: this process and the others.
        autocast: the dtype that the student computes in; None for float32.

    Returns:
        None where there are no validation images with labels.
    """
    if data.val is None or data.val.labels is None:
        return None
    processes.align(network)
    labels, device = data.val.labels.cpu(), processes.device
    kept = measured(len(labels))
    drawn = kept[balanced_rows(labels[kept], _ON_THE_MAP)]
    places = slots(drawn, len(labels), device)
    # Tables, and no list of every batch's part: small tensors that stay between large ones that go scatter the memory.
    said = torch.full((len(labels),), -1, dtype=torch.int32, device=device)
    sure = torch.zeros(len(labels), dtype=torch.float16, device=device)
    embedding = torch.zeros(len(drawn), network.spec.embedding_dim, device=device)

    def observe(features: Features, batch: Batch) -> None:
        if taught is not None:
            taught.see(batch)
        said[batch.index], sure[batch.index] = named(features.logits)
        place = places[batch.index]
        embedding[place[place >= 0]] = features.embedding[place >= 0].float()

    evaluate(network, data.val.epoch(0), processes, autocast=autocast, observe=observe)
    index = (said >= 0).nonzero().flatten()  # this process's
    on = index[places[index] >= 0]
    outputs, shown = [index, said[index], sure[index]], [on, embedding[places[on]]]
    if taught is not None:
        outputs += [taught.predicted[index], taught.confidence[index]]
        shown.append(taught.embeddings(on))
    index, student, confidence, *teacher = _whole(outputs, processes)
    on, *embeddings = _whole(shown, processes)
    finite = torch.stack([one.isfinite().all(1) for one in embeddings]).all(0)
    if not finite.all():
        log.warning("%d of %d embeddings are not finite; they are not on the map.", (~finite).sum(), len(finite))
    maps = [principal(one[finite], _COLUMNS) for one in embeddings]
    comparable = taught is not None and taught.comparable and same_classes
    return Predictions(
        data=data.identity, classes=len(data.classes), index=index, label=labels[index].int(),
        student=student, student_confidence=confidence,
        teacher=teacher[0] if comparable else None, teacher_confidence=teacher[1] if comparable else None,
        map_rows=torch.searchsorted(index, on[finite]), map_student=maps[0], map_teacher=maps[1] if taught else None,
    )  # fmt: skip


def _whole(own: list[Tensor], processes: Processes) -> list[Tensor]:
    """Tensors of this process's images as those of all, on the host, in the order of the first of them (indices)."""
    parts = processes.gathered([column.cpu() for column in own])
    found = [torch.cat(column) for column in zip(*(part for part in parts if len(part[0])), strict=True)]
    order = found[0].argsort()
    return [column[order] for column in found]
