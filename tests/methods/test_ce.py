"""Cross entropy with hard and soft targets."""

import math

import pytest
import torch

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import CE, Setting
from potstill.methods.ce import ce
from potstill.networks.features import Features, FeatureSpec


def naive_ce(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> float:
    """The definition with lists and loops; targets as probabilities."""
    total, classes = 0.0, logits.shape[1]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z) for z in row))
        for z, y in zip(row, target, strict=True):
            total -= ((1 - smoothing) * y + smoothing / classes) * (z - log_sum)
    return total / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("b", "c"), [(2, 2), (1, 4), (6, 10)])
def test_agrees_with_a_naive_writing(b: int, c: int, smoothing: float):
    torch.manual_seed(b)
    logits = torch.randn(b, c, dtype=torch.float64)
    hard = torch.randint(c, (b,))
    soft = torch.rand(b, c, dtype=torch.float64).softmax(-1)
    one_hot = torch.nn.functional.one_hot(hard, c).double()
    assert ce(logits, hard, smoothing).item() == pytest.approx(naive_ce(logits, one_hot, smoothing), rel=1e-12)
    assert ce(logits, one_hot, smoothing).item() == pytest.approx(naive_ce(logits, one_hot, smoothing), rel=1e-12)
    assert ce(logits, soft, smoothing).item() == pytest.approx(naive_ce(logits, soft, smoothing), rel=1e-12)


def test_half_precision_logits_are_computed_in_full():
    logits, soft = torch.randn(4, 10).bfloat16(), torch.rand(4, 10).softmax(-1)
    assert ce(logits, soft).dtype == torch.float32
    assert torch.equal(ce(logits, soft), ce(logits.float(), soft))
    assert ce(logits.double(), soft).dtype == torch.float64


def batch_of(targets: torch.Tensor | None) -> Batch:
    return Batch(torch.zeros(2, 3, 1, 1), targets, torch.arange(2), torch.zeros(2, dtype=torch.int64))


def test_the_method_reads_the_batchs_targets():
    method = CE(Setting(FeatureSpec(3, 4)), label_smoothing=0.2)
    features = Features(torch.randn(2, 3), torch.zeros(2, 4))
    targets = torch.tensor([2, 0])
    assert torch.equal(method(features, None, batch_of(targets)), ce(features.logits, targets, 0.2))
    assert method.needs.labels
    assert not method.needs.teacher


def test_what_is_refused():
    with pytest.raises(NetworkError, match="this student has no classifier"):
        CE(Setting(FeatureSpec(0, 4)))
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match=r"label_smoothing is .*; expected a number from 0 to below 1"):
            CE(Setting(FeatureSpec(3, 4)), label_smoothing=wrong)
    with pytest.raises(RecipeError, match="ce learns from labels, and these images have none"):
        CE(Setting(FeatureSpec(3, 4)))(Features(torch.randn(2, 3), torch.zeros(2, 4)), None, batch_of(None))
