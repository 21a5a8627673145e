"""What is measured of a face embedder: verification of pairs, or a protocol of templates."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from potstill.config import Recipe
from potstill.data.faces import FaceTest
from potstill.data.source import Source, Subset
from potstill.errors import DataError, RecipeError
from potstill.methods.margins import Margin
from potstill.methods.objective import Objective
from potstill.methods.registry import find_method
from potstill.networks.features import Features
from potstill.networks.tapped import Tapped
from potstill.procedures.data import AnyLoader, Data
from potstill.tasks.face_curve import all_pairs, receiver_points
from potstill.tasks.face_evaluation import FARS, FPIRS, RANKS, pairs_accuracy, rate_name, verify_splits
from potstill.tasks.verification import allowed
from potstill.training.distributed import Processes

__all__ = [
    "FaceJudge",
    "embed",
    "embed_images",
    "embedding_of",
    "measured",
    "must_show_one_person",
    "receiver_curve",
    "told_by",
]

Embedding = Callable[[Tensor], Tensor]


class FaceJudge:
    """How well a network that trains tells people apart whom it has not seen.

    Args:
        network: the embedder, or the moving average of its weights.
        data: with the images to judge by and what is done with them.
        processes: this process and the others.
        autocast: the dtype to compute in; None for float32.
        far: the false accept rate at which the true accept rate is ``tar``.

    Raises:
        DataError: the test is too small for that rate.
    """

    def __init__(
        self, network: Tapped, data: Data, processes: Processes, autocast: torch.dtype | None, far: float
    ) -> None:
        self.network, self.data, self.processes, self.autocast, self.far = network, data, processes, autocast, far
        if data.val is not None and data.test is not None:
            told_by(data.test, far)

    def values(self, objective: Objective | None = None) -> dict[str, float]:
        """``tar`` at the rate that counts, ``tar_1e-3`` and so on, in percent; every process calls it."""
        return {} if self.data.val is None else measured(self.embedded(), self.data.test, self.far)

    def embedded(self) -> tuple[Tensor, Tensor]:
        """What :func:`embed` gives of this network."""
        self.processes.align(self.network)
        return embed(embedding_of(self.network, self.autocast), self.data, self.processes)


def must_show_one_person(recipe: Recipe) -> None:
    """Refuse mixed images beside a margin.

    Raises:
        RecipeError: names the terms.
    """
    margins = [name for name in recipe.objective if issubclass(find_method(name), Margin)]
    if margins and (recipe.data.mixup or recipe.data.cutmix):
        raise RecipeError(
            f"{' and '.join(margins)} of the objective needs one identity for each image, and data.mixup and "
            "data.cutmix show mixtures of several people. Take the mixing out."
        )


def embedding_of(network: Tapped, autocast: torch.dtype | None) -> Embedding:
    """A network's embedding of a batch, in evaluation mode.

    Args:
        network: the embedder.
        autocast: the dtype to compute in; None for float32.
    """
    network.eval()

    def embedding(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
            features: Features = network(images)
        return features.embedding

    return embedding


def embed(embedding: Embedding, data: Data, processes: Processes) -> tuple[Tensor, Tensor]:
    """The embeddings of a run's images to judge by; see :func:`embed_images`."""
    return embed_images(embedding, data.val, data.judged, data.test, processes)


