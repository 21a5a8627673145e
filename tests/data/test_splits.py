"""The seeded stratified split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.splits import stratified
from potstill.errors import DataError


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_every_class_is_kept_as_promised(labels, fraction, seed):
    numbers = np.array(labels)
    train, val = stratified(numbers, fraction, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for one in set(labels):
        size = labels.count(one)
        kept = int((numbers[val] == one).sum())
        assert kept == (min(max(round(fraction * size), 1), size - 1) if size >= 2 else 0)


def test_the_same_seed_gives_the_same_split():
    labels = np.arange(200) % 7
    first, again, other = (stratified(labels, 0.2, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_known_split_stays_what_it_is():
    # Recipes name a seed; the images that it stands for must not change between versions.
    _, val = stratified(np.repeat([0, 1, 2], 4), 0.25, seed=0)
    assert val.tolist() == [2, 7, 9]


def test_without_labels_a_plain_choice():
    train, val = stratified(10, 0.3, seed=1)
    assert len(val) == 3
    assert sorted([*train, *val]) == list(range(10))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fractions_outside_the_range(fraction):
    with pytest.raises(DataError, match=f"must lie between 0 and 1, got {fraction}"):
        stratified(np.zeros(4, int), fraction)
