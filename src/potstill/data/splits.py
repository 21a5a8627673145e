"""A validation split where the data bring none: seeded, and with every class in it."""

import numpy as np

from potstill.errors import DataError

__all__ = ["stratified"]


def stratified(labels: np.ndarray | int, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and positions to validate on, both in ascending order, the same for the same seed.

    Of each class ``round(fraction * size)`` samples are kept for validation, but at least one, and never all. A class
    with one sample keeps it for training.

    Args:
        labels: ``(N,)`` class numbers; or, of data without labels, the number N of samples.
        fraction: the part to keep for validation, above 0 and below 1.
        seed: of the random choice.

    Returns:
        ``(train, val)``, two int64 arrays that together hold each position once.

    Raises:
        DataError: a fraction outside (0, 1).

    Example:
        >>> train, val = stratified(np.array([0, 0, 0, 0, 1, 1]), 0.25)
        >>> len(train), len(val)
        (4, 2)
    """
    if not 0 < fraction < 1:
        raise DataError(f"The fraction kept for validation must lie between 0 and 1, got {fraction}.")
    numbers = np.zeros(labels, dtype=np.int64) if isinstance(labels, int) else np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(numbers))
    # A stable sort of the shuffled samples by class: each class is one run, shuffled inside.
    order = order[np.argsort(numbers[order], kind="stable")]
    _, starts, sizes = np.unique(numbers[order], return_index=True, return_counts=True)
    wanted = np.rint(fraction * sizes).astype(np.int64)
    keep = np.where(sizes >= 2, np.clip(wanted, 1, np.maximum(sizes - 1, 1)), 0)
    # Rank of each sample inside its class's run, against how many of that class are kept.
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    for_val = rank < np.repeat(keep, sizes)
    return np.sort(order[~for_val]), np.sort(order[for_val])
