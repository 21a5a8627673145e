"""The largest logits and the rest: the softmax at temperature 1 is kept where it must be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.store.topk import compress, expand


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 30), st.data())
def test_the_softmax_of_the_kept_and_the_mass_of_the_rest_are_those_of_all_logits(classes, data):
    k = data.draw(st.integers(1, classes - 1))
    scale = data.draw(st.sampled_from([0.01, 1.0, 30.0]))
    logits = scale * torch.randn(6, classes, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    kept = compress(logits, k)
    again = expand(kept, classes)
    exact, found = logits.double().softmax(1), again.double().softmax(1)
    torch.testing.assert_close(found.gather(1, kept.indices), exact.gather(1, kept.indices), rtol=1e-4, atol=1e-7)
    others = torch.ones_like(found).scatter(1, kept.indices, 0.0)
    torch.testing.assert_close((found * others).sum(1), (exact * others).sum(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(again.gather(1, kept.indices), logits.gather(1, kept.indices), rtol=0, atol=0)


def test_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.05, 0.25]]))
    kept = compress(logits, 2)
    assert kept.indices.tolist() == [[1, 3]]
    assert math.exp(kept.rest.item()) == pytest.approx(0.15)
    assert expand(kept, 4).exp()[0].tolist() == pytest.approx([0.075, 0.6, 0.075, 0.25])


def test_all_but_one_loses_nothing():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(expand(compress(logits, 8), 9), logits)


def test_logits_far_apart_stay_finite():
    logits = torch.tensor([[1e4, -1e4, -2e4, -3e4]])
    again = expand(compress(logits, 1), 4)
    assert again.isfinite().all()
    assert again[0, 0] == 1e4
    assert again[0, 1].item() == pytest.approx(-1e4 - math.log(3))


def test_equal_logits_are_all_the_same_again():
    again = expand(compress(torch.full((1, 10), 3.0), 4), 10)
    torch.testing.assert_close(again, torch.full((1, 10), 3.0))
