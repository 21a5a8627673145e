"""Random numbers that are a pure function of their coordinates: no state, no order, the same on every device."""

from enum import IntEnum

from torch import Tensor

__all__ = ["AUGMENTATION_VERSION", "Stream", "bits", "integers", "uniform"]

# Stands for the whole map from (seed, index, view) to an augmentation. Pinned by tests: whoever changes a number that
# this module or views.py draws raises it, and what was stored under the old one is no longer valid.
AUGMENTATION_VERSION = 1


class Stream(IntEnum):
    """Who draws which of a sample's random numbers; in one place, because two users of one number are correlated."""

    FLIP = 0
    TOP = 1
    LEFT = 2
    AREA = 16  # one for each try of a random resized crop
    RATIO = 32
    ORDER = 64  # four of them: of samples, of groups
    SHORT = 96  # of a scene: its shorter side, the factor of its size, where its window lies
    SCALE = 97
    WINDOW_TOP = 98
    WINDOW_LEFT = 99


_WORD = 1 << 64
_INCREMENT = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: consecutive inputs land far apart
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of the splitmix64 finaliser
_SHIFTS = (30, 27, 31)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _shift(x: Tensor, by: int) -> Tensor:
    """A logical right shift; torch's own copies the sign bit."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser: a bijection of 64-bit words in which each input bit moves every output bit."""
    for by, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        x = (x ^ _shift(x, by)) * _signed(multiplier)
    return x ^ _shift(x, _SHIFTS[2])


def _mix_word(word: int) -> int:
    """The same finaliser on one Python integer."""
    for by, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        word = (word ^ (word >> by)) * multiplier % _WORD
    return word ^ (word >> _SHIFTS[2])


def bits(seed: int, index: Tensor, view: Tensor, stream: int | Tensor) -> Tensor:
    """32 random bits for each (seed, index, view, stream), as int64 in [0, 2^32).

    Args:
        seed: any integer; equal modulo 2^64 means equal.
        index: int64, any shape that broadcasts with ``view``: the sample.
        view: int64: the number of the sample's augmentation.
        stream: which of a view's random numbers; an int64 tensor broadcasts like the others.

    Returns:
        int64 of the broadcast shape, on the device of ``index``. Integer arithmetic only, so that a GPU's numbers are
        a CPU's.
    """
    key = _mix_word((seed + _INCREMENT) % _WORD)
    # Each coordinate gets a round of its own, so that (index, view) and (view, index) are unrelated.
    x = _mix(index * _signed(_INCREMENT) + _signed(key))
    x = _mix((x ^ view) * _signed(_INCREMENT) + stream)
    return _shift(x, 32)


def uniform(seed: int, index: Tensor, view: Tensor, stream: int | Tensor) -> Tensor:
    """A float64 in [0, 1) with 32 random bits, for each (seed, index, view, stream); see :func:`bits`.

    Example:
        >>> import torch
        >>> index = torch.arange(3)
        >>> uniform(0, index, torch.zeros_like(index), stream=0)
        tensor([0.3506, 0.3146, 0.9761], dtype=torch.float64)
    """
    return bits(seed, index, view, stream).double() * 2.0**-32


def integers(seed: int, index: Tensor, view: Tensor, stream: int | Tensor, bound: int | Tensor) -> Tensor:
    """An int64 in [0, bound) for each (seed, index, view, stream); ``bound`` is at least 1 and below 2^31.

    Computed as ``bits * bound / 2^32``, rounded down: exact, where a product of floats may round up to ``bound``.
    """
    return (bits(seed, index, view, stream) * bound) >> 32
