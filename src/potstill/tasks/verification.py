"""Verification, one to one: the accuracy over ten folds of pairs, and TAR at FAR by counting every comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.tasks.comparisons import Comparisons

__all__ = ["FoldAccuracy", "OperatingPoint", "Verification", "allowed", "tar_at_far", "ten_folds"]

_HALF = 1 << 16  # values of 16 bits: the histogram's bins, and the scores in one bin
# The upper 16 bits of float32 numbers, from the smallest number to the largest: negative ones count backwards.
_ASCENDING = np.concatenate([np.arange(_HALF - 1, _HALF // 2 - 1, -1), np.arange(_HALF // 2)])


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a rate of false accepts is kept.

    Attributes:
        asked: the rate that is not to be exceeded.
        rate: the rate that there is at the threshold: lower than asked where scores are tied or the set is small.
        found: the part of the right ones that is accepted.
        threshold: the smallest float32 score that is accepted.
    """

    asked: float
    rate: float
    found: float
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """TAR at FAR.

    Attributes:
        points: an operating point for each rate that could be measured, as asked.
        left_out: the rates below one in ``impostors``.
        genuine: comparisons of one person.
        impostors: comparisons of two.
        roc: ``(K, 2)`` float64, some exact points of the curve for a plot, FAR and TAR ascending.
    """

    points: tuple[OperatingPoint, ...]
    left_out: tuple[float, ...]
    genuine: int
    impostors: int
    roc: np.ndarray


def allowed(rate: float, count: int) -> int:
    """How many of ``count`` may be accepted falsely: the largest k with k / count <= rate, the rate read as written.

    Raises:
        DataError: a rate that is not between 0 and 1.

    Example:
        >>> allowed(0.29, 100), int(0.29 * 100), allowed(1e-3, 999)
        (29, 28, 0)
    """
    if not 0 < rate < 1:
        raise DataError(f"A rate of false accepts is between 0 and 1, like 0.001; got {rate}.")
    return int(Fraction(str(float(rate))) * count)