@torch.no_grad()
def embed_images(
    embedding: Embedding, loader: AnyLoader | None, judged: Source | None, test: FaceTest | None, processes: Processes
) -> tuple[Tensor, Tensor]:
    """The embeddings ``(N, D)`` float32 of a test's images, and which of them there are, ``(N,)`` bool.

    Args:
        embedding: gives those of a batch.
        loader: of the images; None where nobody is judged by.
        judged: what ``Batch.index`` counts in: the test's images, or those of them that can be read.
        test: whose images they are.
        processes: each of which embeds its part; all have the whole.
    """
    images = None if test is None else test.images
    count = 0 if images is None else len(images)
    places = torch.arange(count)
    if judged is not images and isinstance(judged, Subset):  # without the damaged ones
        places = torch.from_numpy(judged.indices)
    places = places.to(processes.device)
    found: Tensor | None = None
    seen = torch.zeros(count, device=processes.device)
    for step in () if loader is None else loader.epoch(0):
        for batch in step:
            vectors = embedding(batch.images).float()
            found = vectors.new_zeros(count, vectors.shape[1]) if found is None else found
            at = places[batch.index]
            found[at], seen[at] = vectors, 1.0
    dims = max(processes.gathered(0 if found is None else found.shape[1]))
    found = torch.zeros(count, dims, device=processes.device) if found is None else found
    return processes.sum(found), processes.sum(seen) > 0


@dataclass(frozen=True, slots=True)
class Told:
    """What a test is large enough to tell.

    Attributes:
        fars: rates of false accepts, the highest first.
        fpirs: rates of false positive searches.
        ranks: below the number of people in the smallest gallery.
    """

    fars: tuple[float, ...]
    fpirs: tuple[float, ...]
    ranks: tuple[int, ...]


def told_by(test: FaceTest, far: float) -> Told:
    """The rates and ranks that a test is large enough for; ``far`` is one of them where there are comparisons.

    Args:
        test: what is judged by.
        far: the rate that counts.

    Raises:
        DataError: the test is too small for ``far``.
    """
    wanted, count = sorted({*FARS, far}, reverse=True), test.impostors
    people, strangers = (min((one[k] for one in test.galleries), default=0) for k in (0, 1))
    if count is not None and not allowed(far, count):
        raise DataError(
            f"data.far={far:g} cannot be measured: {count:,} comparisons of two people tell rates down to "
            f"{1 / max(count, 1):.2g}. Take a higher data.far, or a larger test."
        )
    return Told(
        tuple(rate for rate in wanted if allowed(rate, count or 0)),
        tuple(rate for rate in FPIRS if allowed(rate, strangers)),
        tuple(rank for rank in RANKS if rank < people),
    )


def measured(embedded: tuple[Tensor, Tensor], test: FaceTest | None, far: float) -> dict[str, float]:
    """The numbers of a test, in percent; ``tar`` among them where anything is compared one to one.

    Args:
        embedded: of :func:`embed_images`.
        test: what is judged by.
        far: the false accept rate that counts.
    """
    if test is None:
        return {}
    vectors, valid, told = embedded[0], _valid(embedded, test), told_by(test, far)
    values: dict[str, float]
    if test.pairs is not None and test.pairs.folds > 1:
        values = pairs_accuracy(vectors, test.pairs, valid=valid, fars=told.fars)
    elif test.pairs is not None:  # no other fold could choose a threshold, so there is no accuracy
        found = all_pairs(vectors, valid, test.pairs, told.fars)
        values = {f"tar_{rate_name(point.asked)}": 100 * point.found for point in found.points}
    else:
        values = verify_splits(vectors, valid, test.protocols, **asdict(told))
    name = f"tar_{rate_name(far)}"
    return {"tar": values[name], **values} if name in values else values


def receiver_curve(embedded: tuple[Tensor, Tensor], test: FaceTest | None) -> dict[str, list[float]]:
    """Points of the curve of true over false accepts, as ``far`` and ``tar`` from 0 to 1; of splits the first one's.

    Args:
        embedded: of :func:`embed_images`.
        test: what is judged by.
    """
    if test is None or test.impostors is None:
        return {"far": [], "tar": []}
    of = test.pairs if test.pairs is not None else next(one for one in test.protocols if one.pairs is not None)
    curve: np.ndarray = receiver_points(embedded[0], _valid(embedded, test), of)
    return {"far": curve[:, 0].tolist(), "tar": curve[:, 1].tolist()}


def _valid(embedded: tuple[Tensor, Tensor], test: FaceTest) -> Tensor:
    """``(N,)`` bool: the images that there are and that have a face."""
    return embedded[1].cpu() & torch.from_numpy(test.found)
