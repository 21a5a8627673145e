"""From embeddings of faces to the numbers of a face protocol, in percent."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.data.pairs import PairSet
from potstill.data.protocol import Protocol
from potstill.errors import DataError
from potstill.tasks.comparisons import Given, Listed, pair_scores
from potstill.tasks.identification import Identification, identify
from potstill.tasks.templates import Templates, pool
from potstill.tasks.verification import tar_at_far, ten_folds

__all__ = ["FARS", "FPIRS", "RANKS", "pairs_accuracy", "rate_name", "verify", "verify_splits"]

log = logging.getLogger(__name__)

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIRS = (1e-1, 1e-2, 1e-3)
RANKS = (1, 5, 10)


def rate_name(rate: float) -> str:
    """A rate in a name.

    Example:
        >>> [rate_name(rate) for rate in (0.1, 1e-6, 0.00025)]
        ['1e-1', '1e-6', '2.5e-4']
    """
    digits, _, power = f"{rate:e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def verify(
    embeddings: Tensor,
    valid: Tensor,
    protocol: Protocol,
    *,
    flipped: Tensor | None = None,
    normalise: bool = True,
    weighted: bool = False,
    fars: Sequence[float] = FARS,
    fpirs: Sequence[float] = FPIRS,
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """A protocol's numbers in percent, as far as it can measure them; a log line tells what is left out and why.

    Args:
        embeddings: ``(N, D)`` float, of ``protocol.images`` in their order, on any device.
        valid: ``(N,)`` bool: False where no face was found. A template that has no image left never matches; that
            counts as a miss in every number.
        protocol: what is compared.
        flipped: ``(N, D)`` embeddings of the mirrored images, to be added; None for none.
        normalise: scale each image's embedding to length 1 before it is pooled.
        weighted: weigh each image by the protocol's detector scores.
        fars: rates of false accepts, one to one.
        fpirs: rates of false positive searches, one to many.
        ranks: of the closed set.

    Returns:
        ``tar_1e-3`` and so on; where the protocol has galleries ``rank1`` and so on and ``tpir_1e-2`` and so on, each
        the mean over the galleries, and left out where one of them cannot measure it; ``templates_missed``, the
        percentage of templates without an image.

    Raises:
        DataError: embeddings of another number of images, or such that are not finite; ``weighted`` without scores.
    """
    if len(embeddings) != len(protocol.images):
        raise DataError(f"{len(embeddings)} embeddings for the {len(protocol.images)} images of {protocol.name}.")
    weights = None
    if weighted:
        if protocol.scores is None:
            raise DataError(f"{protocol.name} has no detector scores (name_5pts_score.txt) to weigh images by.")
        weights = torch.from_numpy(protocol.scores)
    templates = pool(
        embeddings,
        valid,
        image_of=torch.from_numpy(protocol.image_of),
        template_of=torch.from_numpy(protocol.template_of),
        media_of=torch.from_numpy(protocol.media_of),
        templates=protocol.templates,
        normalise=normalise,
        weights=weights,
        flipped=flipped,
    )
    values = {"templates_missed": 100 * float((~templates.enrolled).double().mean())}
    if protocol.pairs is not None:
        pairs = (torch.from_numpy(part) for part in (protocol.pairs.first, protocol.pairs.second, protocol.pairs.same))
        found = tar_at_far(Listed(templates, *pairs), fars)
        values.update({f"tar_{rate_name(point.asked)}": 100 * point.found for point in found.points})
        _tell(protocol.name, "TAR at FAR", found.left_out, f"{found.impostors} comparisons of two people")
    if protocol.galleries:
        values.update(_search(templates, protocol, ranks, fpirs))
    return values


def _search(templates: Templates, protocol: Protocol, ranks: Sequence[int], fpirs: Sequence[float]) -> dict[str, float]:
    """Means over the galleries of what each of them can measure."""
    subjects = torch.from_numpy(protocol.subject_of)
    probes = torch.from_numpy(protocol.probes).long()
    rows: list[dict[str, float]] = []
    for name, numbers in protocol.galleries.items():
        gallery = torch.from_numpy(numbers).long()
        found = identify(
            templates[gallery], subjects[gallery], templates[probes], subjects[probes], ranks=ranks, fpirs=fpirs
        )
        where = f"{protocol.name}, gallery {name}"
        _tell(where, "TPIR at FPIR", found.left_out, f"{found.strangers} probes of people outside the gallery")
        if found.idle_ranks:
            log.info("%s has no more people than rank %d, which is left out.", where, min(found.idle_ranks))
        rows.append(_percent(found))
    common = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: sum(row[key] for row in rows) / len(rows) for key in common}


def _percent(found: Identification) -> dict[str, float]:
    values = {f"rank{rank}": 100 * value for rank, value in found.ranks.items()}
    values.update({f"tpir_{rate_name(point.asked)}": 100 * point.found for point in found.points})
    return values


def _tell(where: str, what: str, left_out: Sequence[float], small: str) -> None:
    if left_out:
        rates = ", ".join(rate_name(rate) for rate in left_out)
        log.info("%s: %s %s is not measured, because there are only %s.", where, what, rates, small)


def verify_splits(
    embeddings: Tensor, valid: Tensor, protocols: Sequence[Protocol], **settings: object
) -> dict[str, float]:
    """The means over several protocols of the same images, such as the splits of IJB-A, of what all of them measure.

    Args:
        embeddings: as :func:`verify` takes them.
        valid: as :func:`verify` takes it.
        protocols: at least one; of one the numbers are its own.
        settings: further arguments of :func:`verify`.

    Returns:
        The values of :func:`verify`, and for several protocols ``tar_1e-3_spread`` and so on: the standard deviation
        over the splits, with one less in the denominator.
    """
    rows = [verify(embeddings, valid, protocol, **settings) for protocol in protocols]  # type: ignore[arg-type]
    if len(rows) == 1:
        return rows[0]
    values: dict[str, float] = {}
    for key in rows[0]:
        column = [row[key] for row in rows if key in row]
        if len(column) == len(rows):
            values[key] = float(np.mean(column))
            values[f"{key}_spread"] = float(np.std(column, ddof=1))
    return values


def pairs_accuracy(
    embeddings: Tensor,
    pairs: PairSet,
    *,
    valid: Tensor | None = None,
    flipped: Tensor | None = None,
    fars: Sequence[float] = FARS,
) -> dict[str, float]:
    """The accuracy over the folds of a set of pairs, its spread over them, and TAR at FAR over all pairs, in percent.

    Args:
        embeddings: ``(N, D)`` float, of ``pairs.images`` in their order, on any device.
        pairs: in the order of its file, which makes the folds. Of a single fold there is no accuracy: no other part
            could choose the threshold.
        valid: ``(N,)`` bool: False where no face was found. Its pairs are named "different". None for all valid.
        flipped: ``(N, D)`` embeddings of the mirrored images, to be added; None for none.
        fars: rates of false accepts; those below one in the number of pairs of two people are left out.

    Returns:
        ``accuracy``, ``accuracy_spread``, and ``tar_1e-3`` and so on.

    Raises:
        DataError: embeddings of another number of images, or such that are not finite.
    """
    count = len(pairs.images)
    if len(embeddings) != count:
        raise DataError(f"{len(embeddings)} embeddings for the {count} images of {pairs.name}.")
    every = torch.arange(count)
    faces = pool(
        embeddings,
        torch.ones(count, dtype=torch.bool) if valid is None else valid,
        image_of=every,
        template_of=every,
        media_of=every,
        templates=count,
        flipped=flipped,
    )
    first, second, same = (torch.from_numpy(part) for part in (pairs.first, pairs.second, pairs.same))
    scores = pair_scores(faces, first, second)
    values: dict[str, float] = {}
    if pairs.folds > 1:
        folded = ten_folds(scores, same, pairs.folds)
        values = {"accuracy": 100 * folded.mean, "accuracy_spread": 100 * folded.spread}
    else:
        log.info("%s has one fold, so that no other part can choose a threshold: no accuracy.", pairs.name)
    found = tar_at_far(Given(scores, same), fars)
    _tell(pairs.name, "TAR at FAR", found.left_out, f"{found.impostors} pairs of two people")
    values.update({f"tar_{rate_name(point.asked)}": 100 * point.found for point in found.points})
    return values
