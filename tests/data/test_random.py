"""The counter-based random numbers: pinned values, uniformity, independence."""

import torch

from potstill.data.random import AUGMENTATION_VERSION, bits, integers, uniform

CELLS = 64


def chi_square(counts: torch.Tensor) -> float:
    """In standard deviations from its mean: a chi-square of k cells has mean k - 1 and variance 2 (k - 1)."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def splitmix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


def naive_bits(seed: int, index: int, view: int, stream: int) -> int:
    golden = 0x9E3779B97F4A7C15
    word = splitmix((index * golden + splitmix((seed + golden) % 2**64)) % 2**64)
    return splitmix(((word ^ view) * golden + stream) % 2**64) >> 32


def test_pinned_values_of_version_1():
    index = torch.tensor([0, 1, 2, 49_999, 2**40])
    view = torch.tensor([0, 0, 1, 239, 3])
    assert AUGMENTATION_VERSION == 1
    assert bits(0, index, view, 0).tolist() == [1505838741, 1351006692, 2339908640, 2733224179, 826758377]
    assert bits(-5, index, view, 17).tolist() == [4020486525, 270225729, 2693348961, 4079219986, 948391156]


def test_bits_are_those_of_plain_unsigned_arithmetic():
    index, view = torch.arange(200) * 7919, torch.arange(200) % 11
    for seed, stream in ((0, 0), (123, 1), (-1, 2), (2**64 - 3, 33)):
        expected = [naive_bits(seed, i, v, stream) for i, v in zip(index.tolist(), view.tolist(), strict=True)]
        assert bits(seed, index, view, stream).tolist() == expected


def test_seeds_equal_modulo_two_to_the_64_are_one():
    index = torch.arange(5)
    assert torch.equal(bits(-1, index, index, 0), bits(2**64 - 1, index, index, 0))


def test_a_tensor_of_streams_broadcasts():
    index = torch.arange(6)
    view = torch.full_like(index, 2)
    together = bits(1, index[:, None], view[:, None], torch.tensor([3, 9]))
    assert torch.equal(together, torch.stack((bits(1, index, view, 3), bits(1, index, view, 9)), dim=1))


def test_uniform_over_indices_views_and_streams():
    count = torch.arange(100_000)
    one = torch.ones_like(count)
    for values in (uniform(0, count, one, 0), uniform(0, one, count, 0), uniform(0, one, one, count)):
        assert values.min() >= 0
        assert values.max() < 1
        assert abs(chi_square(torch.histc(values.float(), CELLS, 0, 1))) < 4


def test_neighbours_are_independent():
    index = torch.arange(100_000)
    view = torch.full_like(index, 5)
    base = bits(0, index, view, 0)
    others = {
        "stream": bits(0, index, view, 1),
        "view": bits(0, index, view + 1, 0),
        "index": bits(0, index + 1, view, 0),
        "seed": bits(1, index, view, 0),
        "swapped": bits(0, view, index, 0),
    }
    for name, other in others.items():
        # All pairs of the upper three bits, and of the lower three, are equally frequent.
        for shift in (29, 0):
            pairs = ((base >> shift) & 7) * 8 + ((other >> shift) & 7)
            assert abs(chi_square(torch.bincount(pairs, minlength=64).float())) < 4, name


def test_integers_are_the_scaled_bits_rounded_down():
    index = torch.arange(20_000)
    view = torch.zeros_like(index)
    drawn = integers(3, index, view, 1, 9)
    assert drawn.tolist() == [b * 9 // 2**32 for b in bits(3, index, view, 1).tolist()]
    assert sorted(set(drawn.tolist())) == list(range(9))
    assert abs(chi_square(torch.bincount(drawn).float())) < 4


def test_integers_take_a_bound_for_each_sample():
    index = torch.arange(1000)
    bound = index % 7 + 1
    drawn = integers(0, index, index, 0, bound)
    assert (drawn >= 0).all()
    assert (drawn < bound).all()
    assert (drawn[bound == 1] == 0).all()
