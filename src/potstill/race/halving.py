"""Successive halving over epochs. Who goes on is scikit-learn's to say; what training is, it does not know."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - it makes the next import possible
from sklearn.model_selection import HalvingGridSearchCV

__all__ = ["FAILED", "Rung", "first_rung", "halve", "plan"]

FAILED = -1.0
"""The score of a candidate that cannot go on; any other score is at least 0."""

Train = Callable[[str, int], float]
"""Trains the candidate of a name on to an epoch, and gives its score there."""


@dataclass(frozen=True, slots=True)
class Rung:
    """Where candidates wait for each other and are compared.

    Attributes:
        epoch: of all of them.
        scores: of each that came so far, by name.
    """

    epoch: int
    scores: dict[str, float]


def first_rung(candidates: int, epochs: int, factor: int) -> int:
    """The epoch of the first rung from which, rung by rung, one candidate is left for the last stretch.

    Example:
        >>> first_rung(6, 18, 3), first_rung(9, 240, 3), first_rung(2, 10, 2)
        (2, 27, 5)
    """
    rungs = next(rungs for rungs in range(1, candidates + 1) if factor**rungs >= candidates)
    return math.ceil(epochs / factor**rungs)


def halve(candidates: Sequence[str], train: Train, *, epochs: int, first: int, factor: int) -> list[Rung]:
    """Train all candidates to the first rung, the best of them to the next, and so on; the best of all to the end.

    Of n candidates ``ceil(n / factor)`` go on, to a rung ``factor`` times as far. Where the last of these rungs lies
    before the end, its best candidate trains on alone. Where nobody comes to the end because all who went on failed,
    the best of those that were left behind does.

    Args:
        candidates: names, at least two.
        train: is asked for one candidate after the other, always for a later epoch than before. Scores of one rung
            should differ: of equal ones scikit-learn keeps any.
        epochs: of a whole run.
        first: epoch of the first rung, from 1 up to ``epochs``.
        factor: at least 2.

    Source: Karnin, Koren and Somekh, "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013; Jamieson and
    Talwalkar, arXiv 1502.07943.

    Example:
        >>> quality = {"a": 3.0, "b": 9.0, "c": 1.0, "d": 7.0}
        >>> for rung in halve("abcd", lambda name, epoch: quality[name], epochs=12, first=3, factor=2):
        ...     print(rung.epoch, rung.scores)
        3 {'a': 3.0, 'b': 9.0, 'c': 1.0, 'd': 7.0}
        6 {'d': 7.0, 'b': 9.0}
        12 {'b': 9.0}
    """

    def called(name: str, epoch: int) -> float:  # scikit-learn copies a method with all that it belongs to
        return train(name, epoch)

    search = HalvingGridSearchCV(
        _Trained(called), {"name": list(candidates)}, resource="epochs", min_resources=first, max_resources=epochs,
        factor=factor, cv=[([0], [1])], refit=False, return_train_score=False, error_score="raise",
    ).fit(np.zeros((2, 1)))  # fmt: skip
    found = search.cv_results_
    rungs: dict[int, Rung] = {}
    for epoch, asked, score in zip(found["n_resources"], found["params"], found["mean_test_score"], strict=True):
        rungs.setdefault(int(epoch), Rung(int(epoch), {})).scores[asked["name"]] = float(score)
    end = rungs.setdefault(epochs, Rung(epochs, {}))
    failed = {name for rung in rungs.values() for name, score in rung.scores.items() if score == FAILED}
    for rung in list(rungs.values())[::-1]:
        for name in sorted(rung.scores, key=rung.scores.__getitem__, reverse=True):
            if any(score != FAILED for score in end.scores.values()):
                break
            if name not in failed and name not in end.scores:
                end.scores[name] = train(name, epochs)
    return list(rungs.values())


def plan(candidates: int, *, epochs: int, first: int, factor: int) -> list[tuple[int, int]]:
    """The epoch of each rung and how many candidates train to it, where none fails; asked of the scheduler itself.

    Example:
        >>> plan(6, epochs=18, first=2, factor=3), plan(6, epochs=18, first=6, factor=3)
        ([(2, 6), (6, 2), (18, 1)], [(6, 6), (18, 2)])
    """
    names = [str(number) for number in range(candidates)]
    rungs = halve(names, lambda name, _: float(name), epochs=epochs, first=first, factor=factor)
    return [(rung.epoch, len(rung.scores)) for rung in rungs]


class _Trained(BaseEstimator):
    """What scikit-learn sees of a candidate: a copy for each fit."""

    def __init__(self, train: Train | None = None, name: str = "", epochs: int = 0) -> None:
        self.train, self.name, self.epochs = train, name, epochs

    def fit(self, X: Any) -> Self:  # noqa: N803 - scikit-learn's name
        """Train on; there are no samples for scikit-learn to choose from."""
        if self.train is not None:
            self.score_ = self.train(self.name, self.epochs)
        return self

    def score(self, X: Any) -> float:  # noqa: N803
        """The score at that epoch."""
        return self.score_
