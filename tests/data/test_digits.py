"""The embedded digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from potstill.data.digits import digits
from potstill.errors import DataError


def test_the_split_is_stratified_and_complete():
    split = digits()
    assert (len(split.train), len(split.val)) == (1438, 359)
    whole = np.bincount(load_digits().target, minlength=10)
    assert np.bincount(split.val.labels).tolist() == np.rint(whole * 0.2).tolist()
    assert (np.bincount(split.train.labels) + np.bincount(split.val.labels)).tolist() == whole.tolist()
    assert split.train.classes == tuple("0123456789")
    assert split.note == (
        "The digits have no standard split: 1438 train, 359 validation images, chosen by class with seed 0."
    )


def test_train_and_val_share_no_image():
    split = digits(size=8)
    assert not set(split.train.indices) & set(split.val.indices)
    assert sorted([*split.train.indices, *split.val.indices]) == list(range(1797))


def test_original_pixels_are_scaled_to_a_full_range():
    split = digits(size=8)
    position = int(split.train.indices[0])
    expected = np.rint(load_digits().images[position] * 255 / 16)
    image = split.train.image(0)
    assert image.shape == (8, 8, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], expected)
    assert split.train.arrays().max() == 255


def test_size_enlarges():
    split = digits(size=16)
    assert split.train.arrays().shape == (1438, 16, 16, 3)
    assert split.train.fixed_size == (16, 16)


def test_statistics_are_those_of_the_training_part():
    split = digits()
    pixels = split.train.arrays()[..., 0] / 255
    assert split.train.statistics.mean == pytest.approx([pixels.mean()] * 3, abs=1e-4)
    assert split.val.statistics.std == pytest.approx([pixels.std()] * 3, abs=1e-4)


def test_the_seed_decides():
    assert digits().train.identity == digits().train.identity
    assert digits(seed=1).train.identity != digits(seed=0).train.identity


def test_no_validation_when_none_is_asked_for():
    split = digits(val_fraction=0)
    assert (len(split.train), split.val) == (1797, None)
    assert "val_fraction=0" in split.note


def test_too_small_a_size():
    with pytest.raises(DataError, match=r"8 x 8 pixels; data\.size must be at least 8, got 4"):
        digits(size=4)
