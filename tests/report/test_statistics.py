"""Intervals against published examples, against tests that they must agree with, and against simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from potstill.errors import DataError
from potstill.report.statistics import (
    mean_interval,
    paired_difference,
    two_sample_difference,
    unpaired_difference,
    wilson,
)


def pairs(both: int, ours: int, theirs: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two networks' answers with so many images that both have right, only the one, only the other, none."""
    counts = (both, ours, theirs, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_wilson_stays_within_its_limits():
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high == pytest.approx(16.11, abs=0.01)
    assert wilson(20, 20).high == 100


def test_no_image_has_no_accuracy():
    with pytest.raises(DataError, match="one image or more; got 0"):
        wilson(0, 0)


@pytest.mark.parametrize("counts", [(50, 10, 3, 37), (80, 12, 4, 4), (43, 9, 2, 10), (10, 30, 18, 42), (0, 5, 4, 1)])
def test_zero_is_outside_just_where_mcnemars_score_test_refuses_it(counts: tuple[int, int, int, int]):
    found = paired_difference(*pairs(*counts))
    _, b, c, _ = counts
    assert found.value == pytest.approx(100 * (b - c) / sum(counts))
    assert found.clear == (abs(b - c) / math.sqrt(b + c) > 1.959964)


@pytest.mark.parametrize("counts", [(50, 10, 3, 37), (43, 0, 1, 0), (5, 3, 3, 5)])
def test_the_ends_are_where_the_score_test_is_just_not_refused(counts: tuple[int, int, int, int]):
    """The most likely part q, found by numbers instead of by its formula."""
    both, b, c, neither = counts
    n = sum(counts)
    found = paired_difference(*pairs(*counts))
    for end in (found.low / 100, found.high / 100):
        low, high = max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12

        def unlikely(q: float, d: float = end) -> float:
            rest = 1 - 2 * q - d
            parts = [(b, q + d), (c, q), (both + neither, rest)]
            return -sum(count * math.log(max(part, 1e-300)) for count, part in parts if count)

        q = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = abs(b - c - n * end) / math.sqrt(n * (2 * q + end * (1 - end)))
        assert score == pytest.approx(1.959964, abs=1e-3)


def test_two_networks_that_answer_alike_still_have_an_interval():
    found = paired_difference(*pairs(90, 0, 0, 10))
    assert found.value == 0
    assert found.low == pytest.approx(-3.70, abs=0.01)  # 1.96² / (100 + 1.96²): never zero wide
    assert found.high == pytest.approx(3.70, abs=0.01)


def test_one_that_is_always_right_against_one_that_never_is():
    found = paired_difference(*pairs(0, 40, 0, 0))
    assert (found.value, found.high) == (100, pytest.approx(100))
    assert 70 < found.low < 95


def test_the_two_ways_round_mirror_each_other():
    ours, theirs = pairs(60, 14, 5, 21)
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    parts, covered = [0.6, 0.15, 0.10, 0.15], 0
    for counts in rng.multinomial(200, parts, size=400):
        found = paired_difference(*pairs(*counts))
        covered += found.low <= 5.0 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    ours, theirs = pairs(700, 60, 40, 200)
    paired = paired_difference(ours, theirs)
    unpaired = unpaired_difference(ours.sum(), 1000, theirs.sum(), 1000)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_different_images_do_not_pair():
    with pytest.raises(DataError, match="same images of both; got 3 and 2"):
        paired_difference(np.ones(3, bool), np.ones(2, bool))


def test_one_seed_has_no_interval():
    assert mean_interval([70.0]) is None
    assert two_sample_difference([70.0, 71.0], [70.0]) is None


def test_seeds_that_do_not_differ_have_no_width():
    found = two_sample_difference([70.0, 70.0], [69.0, 69.0])
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
