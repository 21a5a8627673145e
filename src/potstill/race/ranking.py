"""The order in which candidates end, and which of them are on the front of accuracy against what they cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potstill.analysis.cost import Cost

__all__ = ["CloseCall", "Standing", "close_calls", "ranked"]

COSTS = {"latency": "latency_ms", "size": "bytes"}
"""What accuracy is weighed against, and the cost's field that says it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a candidate is.

    Attributes:
        name: its own.
        folder: its run's.
        model: of its network.
        methods: of its objective.
        cost: of its network; equal for equal networks.
        accuracies: the headline's value in percent at each rung that it reached, by epoch.
        finished: whether it was trained to the end.
        failed: why it could not go on; None where it could.
        front: costs, of ``latency`` and ``size``, for which no other candidate is better; see :func:`ranked`.
    """

    name: str
    folder: str
    model: str
    methods: tuple[str, ...]
    cost: Cost
    accuracies: dict[int, float]
    finished: bool = False
    failed: str | None = None
    front: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        """The furthest rung that it reached."""
        return max(self.accuracies, default=0)

    @property
    def accuracy(self) -> float | None:
        """Its accuracy there."""
        return self.accuracies.get(self.epoch)


def ranked(standings: Sequence[Standing]) -> list[Standing]:
    """The best first: by the rung reached, then by accuracy there; of equal ones the cheaper, then the earlier.

    Those that failed come last. Candidates are compared at one epoch only, because the learning rate at a rung is not
    that of the end: a candidate is on a front where no other one is at least as accurate, at the last rung that both
    have reached, for at most its cost, and better in one of the two.

    Example:
        >>> cheap, dear = Cost(10, 100, 1.0, 40), Cost(20, 200, 2.0, 80)
        >>> a = Standing("a", "", "s", (), cheap, {2: 50.0})
        >>> b = Standing("b", "", "l", (), dear, {2: 60.0, 6: 70.0}, finished=True)
        >>> c = Standing("c", "", "l", (), dear, {2: 55.0})
        >>> [(one.name, one.front) for one in ranked([a, b, c])]
        [('b', ('latency', 'size')), ('c', ()), ('a', ('latency', 'size'))]
    """
    order = sorted(
        standings, key=lambda one: (one.failed is not None, -one.epoch, -(one.accuracy or 0.0), one.cost.macs)
    )
    return [
        replace(one, front=tuple(name for name, field in COSTS.items() if _on_front(one, order, field)))
        for one in order
    ]


@dataclass(frozen=True, slots=True)
class CloseCall:
    """Two candidates of which one went on, or won, by less than the validation images can tell.

    Attributes:
        epoch: where they were compared.
        kept: the one that went on.
        left: the one that did not.
        points: by how many points of accuracy.
        error: the standard error of that difference, in points, were the two judged by images of their own.
    """

    epoch: int
    kept: str
    left: str
    points: float
    error: float


def close_calls(standings: Sequence[Standing], rungs: Sequence[int], images: int) -> list[CloseCall]:
    """The decisions that chance may have made: at each rung the last that went on against the first that did not.

    Args:
        standings: of a race that is over.
        rungs: the epochs.
        images: how many the accuracies are of.

    Example:
        >>> cost = Cost(10, 100, 1.0, 40)
        >>> a = Standing("a", "", "s", (), cost, {2: 60.0, 6: 70.0}, finished=True)
        >>> b = Standing("b", "", "s", (), cost, {2: 59.5})
        >>> (call,) = close_calls([a, b], [2, 6], images=400)
        >>> call.kept, call.left, call.points, round(call.error, 1)
        ('a', 'b', 0.5, 3.5)
    """
    found = []
    for epoch, after in zip(rungs, [*rungs[1:], None], strict=True):
        came = sorted((one for one in standings if epoch in one.accuracies), key=lambda one: -one.accuracies[epoch])
        if after is None:
            kept, left = came[:1], came[1:]  # the winner, and who else came to the end
        else:
            kept = [one for one in came if after in one.accuracies]
            left = [one for one in came if after not in one.accuracies and one.failed is None]
        if kept and left:
            last, first = kept[-1], left[0]
            one, other = last.accuracies[epoch], first.accuracies[epoch]
            error = math.sqrt((one * (100 - one) + other * (100 - other)) / images)
            if one - other < error:
                found.append(CloseCall(epoch, last.name, first.name, one - other, error))
    return found


def _on_front(one: Standing, others: Sequence[Standing], field: str) -> bool:
    if one.failed is not None or not one.accuracies:
        return False
    return not any(_beats(other, one, field) for other in others if other.failed is None)


def _beats(other: Standing, one: Standing, field: str) -> bool:
    both = other.accuracies.keys() & one.accuracies.keys()
    if not both or other is one:
        return False
    epoch = max(both)
    theirs, ours = other.accuracies[epoch], one.accuracies[epoch]
    dear, cheap = getattr(one.cost, field), getattr(other.cost, field)
    return theirs >= ours and cheap <= dear and (theirs > ours or cheap < dear)
