"""What a few seeds say: the mean, its spread, and how sure a difference is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from scipy.special import stdtrit

__all__ = ["Difference", "Spread", "difference", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        deviation: their sample standard deviation (n - 1); None for a single one.
        count: how many there are.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two means, with the interval that holds the true one in so many of a hundred cases.

    Attributes:
        mean: of the first less that of the second.
        low: the interval's lower end; None where nothing is known of the spread.
        high: its upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool | None:
        """Whether the interval leaves out 0; None without an interval."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Args:
        values: one or more.

    Raises:
        ValueError: for none.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0, count=3)
        >>> spread([4.0]).deviation is None
        True
    """
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def difference(ours: Sequence[float], control: Sequence[float], confidence: float = 0.95) -> Difference:
    r"""How much more one group of runs has than another, with a confidence interval.

    .. math::
        \bar{x} - \bar{y} \pm t_\nu \sqrt{s_x^2 / n_x + s_y^2 / n_y}, \quad
        \nu = \frac{(s_x^2 / n_x + s_y^2 / n_y)^2}{\frac{(s_x^2 / n_x)^2}{n_x - 1} + \frac{(s_y^2 / n_y)^2}{n_y - 1}}

    Welch's: the groups' spreads may differ, and :math:`\nu` is his and Satterthwaite's number of degrees of freedom.
    Runs of one seed are not paired: they share the order of images, but their results are hardly correlated, and three
    pairs would leave two degrees of freedom. There is no interval where a group has a single value, nor where the
    values of both groups are all the same: nothing is known of their spread then.

    Args:
        ours: values of one group, a run each.
        control: values of the other.
        confidence: part of the cases in which the interval holds the true difference.

    Raises:
        ValueError: for a group without a value.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are involved",
    Biometrika 1947.

    Example:
        >>> found = difference([53.4, 53.2, 53.9], [46.6, 46.3, 46.2])
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2), found.clear
        (7.13, 6.39, 7.87, True)
    """
    mean = fmean(ours) - fmean(control)
    if len(ours) < 2 or len(control) < 2:
        return Difference(mean, None, None)
    parts = [variance(group) / len(group) for group in (ours, control)]
    if sum(parts) == 0:
        return Difference(mean, None, None)
    weights = [part / sum(parts) for part in parts]  # of squares this small nothing is left otherwise
    freedom = 1 / sum(w * w / (len(group) - 1) for w, group in zip(weights, (ours, control), strict=True))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(sum(parts))
    return Difference(mean, mean - reach, mean + reach)
