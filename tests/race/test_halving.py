"""Who goes on, and how many epochs that takes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.race.halving import FAILED, first_rung, halve, plan


class Field:
    """Candidates whose scores are known, and a list of what was asked of them."""

    def __init__(self, scores: dict[str, dict[int, float] | float]) -> None:
        self.scores = scores
        self.asked: list[tuple[str, int]] = []

    def train(self, name: str, epoch: int) -> float:
        self.asked.append((name, epoch))
        score = self.scores[name]
        return score[epoch] if isinstance(score, dict) else score

    def epochs(self) -> int:
        """As training goes on from where it was, a candidate costs the furthest epoch that it was asked for."""
        return sum(max(epoch for one, epoch in self.asked if one == name) for name in {name for name, _ in self.asked})


def test_the_best_of_each_rung_go_on_and_the_best_of_all_to_the_end() -> None:
    field = Field({"a": 10.0, "b": 60.0, "c": 50.0, "d": 20.0, "e": 40.0, "f": 30.0})
    rungs = halve(list("abcdef"), field.train, epochs=18, first=2, factor=3)
    assert [(rung.epoch, sorted(rung.scores)) for rung in rungs] == [(2, list("abcdef")), (6, ["b", "c"]), (18, ["b"])]
    assert field.epochs() == 4 * 2 + 6 + 18  # 32 of 108
    assert len(field.asked) == 9


def test_what_counts_is_the_score_at_the_rung() -> None:
    """A candidate that is ahead at first and falls back is overtaken, and its old score does not save it."""
    field = Field({"early": {3: 90.0, 6: 50.0}, "late": {3: 80.0, 6: 85.0, 12: 95.0}, "c": 10.0, "d": 20.0})
    rungs = halve(["early", "late", "c", "d"], field.train, epochs=12, first=3, factor=2)
    assert [rung.scores for rung in rungs][1:] == [{"late": 85.0, "early": 50.0}, {"late": 95.0}]
    assert ("early", 12) not in field.asked


def test_nobody_is_asked_for_an_epoch_that_lies_behind() -> None:
    field = Field({name: float(ord(name)) for name in "abcdefghi"})
    halve(list("abcdefghi"), field.train, epochs=30, first=2, factor=3)
    for name in "abcdefghi":
        epochs = [epoch for one, epoch in field.asked if one == name]
        assert epochs == sorted(set(epochs))


def test_a_last_rung_at_the_end_finishes_all_who_reach_it() -> None:
    field = Field({name: float(ord(name)) for name in "abcdef"})
    rungs = halve(list("abcdef"), field.train, epochs=18, first=6, factor=3)
    assert [(rung.epoch, sorted(rung.scores)) for rung in rungs] == [(6, list("abcdef")), (18, ["e", "f"])]


def test_one_that_fails_is_the_last_of_its_rung() -> None:
    field = Field({"a": FAILED, "b": 0.0, "c": 5.0, "d": 3.0})
    rungs = halve(list("abcd"), field.train, epochs=8, first=2, factor=2)
    assert sorted(rungs[1].scores) == ["c", "d"]
    assert rungs[2].scores == {"c": 5.0}


@pytest.mark.parametrize("epochs", [8, 9])  # a last rung at the end, and a last stretch after the last rung
def test_where_the_best_fails_at_last_the_next_best_runs_to_the_end(epochs: int) -> None:
    field = Field({"a": 1.0, "b": {2: 9.0, 4: 9.0, epochs: FAILED, 8: FAILED}, "c": 5.0, "d": 3.0})
    rungs = halve(list("abcd"), field.train, epochs=epochs, first=2, factor=2)
    assert (rungs[-1].epoch, rungs[-1].scores["c"]) == (epochs, 5.0)
    assert ("d", epochs) not in field.asked
    assert len([one for one in field.asked if one[0] == "b"]) == 3


def test_where_all_who_went_on_fail_the_best_left_behind_runs_to_the_end() -> None:
    field = Field({"a": {2: 8.0, 4: FAILED, 8: FAILED}, "b": {2: 9.0, 4: FAILED, 8: FAILED}, "c": 5.0, "d": 6.0})
    assert halve(list("abcd"), field.train, epochs=8, first=2, factor=2)[-1].scores["d"] == 6.0


def test_where_all_fail_nobody_runs_to_the_end() -> None:
    rungs = halve(list("abcd"), Field(dict.fromkeys("abcd", FAILED)).train, epochs=9, first=2, factor=2)
    assert (rungs[-1].epoch, rungs[-1].scores) == (9, {})


def test_what_training_raises_comes_through() -> None:
    def train(name: str, epoch: int) -> float:
        raise KeyError(name)

    with pytest.raises(KeyError, match="a"):
        halve(list("abcd"), train, epochs=8, first=2, factor=2)


@settings(deadline=None, max_examples=25)
@given(
    candidates=st.integers(2, 20), factor=st.integers(2, 5), epochs=st.integers(2, 300), data=st.data(),
)  # fmt: skip
def test_rungs_are_those_of_successive_halving(candidates: int, factor: int, epochs: int, data: st.DataObject) -> None:
    """Against a count of our own: the best ceil(n / factor) of each rung are at the next, ``factor`` times as far."""
    first = data.draw(st.integers(1, epochs - 1))
    order = data.draw(st.permutations(range(candidates)))
    field = Field({str(name): float(score) for name, score in enumerate(order)})
    rungs = halve([str(name) for name in range(candidates)], field.train, epochs=epochs, first=first, factor=factor)
    best = sorted(field.scores, key=lambda name: -float(field.scores[name]))  # type: ignore[arg-type]
    left, epoch = candidates, first
    for rung in rungs[:-1]:
        assert (rung.epoch, set(rung.scores)) == (epoch, set(best[:left]))
        left, epoch = math.ceil(left / factor), epoch * factor
    assert rungs[-1].epoch == epochs
    assert set(rungs[-1].scores) in ({best[0]}, set(best[:left]))
    assert best[0] in rungs[-1].scores  # a candidate that is always the best wins
    assert field.epochs() <= candidates * epochs
    assert [len(rung.scores) for rung in rungs] == [
        count for _, count in plan(candidates, epochs=epochs, first=first, factor=factor)
    ]


@pytest.mark.parametrize(
    ("candidates", "epochs", "factor", "expected"),
    [
        (6, 18, 3, [(2, 6), (6, 2), (18, 1)]),
        (9, 27, 3, [(3, 9), (9, 3), (27, 1)]),
        (8, 16, 2, [(2, 8), (4, 4), (8, 2), (16, 1)]),
        (2, 10, 3, [(4, 2), (10, 1)]),
        (6, 2, 3, [(1, 6), (2, 1)]),  # too short for a rung in between
        (6, 20, 3, [(3, 6), (9, 2), (20, 1)]),
    ],
)
def test_by_default_one_is_left_for_the_last_stretch(
    candidates: int, epochs: int, factor: int, expected: list[tuple[int, int]]
) -> None:
    first = first_rung(candidates, epochs, factor)
    assert plan(candidates, epochs=epochs, first=first, factor=factor) == expected
