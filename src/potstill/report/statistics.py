"""Intervals: how far a measured accuracy, or the difference of two, may be from what more images or seeds would say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from potstill.errors import DataError
from potstill.study.statistics import difference

__all__ = ["Interval", "mean_interval", "paired_difference", "two_sample_difference", "unpaired_difference", "wilson"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval, in percent or in points.

    Attributes:
        value: the estimate.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside.

        Example:
            >>> Interval(1.0, 0.2, 1.8).clear, Interval(1.0, -0.2, 2.2).clear
            (True, False)
        """
        return self.low > 0 or self.high < 0


def wilson(right: float, images: int, level: float = 0.95) -> Interval:
    r"""An accuracy with Wilson's score interval, in percent.

    .. math:: \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        right: how many images are right.
        images: n, at least 1.
        level: the interval's.

    Raises:
        DataError: without an image.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> found = wilson(81, 263)
        >>> round(found.low, 2), round(found.high, 2)
        (25.53, 36.62)
    """
    if images < 1:
        raise DataError(f"An accuracy is of one image or more; got {images}.")
    z, p = float(norm.ppf(0.5 + level / 2)), right / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images)) / (1 + z * z / images)
    return Interval(100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def unpaired_difference(
    ours: float, our_images: int, theirs: float, their_images: int, level: float = 0.95
) -> Interval:
    """The difference of two accuracies of which only the totals are known, in points: ours less theirs.

    Newcombe's interval from Wilson's two. It takes the two for measured on different images; where they were the same,
    and two networks fail on similar ones, it is too wide.

    Args:
        ours: images that the one has right.
        our_images: of how many.
        theirs: images that the other has right.
        their_images: of how many.
        level: the interval's.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
        1998, method 10.

    Example:
        >>> found = unpaired_difference(56, 70, 48, 80)
        >>> [round(value, 2) for value in (found.value, found.low, found.high)]
        [20.0, 5.24, 33.39]
    """
    one, other = wilson(ours, our_images, level), wilson(theirs, their_images, level)
    value = one.value - other.value
    return Interval(
        value,
        value - math.hypot(one.value - one.low, other.high - other.value),
        value + math.hypot(one.high - one.value, other.value - other.low),
    )


def paired_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], level: float = 0.95) -> Interval:
    r"""The difference of two accuracies on the same images, in points: ours less theirs, with Tango's score interval.

    The interval holds every difference that McNemar's score test does not refuse; zero lies outside just where that
    test says that the two differ. With b images that only the one has right and c that only the other has, a difference
    d is refused where

    .. math:: \frac{|b - c - n d|}{\sqrt{n (2 \hat q + d (1 - d))}} > z

    with q the most likely part of images that only the other has right, given d.

    Args:
        ours: ``(N,)``, whether the one has an image right.
        theirs: ``(N,)``, the same for the other, in the same order.
        level: the interval's.

    Raises:
        DataError: for no image, or for different numbers of them.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 1998.

    Example:
        >>> ours, theirs = np.array([True] * 90 + [False] * 10), np.array([True] * 80 + [False] * 20)
        >>> found = paired_difference(ours, theirs)
        >>> [round(value, 2) for value in (found.value, found.low, found.high)]
        [10.0, 5.52, 17.44]
    """
    if ours.shape != theirs.shape or not ours.size:
        raise DataError(f"A paired difference needs the same images of both; got {ours.size} and {theirs.size}.")
    n, b, c = ours.size, int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    z, value = float(norm.ppf(0.5 + level / 2)), (b - c) / ours.size

    def score(d: float) -> float:
        """The test's statistic: falls as d rises, and is 0 at the estimate."""
        if d == value:
            return 0.0
        q = _most_likely(n, b, c, d)
        variance = n * (2 * q + d * (1 - d))
        return (b - c - n * d) / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, value - d)

    edge = 1 - 1e-12
    low = -1.0 if value <= -edge or score(-edge) <= z else brentq(lambda d: min(score(d), 1e9) - z, -edge, value)
    high = 1.0 if value >= edge or score(edge) >= -z else brentq(lambda d: max(score(d), -1e9) + z, value, edge)
    return Interval(100 * value, 100 * low, 100 * high)


def _most_likely(n: int, b: int, c: int, d: float) -> float:
    """The most likely part of images that only the other network has right, where the difference is d."""
    linear = -b - c + (2 * n - b + c) * d
    under = max(0.0, linear * linear + 8 * n * c * d * (1 - d))
    return max(0.0, (math.sqrt(under) - linear) / (4 * n))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """The mean of several seeds with Student's interval; None of fewer than two.

    Example:
        >>> found = mean_interval([70.0, 71.0, 72.0])
        >>> [round(value, 2) for value in (found.value, found.low, found.high)]
        [71.0, 68.52, 73.48]
    """
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def two_sample_difference(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Interval | None:
    """The difference of two means over seeds that do not pair, with Welch's interval; None of fewer than two each.

    The interval itself is that of studies, :func:`potstill.study.statistics.difference`.

    Example:
        >>> found = two_sample_difference([71.0, 72.0, 73.0], [69.0, 70.0, 71.0])
        >>> [round(value, 2) for value in (found.value, found.low, found.high)]
        [2.0, -0.27, 4.27]
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    found = difference(ours, theirs, level)
    if found.low is None or found.high is None:  # no two values differ: the page shows a point
        return Interval(found.mean, found.mean, found.mean)
    return Interval(found.mean, found.low, found.high)
