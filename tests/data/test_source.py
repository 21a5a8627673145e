"""Sources in memory, their subsets and their identities."""

import numpy as np
import pytest

from potstill.data.source import ArraySource, Statistics, check_labels, fingerprint, subset
from potstill.errors import DataError


def numbered(count=5, side=4):
    """Images whose every pixel is their number."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3)).copy()
    return ArraySource(images, np.arange(count) % 2, name="numbers", classes=("even", "odd"))


def test_array_source_gives_what_it_was_given():
    source = numbered()
    assert len(source) == 5
    assert source.image(3)[0, 0].tolist() == [3, 3, 3]
    assert source.labels.tolist() == [0, 1, 0, 1, 0]
    assert source.labels.dtype == np.int64
    assert source.describe(4) == "image 4 of numbers"
    assert source.arrays() is source.arrays()


def test_subset_renumbers_and_keeps_descriptions():
    part = subset(numbered(), [4, 1])
    assert len(part) == 2
    assert part.image(0)[0, 0, 0] == 4
    assert part.labels.tolist() == [0, 1]
    assert part.describe(1) == "image 1 of numbers"
    assert part.arrays()[:, 0, 0, 0].tolist() == [4, 1]
    assert part.classes == ("even", "odd")
    assert part.statistics == numbered().statistics


def test_subset_of_a_subset_counts_in_the_subset():
    part = subset(subset(numbered(), [4, 3, 1]), [2, 0])
    assert part.arrays()[:, 0, 0, 0].tolist() == [1, 4]
    assert part.describe(0) == "image 1 of numbers"


@pytest.mark.parametrize("indices", [[5], [-1], [[0]]])
def test_subset_refuses_positions_that_are_not_there(indices):
    with pytest.raises(DataError, match="between 0 and 4"):
        subset(numbered(), indices)


def test_identity_tells_pixels_labels_names_and_subsets_apart():
    source = numbered()
    pixels = source.arrays().copy()
    pixels[2, 0, 0, 0] += 1
    others = [
        ArraySource(pixels, source.labels, name="numbers", classes=source.classes),
        ArraySource(source.arrays(), 1 - source.labels, name="numbers", classes=source.classes),
        ArraySource(source.arrays(), source.labels, name="numbers", classes=("a", "b")),
        subset(source, [0, 1]),
        subset(source, [1, 0]),
    ]
    assert len({source.identity, *(other.identity for other in others)}) == 6
    assert numbered().identity == source.identity
    assert len(source.identity) == 16


def test_identity_does_not_depend_on_the_name():
    source = numbered()
    renamed = ArraySource(source.arrays(), source.labels, name="another", classes=source.classes)
    assert renamed.identity == source.identity


def test_fingerprint_separates_its_parts():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(np.zeros((2, 3), np.uint8)) != fingerprint(np.zeros((3, 2), np.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), r"got \(2, 4, 4\) of uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), r"got \(2, 4, 4, 1\)"),
        (np.zeros((2, 4, 4, 3), np.float32), "of float32"),
    ],
)
def test_array_source_refuses_other_shapes(images, message):
    with pytest.raises(DataError, match=message):
        ArraySource(images, None, name="wrong")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"3 images but labels of shape \(2,\)"),
        ([0.0, 1.0, 0.0], "whole numbers, got float64"),
        ([0, 2, 3], r"2 labels lie outside 0\.\.1, the first at image 1: 2"),
        ([0, 1, -1], r"1 labels lie outside 0\.\.1, the first at image 2: -1"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(DataError, match=message):
        check_labels(np.array(labels), images=3, classes=2, name="set")


def test_statistics_are_a_pair():
    mean, std = Statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (mean, std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
