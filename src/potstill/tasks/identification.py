"""Identification, one to many: the rank of the mate, and how often it is found where strangers raise few alarms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.tasks.comparisons import scores_between
from potstill.tasks.templates import Templates
from potstill.tasks.verification import OperatingPoint, allowed

__all__ = ["Identification", "identify"]

_SCORES = 1 << 21  # in a block


@dataclass(frozen=True, slots=True, eq=False)
class Identification:
    """What a search of a gallery finds.

    Attributes:
        ranks: by rank, the part of the probes with a mate whose mate is among so many best.
        points: an operating point for each FPIR that could be measured, as asked; ``found`` is the TPIR.
        left_out: FPIRs below one in ``strangers``.
        idle_ranks: ranks that everybody in the gallery is within, which say nothing.
        mated: probes whose person is in the gallery.
        strangers: probes whose person is not.
    """

    ranks: dict[int, float]
    points: tuple[OperatingPoint, ...]
    left_out: tuple[float, ...]
    idle_ranks: tuple[int, ...]
    mated: int
    strangers: int


def identify(
    gallery: Templates,
    gallery_subjects: Tensor,
    probes: Templates,
    probe_subjects: Tensor,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (1e-1, 1e-2, 1e-3),
) -> Identification:
    """Closed-set ranks and open-set TPIR at FPIR, counted over every probe, with memory for one number a probe.

    A person's score is the best of the person's templates in the gallery. The rank of a probe's mate is 1 plus the
    number of other persons whose score is at least the mate's: a tie counts against the mate.

    Closed set: the part of the probes with a mate whose mate is within the rank. Open set: a search raises an alarm
    where the gallery's best score is at least a threshold, the smallest at which the part of the *strangers* (probes
    whose person is not in the gallery) that raise one does not exceed the FPIR. The TPIR is the part of the probes
    with a mate whose mate has rank 1 and a score of at least that threshold. So false positives are counted in
    searches, not in comparisons, over strangers only, and a mate that is outranked is no find. An FPIR below
    1 / strangers is left out.

    A template that is not enrolled never matches: in the gallery its person is never found, as a probe it is a miss or
    raises no alarm; it is counted in every number.

    Args:
        gallery: the templates that are searched.
        gallery_subjects: ``(G,)`` integers.
        probes: the templates that are searched for.
        probe_subjects: ``(Q,)`` integers.
        ranks: of the closed set. A rank of at least the number of persons is left out: it says nothing.
        fpirs: rates between 0 and 1.

    Raises:
        DataError: an empty gallery, or no probe whose person is in it.

    Source: Grother and Ngan, NIST Interagency Report 8009, 2014 (FPIR, TPIR); Klare et al., Pushing the Frontiers of
    Unconstrained Face Detection and Recognition: IARPA Janus Benchmark A, CVPR 2015.

    Example:
        >>> gallery = Templates.of(torch.eye(3))
        >>> probes = Templates.of(torch.tensor([[1.0, 0.1, 0.0], [1.0, 1.0, 0.0], [0.2, 0.0, 1.0]]))
        >>> found = identify(gallery, torch.tensor([1, 2, 3]), probes, torch.tensor([1, 2, 9]), ranks=(1, 2), fpirs=())
        >>> found.ranks, found.strangers
        ({1: 0.5, 2: 1.0}, 1)
    """
    if not len(gallery):
        raise DataError("The gallery has no templates, so nothing can be found in it.")
    order = gallery_subjects.argsort(stable=True)
    gallery = gallery[order]  # by person, so that with one template each the columns are the persons'
    persons, owner = gallery_subjects[order].unique_consecutive(return_inverse=True)
    mate = torch.searchsorted(persons, probe_subjects.contiguous()).clamp(max=len(persons) - 1)
    mated = persons[mate] == probe_subjects
    if not mated.any():
        raise DataError(f"None of the {len(probes)} probes is of a person in the gallery, so nobody can be found.")
    own = torch.full((len(probes),), -torch.inf)  # the mate's score
    best = torch.full((len(probes),), -torch.inf)  # the best score of anybody else
    ahead = torch.zeros(len(probes), dtype=torch.int64)  # how many others score at least as well as the mate
    for rows in torch.arange(len(probes)).split(max(1, _SCORES // len(gallery))):
        scores = scores_between(probes[rows], gallery)
        if len(persons) < len(gallery):
            table = torch.full((len(rows), len(persons)), -torch.inf)
            scores = table.scatter_reduce_(1, owner.expand(len(rows), -1), scores, "amax")
        here = mated[rows]
        column = mate[rows][:, None]
        own[rows] = torch.where(here, scores.gather(1, column)[:, 0], -torch.inf)
        masked = scores.scatter(1, column, torch.where(here[:, None], -torch.inf, scores.gather(1, column)))
        best[rows] = masked.max(1).values
        ahead[rows] = (masked >= own[rows, None]).sum(1)
    place = ahead[mated] + 1  # a mate at -inf comes after everybody: all are at least as good, and its own place too
    told = {rank: float((place <= rank).double().mean()) for rank in ranks if rank < len(persons)}
    alarms = best[~mated].sort(descending=True).values.numpy()
    quotas = {fpir: allowed(fpir, len(alarms)) for fpir in fpirs}
    points = []
    for fpir, quota in quotas.items():
        if not quota:
            continue
        refused = alarms[quota]
        hits = (place == 1) & (own[mated] > float(refused))
        rate = int((alarms > refused).sum()) / len(alarms)
        above = float(np.nextafter(refused, np.float32(np.inf)))
        points.append(OperatingPoint(fpir, rate, float(hits.double().mean()), above))
    left_out = tuple(fpir for fpir, quota in quotas.items() if not quota)
    idle = tuple(rank for rank in ranks if rank >= len(persons))
    return Identification(told, tuple(points), left_out, idle, int(mated.sum()), len(alarms))
