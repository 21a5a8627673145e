"""Which images are on the map, and where they lie, against counts and distances made by hand."""

import pytest
import torch

from potstill.analysis.embedding_map import balanced_rows, principal


def test_few_rows_are_all_taken():
    assert balanced_rows(torch.tensor([3, 3, 1]), 3).tolist() == [0, 1, 2]
    assert balanced_rows(torch.tensor([3, 3, 1]), 9).tolist() == [0, 1, 2]
    assert balanced_rows(torch.zeros(0, dtype=torch.int64), 9).tolist() == []


def test_classes_have_as_many_rows_as_there_are_up_to_an_even_share():
    torch.manual_seed(0)
    labels = torch.tensor([5] * 4 + [7] * 300 + [9] * 500)[torch.randperm(804)]
    rows = balanced_rows(labels, 100)
    assert torch.equal(rows, rows.unique())
    assert labels[rows].bincount()[[5, 7, 9]].tolist() == [4, 48, 48]
    assert torch.equal(rows, balanced_rows(labels, 100))
    assert not torch.equal(rows, balanced_rows(labels, 100, seed=1))


def test_of_more_classes_than_rows_each_has_one_at_most():
    labels = torch.arange(5000) % 2000
    assert labels[balanced_rows(labels, 1000)].bincount().max() == 1


def test_with_all_columns_distances_are_kept():
    torch.manual_seed(0)
    points = torch.randn(30, 5) + 4
    places = principal(points, 32)
    assert places.shape == (30, 5)
    assert torch.allclose(
        torch.cdist(places.double(), places.double()), torch.cdist(points, points).double(), atol=0.02
    )
    assert places.double().mean(0).abs().max() < 1e-3
    spread = places.float().std(0)
    assert (spread.diff() <= 0).all()  # the widest first


def test_a_picture_has_one_orientation():
    torch.manual_seed(0)
    points = torch.randn(40, 6)
    assert torch.allclose(principal(points, 3), principal(points + 100, 3), atol=2e-3)  # as a whole they lie anywhere
    line = torch.tensor([[1.0, 0], [2, 0], [3, 0]])
    assert principal(line, 1).tolist() == [[-1], [0], [1]]
    assert principal(-line, 1).tolist() == [[1], [0], [-1]]


@pytest.mark.parametrize(
    ("shape", "columns", "expected"),
    [((1, 8), 4, (1, 1)), ((3, 8), 4, (3, 3)), ((0, 8), 4, (0, 0)), ((9, 2), 4, (9, 2))],
)
def test_there_are_no_more_columns_than_directions(shape, columns, expected):
    assert principal(torch.randn(shape), columns).shape == expected


def test_what_float16_cannot_hold_is_made_smaller():
    places = principal(torch.tensor([[0.0, 0], [3e6, 0], [0, 3e6]]), 2)
    assert places.isfinite().all()
    assert places.abs().max() == pytest.approx(6e4, rel=1e-3)
    sides = torch.pdist(places.double())
    assert (sides / sides[0]).tolist() == pytest.approx([1, 1, 2**0.5], rel=1e-2)
