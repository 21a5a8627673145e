"""The streaming measures and CKA against naive second writings."""

import time

import pytest
import torch
from torch import Tensor

from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import between_class_cosine, direction_alignment
from potstill.analysis.similarity import linear_cka
from potstill.errors import DataError


def naive_cka(s: Tensor, t: Tensor) -> float:
    """By the N x N kernels, centred with H = 1 - 1/N."""
    n = len(s)
    h = torch.eye(n, dtype=s.dtype) - 1 / n
    k, l = h @ s @ s.T @ h, h @ t @ t.T @ h  # noqa: E741 - the paper's letters

    def hsic(a: Tensor, b: Tensor) -> float:
        return (a * b).sum().item()

    return hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5


def brute_between(s: Tensor, y: Tensor) -> float:
    n = torch.nn.functional.normalize(s, dim=1)
    mask = (y[:, None] != y[None, :]).to(s)
    return ((n @ n.T * mask).sum(1) / mask.sum(1)).mean().item()


@pytest.mark.parametrize(("d", "m"), [(3, 7), (7, 3), (5, 5)])
def test_cka_agrees_with_its_kernels(d: int, m: int):
    s, t = torch.randn(40, d, dtype=torch.float64), torch.randn(40, m, dtype=torch.float64) + 3
    assert linear_cka(s, t).item() == pytest.approx(naive_cka(s, t), rel=1e-10)


def test_cka_of_what_does_not_vary_is_zero():
    assert linear_cka(torch.ones(5, 2), torch.randn(5, 3)).item() == 0


@pytest.mark.parametrize(("d", "m"), [(4, 9), (9, 4), (6, 6)])
def test_batches_add_up_to_the_whole(d: int, m: int):
    torch.manual_seed(d)
    s, t, y = torch.randn(57, d), torch.randn(57, m).relu(), torch.randint(4, (57,))
    measures = FeatureMeasures(5, d, m)  # a class without an image counts for nothing
    for part in torch.arange(57).split(10):
        measures.add(s[part], y[part], t[part])
    found = measures.values()
    assert found["norm"] == pytest.approx(s.norm(dim=1).mean().item(), rel=1e-6)
    assert found["norm_teacher"] == pytest.approx(t.norm(dim=1).mean().item(), rel=1e-6)
    assert found["m_bc"] == pytest.approx(brute_between(s.double(), y), rel=1e-6)
    assert found["m_bc"] == pytest.approx(between_class_cosine(s, y).item(), rel=1e-4)
    assert found["cka"] == pytest.approx(naive_cka(s.double(), t.double()), rel=1e-6)
    assert ("m_da" in found) == (d == m)
    if d == m:
        assert found["m_da"] == pytest.approx(direction_alignment(s, t).item(), rel=1e-5)


def test_processes_add_up_to_one():
    s, y = torch.randn(20, 3), torch.arange(20) % 3
    whole, one, other = (FeatureMeasures(3, 3) for _ in range(3))
    whole.add(s, y)
    one.add(s[:8], y[:8])
    other.add(s[8:], y[8:])
    theirs = iter([other._directions, other._counts, other._scalars, other._means, other._products])
    one.sum_over(lambda mine: mine + next(theirs))
    assert one.values() == pytest.approx(whole.values())


def test_between_class_cosine_of_fifty_thousand_images_in_a_second():
    torch.manual_seed(0)
    s, y = torch.randn(50_000, 256).relu(), torch.randint(100, (50_000,))
    measures = FeatureMeasures(100, 256)
    measures.add(s[:500], y[:500])  # the first call pays for starting threads
    start = time.perf_counter()
    measures = FeatureMeasures(100, 256)
    for part in torch.arange(50_000).split(1000):
        measures.add(s[part], y[part])
    found = measures.values()["m_bc"]
    assert time.perf_counter() - start < 1.0
    subset = FeatureMeasures(100, 256)
    subset.add(s[:2000], y[:2000])
    assert subset.values()["m_bc"] == pytest.approx(brute_between(s[:2000].double(), y[:2000]), abs=1e-6)
    assert found == pytest.approx(between_class_cosine(s, y).item(), rel=1e-4)


def test_between_images_of_one_class_there_is_nothing_to_measure():
    measures = FeatureMeasures(3, 2)
    measures.add(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    assert measures.values() == {"norm": 3.0}


def test_what_is_refused():
    measures = FeatureMeasures(3, 2)
    measures.add(torch.ones(2, 2), torch.tensor([1, 1]))
    with pytest.raises(DataError, match="in every batch or in none"):
        measures.add(torch.ones(2, 2), torch.tensor([1, 1]), torch.ones(2, 2))
    with pytest.raises(DataError, match=r"got \(2, 3\) and \(4, 3\)"):
        linear_cka(torch.ones(2, 3), torch.ones(4, 3))
