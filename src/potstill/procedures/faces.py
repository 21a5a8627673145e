"""What is measured of a face embedder: verification of pairs, or a protocol of templates."""

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.methods.objective import Objective
from potstill.networks.features import Features
from potstill.networks.tapped import Tapped
from potstill.procedures.data import Data
from potstill.tasks.face_curve import receiver_points
from potstill.tasks.face_evaluation import FARS, pairs_accuracy, rate_name, verify_splits
from potstill.training.distributed import Processes

__all__ = ["FaceJudge", "embed", "measured", "receiver_curve"]


class FaceJudge:
    """How well a network that trains tells people apart whom it has not seen.

    Args:
        network: the embedder, or the moving average of its weights.
        data: with the images to judge by and what is done with them.
        processes: this process and the others.
        autocast: the dtype to compute in; None for float32.
        far: the false accept rate at which the true accept rate is ``tar``.
    """

    def __init__(
        self, network: Tapped, data: Data, processes: Processes, autocast: torch.dtype | None, far: float
    ) -> None:
        self.network, self.data, self.processes, self.autocast, self.far = network, data, processes, autocast, far

    def values(self, objective: Objective | None = None) -> dict[str, float]:
        """``tar`` at the rate that counts, ``tar_1e-3`` and so on, in percent; every process calls it."""
        return {} if self.data.val is None else measured(self.embedded(), self.data, self.far)

    def embedded(self) -> tuple[Tensor, Tensor]:
        """What :func:`embed` gives of this network."""
        self.processes.align(self.network)
        self.network.eval()
        return embed(self._embedding, self.data, self.processes)

    def _embedding(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features: Features = self.network(images)
        return features.embedding


@torch.no_grad()
def embed(embedding: Callable[[Tensor], Tensor], data: Data, processes: Processes) -> tuple[Tensor, Tensor]:
    """The embeddings ``(N, D)`` float32 of the images to judge by, and which of them there are, ``(N,)`` bool.

    Args:
        embedding: gives those of a batch.
        data: with the images.
        processes: each of which embeds its part; all have the whole.
    """
    count = 0 if data.judged is None else len(data.judged)
    found: Tensor | None = None
    seen = torch.zeros(count, device=processes.device)
    for step in () if data.val is None else data.val.epoch(0):
        for batch in step:
            vectors = embedding(batch.images).float()
            found = vectors.new_zeros(count, vectors.shape[1]) if found is None else found
            found[batch.index], seen[batch.index] = vectors, 1.0
    dims = max(processes.gathered(0 if found is None else found.shape[1]))
    found = torch.zeros(count, dims, device=processes.device) if found is None else found
    return processes.sum(found), processes.sum(seen) > 0


def measured(embedded: tuple[Tensor, Tensor], data: Data, far: float) -> dict[str, float]:
    """The numbers of a test, in percent.

    Args:
        embedded: of :func:`embed`.
        data: with the test.
        far: the false accept rate that counts.
    """
    test = data.test
    if test is None:
        return {}
    vectors, seen = embedded
    valid = seen.cpu() & torch.from_numpy(test.found)
    fars = sorted({*FARS, far}, reverse=True)
    if test.pairs is not None:
        values = pairs_accuracy(vectors, test.pairs, valid=valid, fars=fars)
    else:
        values = verify_splits(vectors, valid, test.protocols, fars=fars)
    counts = values.get(f"tar_{rate_name(far)}")
    if counts is None:
        raise DataError(
            f"data.far={far:g} cannot be measured: there are too few comparisons of two people. Take a higher "
            "data.far, or a larger test."
        )
    return {"tar": counts, **values}


def receiver_curve(embedded: tuple[Tensor, Tensor], data: Data) -> dict[str, list[float]]:
    """Points of the curve of true over false accepts, as ``far`` and ``tar`` from 0 to 1; of splits the first one's.

    Args:
        embedded: of :func:`embed`.
        data: with the test.
    """
    test = data.test
    if test is None:
        return {"far": [], "tar": []}
    vectors, seen = embedded
    valid = seen.cpu() & torch.from_numpy(test.found)
    of = test.pairs if test.pairs is not None else test.protocols[0]
    curve = receiver_points(vectors, valid, of)
    return {"far": curve[:, 0].tolist(), "tar": curve[:, 1].tolist()}
