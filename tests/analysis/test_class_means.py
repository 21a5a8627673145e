"""The class means against the authors' code and a naive second writing, over batches and processes."""

import pytest
import torch
from torch import Tensor

from potstill.analysis.class_means import ClassMeans
from potstill.errors import DataError

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def collected(embedding: Tensor, targets: Tensor, classes: int, batch: int = 5, **options) -> ClassMeans:
    means = ClassMeans(classes, embedding.shape[1], **options)
    for first in range(0, len(embedding), batch):
        means.add(embedding[first : first + batch], targets[first : first + batch])
    return means


def data(images: int = 23, dim: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(images)
    return torch.randn(images, dim), torch.arange(images) % classes


@DTYPES
def test_golden(golden, dtype: torch.dtype):
    case = golden("nd_class_means", dtype)
    embedding, labels = case.inputs["teacher.embedding"], case.inputs["labels"]
    exact, official = collected(embedding, labels, 5), collected(embedding, labels, 5, decimals=4)
    case.check("out.class_means_exact", exact.means().to(dtype))
    case.check("out.class_means_official", official.means().to(dtype))
    case.check("out.class_counts", exact.counts.to(dtype))
    case.check("out.loss.total", official.means().sum().to(dtype))
    assert case.all_compared()
    # the case's own bounds, tighter than the rule: 1e-7 with the authors' rounding, 1.1e-4 from it without
    assert (official.means() - case.tensors["out.class_means_official"].double()).abs().max().item() < 1e-6
    assert 1e-6 < (exact.means() - official.means()).abs().max().item() < 1.1e-4


def test_agrees_with_a_naive_writing():
    embedding, labels = data()
    expected = []
    for k in range(3):
        rows = [row for row, y in zip(embedding.double().tolist(), labels.tolist(), strict=True) if y == k]
        expected.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
    found = collected(embedding, labels, 3)
    torch.testing.assert_close(found.means(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert found.counts.tolist() == [8, 8, 7]


def test_how_the_images_are_divided_makes_no_difference():
    embedding, labels = data()
    whole = collected(embedding, labels, 3).means()
    for batch in (1, 7, 23):
        torch.testing.assert_close(collected(embedding, labels, 3, batch).means(), whole, rtol=1e-13, atol=1e-14)
    one, other = collected(embedding[:9], labels[:9], 3), collected(embedding[9:], labels[9:], 3)
    one.merge(other)
    torch.testing.assert_close(one.means(), whole, rtol=1e-13, atol=1e-14)


def test_sums_over_processes():
    embedding, labels = data()
    ranks = [collected(embedding[r::2], labels[r::2], 3) for r in range(2)]
    parts = [(rank._sums.clone(), rank._counts.clone()) for rank in ranks]
    for rank in ranks:
        totals = iter((parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
        rank.sum_over(lambda tensor, totals=totals: next(totals))
    torch.testing.assert_close(ranks[0].means(), collected(embedding, labels, 3).means(), rtol=1e-13, atol=1e-14)
    assert torch.equal(ranks[0].means(), ranks[1].means())


def test_a_class_that_one_process_has_not_seen_is_no_mistake():
    embedding, labels = data()
    here, there = embedding[labels < 2], embedding[labels == 2]
    one, other = collected(here, labels[labels < 2], 3), collected(there, labels[labels == 2], 3)
    with pytest.raises(DataError, match="1 of 3 classes have no training image"):
        one.means()
    one.merge(other)
    assert one.means().shape == (3, 4)


def test_soft_targets_weigh():
    embedding, labels = data()
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    hard = collected(embedding, labels, 3)
    torch.testing.assert_close(collected(embedding, one_hot, 3).means(), hard.means(), rtol=1e-13, atol=1e-14)
    weights = torch.rand(23, 3)
    found = collected(embedding, weights, 3)
    w, t = weights.double(), embedding.double()
    expected = torch.stack([(w[:, k : k + 1] * t).sum(0) / w[:, k].sum() for k in range(3)])
    torch.testing.assert_close(found.means(), expected)
    torch.testing.assert_close(found.counts, w.sum(0))


def test_many_small_values_are_not_lost():
    """In float32 the sum of 40,000 times 1e-4 beside a value of 1000 is off in the fourth digit."""
    means = ClassMeans(1, 1)
    means.add(torch.tensor([[1000.0]]), torch.tensor([0]))
    for _ in range(4):
        means.add(torch.full((10_000, 1), 1e-4), torch.zeros(10_000, dtype=torch.int64))
    assert means.means().item() == pytest.approx(1004 / 40_001, rel=1e-9)


def test_half_precision_embeddings_with_a_graph_are_taken_as_they_are():
    embedding, labels = data()
    low = embedding.bfloat16().requires_grad_()
    found = collected(low, labels, 3).means()
    assert not found.requires_grad
    torch.testing.assert_close(found, collected(low.detach().double(), labels, 3).means())


def test_rounding_is_of_each_value_and_of_the_mean():
    means = ClassMeans(1, 1, decimals=1)
    means.add(torch.tensor([[0.14], [0.14], [0.24]]), torch.tensor([0, 0, 0]))
    assert means.means().item() == 0.1  # (0.1 + 0.1 + 0.2) / 3, rounded again; without the first rounding 0.2
    exact = ClassMeans(1, 1)
    exact.add(torch.tensor([[0.14], [0.14], [0.24]]), torch.tensor([0, 0, 0]))
    assert exact.means().round(decimals=1).item() == 0.2


def test_what_is_refused():
    with pytest.raises(DataError, match="got classes=0, dim=4"):
        ClassMeans(0, 4)
    means = ClassMeans(20, 4)
    with pytest.raises(DataError, match=r"take embeddings \(B, 4\) .* got \(2, 5\) with \(2,\)"):
        means.add(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"got \(2, 4\) with \(3,\)"):
        means.add(torch.zeros(2, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"got \(2, 4\) with \(2, 3\)"):
        means.add(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"of \(3, 4\) cannot join those of \(20, 4\)"):
        means.merge(ClassMeans(3, 4))
    means.add(torch.zeros(2, 4), torch.tensor([0, 3]))
    with pytest.raises(DataError, match=r"18 of 20 classes .*: 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.\. Take out"):
        means.means()
    means = ClassMeans(1, 4)
    means.add(torch.full((2, 4), float("inf")), torch.tensor([0, 0]))
    with pytest.raises(DataError, match="not all finite numbers"):
        means.means()
