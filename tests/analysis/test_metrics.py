"""The paper's measures against naive second writings, and at their edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.analysis.metrics import (
    between_class_cosine,
    direction_alignment,
    mean_projector_distance,
    projector_distance,
)
from potstill.errors import DataError, NetworkError
from potstill.projectors import ProjectorEnsemble


def naive_cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def naive_between(rows: list[list[float]], labels: list[int]) -> list[float]:
    """Equation 3's inner mean of each sample, over all pairs."""
    found = []
    for s, y in zip(rows, labels, strict=True):
        others = [naive_cosine(s, other) for other, z in zip(rows, labels, strict=True) if z != y]
        found.append(sum(others) / len(others))
    return found


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), d=st.integers(1, 7), classes=st.integers(2, 4), seed=st.integers(0, 999))
def test_between_class_cosine_agrees_with_all_pairs(n, d, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator) * 7 - 3  # any integers will do
    labels[0], labels[1] = 100, 50
    expected = naive_between(embedding.tolist(), labels.tolist())
    each = between_class_cosine(embedding, labels, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64))
    assert between_class_cosine(embedding, labels).item() == pytest.approx(sum(expected) / n, rel=1e-9, abs=1e-12)


def test_between_class_cosine_is_no_mean_over_pairs():
    embedding = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1, 2])
    each = [1 / 2, 1 / 2, 1 / 2, 3 / 4, 0]
    assert between_class_cosine(embedding, labels, reduction="none").tolist() == each
    assert between_class_cosine(embedding, labels).item() == pytest.approx(sum(each) / 5)  # 0.45; over pairs: 3/7


def test_between_class_cosine_makes_no_matrix_of_all_pairs():
    n = 200_000  # its 40 billion pairs would take 160 GB
    labels = torch.arange(n) % 100
    embedding = torch.nn.functional.one_hot(labels % 2, 2).float()
    # every sample of an even class is orthogonal to the odd ones, and like the 49 other even classes
    assert between_class_cosine(embedding, labels).item() == pytest.approx(49 / 99, rel=1e-4)


def test_a_set_of_one_class_has_no_between():
    with pytest.raises(DataError, match="needs samples of two classes or more; got 1"):
        between_class_cosine(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="got 0"):
        between_class_cosine(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 1), (9, 16)])
def test_direction_alignment_agrees_with_a_naive_writing(n: int, d: int):
    torch.manual_seed(n)
    s, t = torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)
    expected = [1 - naive_cosine(a, b) for a, b in zip(s.tolist(), t.tolist(), strict=True)]
    each = direction_alignment(s, t, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64))
    assert direction_alignment(s, t).item() == pytest.approx(sum(expected) / n)


def test_half_precision_and_zero_vectors_are_measured():
    s, t = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    assert torch.equal(direction_alignment(s, t), direction_alignment(s.float(), t.float()))
    s[0] = 0
    assert direction_alignment(s, t, reduction="none")[0].item() == 1
    labels = torch.tensor([0, 1, 1, 2])
    assert between_class_cosine(s, labels, reduction="none")[0].item() == 0
    assert torch.equal(between_class_cosine(s, labels), between_class_cosine(s.float(), labels))


def test_alignment_is_refused_where_the_dimensions_differ():
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\) and the teacher's \(2, 4\); it has no meaning"):
        direction_alignment(torch.randn(2, 3), torch.randn(2, 4))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_projector_distance_agrees_with_a_naive_writing(depth: int, bias: bool):
    ensemble = ProjectorEnsemble(5, 4, projectors=4, depth=depth).double()
    projectors = [ensemble.projector(k) for k in range(4)]
    flat = [
        [x for weight, offset in layers for part in ([weight, offset] if bias else [weight]) for x in part.flatten()]
        for layers in projectors
    ]
    expected = [[math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for b in flat] for a in flat]
    distance = projector_distance(projectors, bias=bias)
    torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64))
    squared = projector_distance(projectors, bias=bias, squared=True)
    torch.testing.assert_close(squared, distance**2)
    pairs = [expected[k][i] for k in range(4) for i in range(k)]
    assert mean_projector_distance(projectors, bias=bias).item() == pytest.approx(sum(pairs) / 6)
    mean_squared = mean_projector_distance(projectors, bias=bias, squared=True).item()
    assert mean_squared == pytest.approx(sum(x * x for x in pairs) / 6)


def test_near_projectors_keep_their_distance():
    """A distance by way of a matrix product would lose it in float32."""
    weight = torch.full((64, 64), 100.0)
    near = weight.clone()
    near[0, 0] += 0.001
    distance = projector_distance([[(weight, None)], [(near, None)]] * 20)
    assert distance[0, 1].item() == pytest.approx(float(near[0, 0] - weight[0, 0]), rel=1e-6)
    assert distance[0, 2].item() == 0


def test_the_default_start_is_about_thirteen_apart():
    """Two 256 x 256 layers from U(-1/16, 1/16): the expected squared distance is 256² * 2 * (1/16)² / 3 = 170.7."""
    torch.manual_seed(0)
    ensemble = ProjectorEnsemble(256, 256, projectors=2)
    found = mean_projector_distance([ensemble.projector(k) for k in range(2)], squared=True)
    assert found.item() == pytest.approx(170.7, rel=0.02)


def test_what_has_no_distance_is_refused():
    bare = ProjectorEnsemble(3, 3, projectors=2, bias=False)
    projectors = [bare.projector(k) for k in range(2)]
    assert mean_projector_distance(projectors).item() > 0
    with pytest.raises(NetworkError, match="no biases to compare; leave bias=True out"):
        projector_distance(projectors, bias=True)
    with pytest.raises(NetworkError, match="A distance is between two projectors; got 1"):
        mean_projector_distance(projectors[:1])
