"""Scikit-learn's handwritten digits: real images that need no download."""

import numpy as np
from PIL import Image

from potstill.data.source import ArraySource, Split, Statistics, subset
from potstill.data.splits import stratified
from potstill.errors import DataError

__all__ = ["digits"]


def digits(size: int = 16, val_fraction: float = 0.2, seed: int = 0) -> Split:
    """1,797 handwritten digits in ten classes, split by a seeded stratified choice.

    The originals are 8 x 8 with grey values 0..16; they are scaled to 0..255, enlarged bilinearly and repeated over
    three channels. Mean and standard deviation are measured on the training part.

    Args:
        size: height and width of the images. 16 leaves the networks for CIFAR a 4 x 4 map before the pooling.
        val_fraction: the part kept for validation; 0 keeps none.
        seed: of the split.

    Raises:
        DataError: a size below 8, or a fraction outside [0, 1).

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Example:
        >>> split = digits()
        >>> len(split.train), len(split.val), split.train.fixed_size
        (1438, 359, (16, 16))
    """
    from sklearn.datasets import load_digits  # here, because the import alone takes a second

    if size < 8:
        raise DataError(f"The digits are 8 x 8 pixels; data.size must be at least 8, got {size}.")
    raw = load_digits()
    grey = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    if size != 8:
        grey = np.stack(
            [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in grey]
        )
    images = np.repeat(grey[..., None], 3, axis=3)
    labels = raw.target.astype(np.int64)
    classes = tuple(str(number) for number in raw.target_names)
    if val_fraction == 0:
        whole = ArraySource(images, labels, name="digits", classes=classes, statistics=measure(grey), mirrors=False)
        return Split(whole, None, "Training on all of the digits; no validation set was asked for (val_fraction=0).")
    train, val = stratified(labels, val_fraction, seed)
    whole = ArraySource(images, labels, name="digits", classes=classes, statistics=measure(grey[train]), mirrors=False)
    note = (
        f"The digits have no standard split: {len(train)} train, {len(val)} validation images, "
        f"chosen by class with seed {seed}."
    )
    return Split(subset(whole, train), subset(whole, val), note)


def measure(grey: np.ndarray) -> Statistics:
    """Mean and standard deviation of grey images, for three equal channels."""
    scaled = grey.astype(np.float64) / 255
    mean, std = round(float(scaled.mean()), 4), round(float(scaled.std()), 4)
    return Statistics((mean, mean, mean), (std, std, std))