def tar_at_far(comparisons: Comparisons, fars: Sequence[float]) -> Verification:
    """The part of the comparisons of one person that is accepted, where two persons are at most at the rate ``far``.

    A comparison is accepted where its score is at least a threshold, the smallest at which the fraction of impostors
    that are accepted does not exceed ``far``. So equal scores are accepted or refused together, nothing is
    interpolated, and the TAR is that of an operating point that exists. A FAR below 1 / impostors is left out: the set
    is too small to measure it. Scores of -inf (a missing template) are counted, and never accepted.

    Two passes find the threshold among any number of scores: one counts them by the upper 16 bits of their float32
    numbers, the other counts by the lower 16 bits inside the bins that thresholds are in. Memory: a block, and some
    MiB of counts.

    Args:
        comparisons: gives scores block by block.
        fars: rates between 0 and 1.

    Raises:
        DataError: no comparison of one person, or of two; a rate that is not between 0 and 1.

    Example:
        >>> from potstill.tasks.comparisons import Given
        >>> scores = Given(torch.tensor([0.9, 0.4, 0.5, 0.1, 0.1, 0.0]), torch.tensor([1, 1, 0, 0, 0, 0]).bool())
        >>> [(p.asked, p.rate, p.found) for p in tar_at_far(scores, [0.1, 0.25, 0.5]).points]
        [(0.25, 0.25, 1.0), (0.5, 0.25, 1.0)]
    """
    everything, genuine = (counts[_ASCENDING] for counts in _counts(comparisons, _upper, _HALF))
    impostors = everything - genuine
    total, right = int(impostors.sum()), int(genuine.sum())
    if not total or not right:
        raise DataError(
            f"There are {right} comparisons of one person and {total} of two; TAR at FAR needs some of both."
        )
    quotas = {far: allowed(far, total) for far in fars}
    # above[b]: how many impostors are in higher bins than b. The first refused one is number quota + 1 from the top.
    above = impostors.sum() - impostors.cumsum()
    bins = {far: int(np.argmax(above <= quota)) for far, quota in quotas.items() if quota}
    inside = _inside(comparisons, sorted(set(bins.values())))
    points = []
    for far, place in bins.items():
        near = inside[place]
        higher = above[place] + near[0].sum() - near[0].cumsum()
        refused = int(np.argmax(higher <= quotas[far]))  # the highest score that must be refused, within its bin
        accepted = int(genuine[place + 1 :].sum() + near[1][refused + 1 :].sum())
        score = _score(int(_ASCENDING[place]), refused if place >= _HALF // 2 else _HALF - 1 - refused)
        threshold = float(np.nextafter(score, np.float32(np.inf)))
        points.append(OperatingPoint(far, int(higher[refused]) / total, accepted / right, threshold))
    left_out = tuple(far for far, quota in quotas.items() if not quota)
    return Verification(tuple(points), left_out, right, total, _roc(impostors, genuine))


def _upper(scores: Tensor) -> Tensor:
    """The upper 16 bits of each float32 number, sign, exponent and 7 bits of the fraction, as int32 in 0..65535."""
    return scores.view(torch.int32).bitwise_right_shift(16).bitwise_and_(_HALF - 1)


def _score(upper: int, lower: int) -> np.float32:
    """The float32 number of these bits."""
    return np.uint32((upper << 16) + lower).view(np.float32)


def _counts(
    comparisons: Comparisons, numbers: Callable[[Tensor], Tensor], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of a number of each score, ``(length,)`` int64: of all of them, and of those of one person."""
    everything, genuine = (torch.zeros(length, dtype=torch.int64) for _ in range(2))
    for scores, same in comparisons.blocks():
        for counts, part in ((everything, scores), (genuine, same)):
            if len(part):
                counts += torch.bincount(numbers(part), minlength=length)
    return everything.numpy(), genuine.numpy()


def _inside(comparisons: Comparisons, places: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each bin how often each score in it occurs, ``(65536,)`` int64: among impostors, and among the others."""
    if not places:
        return {}
    slots = torch.full((_HALF,), -1, dtype=torch.int32)
    slots[torch.from_numpy(_ASCENDING[list(places)])] = torch.arange(len(places), dtype=torch.int32)

    def numbers(scores: Tensor) -> Tensor:
        slot = slots[_upper(scores)]
        chosen = slot >= 0
        return slot[chosen] * _HALF + (scores[chosen].view(torch.int32) & (_HALF - 1))

    everything, genuine = (counts.reshape(-1, _HALF) for counts in _counts(comparisons, numbers, len(places) * _HALF))
    found = {}
    for place, counts in zip(places, zip(everything - genuine, genuine, strict=True), strict=True):
        # of negative numbers the one with more in its lower bits is the smaller
        found[place] = counts if place >= _HALF // 2 else (counts[0][::-1], counts[1][::-1])
    return found


def _roc(impostors: np.ndarray, genuine: np.ndarray, most: int = 256) -> np.ndarray:
    """Points of the curve at the lower edges of bins: exact ones, the next to FARs evenly spaced in log."""
    accepted = np.stack([counts[::-1].cumsum() for counts in (impostors, genuine)], axis=1)
    finite = accepted[: _HALF // 2 + 0x7F80]  # without the bin of -inf, where nothing is accepted
    points = finite[np.flatnonzero(np.diff(finite, axis=0, prepend=-1).any(1))] / accepted[-1]
    if len(points) <= most:
        return points
    wanted = np.geomspace(1 / accepted[-1, 0], 1, most - 2)
    following = np.searchsorted(points[:, 0], wanted).clip(max=len(points) - 1)
    return points[np.unique([0, *following, len(points) - 1])]


@dataclass(frozen=True, slots=True, eq=False)
class FoldAccuracy:
    """The accuracy over folds.

    Attributes:
        mean: of the folds' accuracies.
        spread: their standard deviation, divided by the number of folds, not by one less: as it is published.
        accuracies: ``(folds,)`` float64.
        thresholds: ``(folds,)`` float64, chosen on the other folds.
    """

    mean: float
    spread: float
    accuracies: np.ndarray
    thresholds: np.ndarray


def ten_folds(scores: Tensor, same: Tensor, folds: int = 10) -> FoldAccuracy:
    """The accuracy of naming pairs "same" or "different", each fold with the threshold that is best on the others.

    Folds are consecutive parts of the list as it stands in its file; where their number does not divide it, the first
    ones have a pair more. Thresholds are the middles between neighbouring scores of the other folds. Several
    may be best: the highest is taken, which accepts the fewest. Beyond the ends a threshold accepts everything that
    has a finite score, or nothing; a score of -inf (a missing face) is never accepted.

    Args:
        scores: ``(P,)`` float.
        same: ``(P,)`` bool.
        folds: how many; 10 in the published protocols.

    Raises:
        DataError: fewer pairs than folds, or fewer than 2 folds; scores that are no numbers; pairs of one kind only.

    Source: Huang et al., Labeled Faces in the Wild, 2007.

    Example:
        >>> found = ten_folds(torch.tensor([0.9, 0.1, 0.8, 0.2]), torch.tensor([True, False, True, False]), folds=2)
        >>> found.mean, [round(value, 6) for value in found.thresholds.tolist()]
        (1.0, [0.5, 0.5])
    """
    values, labels = scores.detach().cpu().double().numpy(), same.cpu().bool().numpy()
    if values.shape != labels.shape or not 2 <= folds <= len(values):
        raise DataError(f"{len(values)} scores and {len(labels)} labels do not make {folds} folds of pairs.")
    if np.isnan(values).any():
        raise DataError(f"{np.isnan(values).sum()} scores are no numbers. A comparison without a result is -inf.")
    if labels.all() or not labels.any():
        raise DataError("All pairs are of one kind; the accuracy needs pairs of one person and of two.")
    parts = np.array_split(np.arange(len(values)), folds)
    thresholds, accuracies = np.empty(folds), np.empty(folds)
    for fold, part in enumerate(parts):
        others = np.ones(len(values), bool)
        others[part] = False
        thresholds[fold] = _best_threshold(values[others], labels[others])
        accuracies[fold] = ((values[part] >= thresholds[fold]) == labels[part]).mean()
    return FoldAccuracy(float(accuracies.mean()), float(accuracies.std()), accuracies, thresholds)


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The highest of the thresholds at which most are right."""
    levels, place = np.unique(scores[np.isfinite(scores)], return_inverse=True)
    labels = same[np.isfinite(scores)]
    change = np.bincount(place, weights=np.where(labels, 1, -1), minlength=len(levels))
    # right[j], up to a constant, where levels[j] and above are accepted; the last accepts nothing
    right = np.append(change[::-1].cumsum()[::-1], 0)
    best = len(right) - 1 - int(right[::-1].argmax())
    if best == len(levels):
        return np.inf
    if best == 0:
        return float(np.finfo(np.float64).min)
    middle = levels[best - 1] + (levels[best] - levels[best - 1]) / 2
    return float(middle if middle > levels[best - 1] else levels[best])
