"""Verification against counts by hand and by brute force over all comparisons: ties, missing faces, memory, time."""

import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.tasks import comparisons
from potstill.tasks.comparisons import Crossed, Given, Listed, pair_scores, scores_between
from potstill.tasks.templates import Templates
from potstill.tasks.verification import tar_at_far, ten_folds

FARS = [0.5, 0.3, 0.1, 0.01, 0.001]


def by_brute_force(scores: list[float], same: list[bool], far: float) -> tuple[float, float] | None:
    """FAR and TAR at the smallest score that keeps the FAR, over every score there is; None where too few impostors."""
    impostors = [score for score, own in zip(scores, same, strict=True) if not own]
    genuine = [score for score, own in zip(scores, same, strict=True) if own]
    if Fraction(str(far)) * len(impostors) < 1:
        return None
    for threshold in [*sorted(set(scores)), float("inf")]:
        rate = Fraction(sum(score >= threshold for score in impostors), len(impostors))
        if rate <= Fraction(str(far)):
            return float(rate), sum(score >= threshold for score in genuine) / len(genuine)
    raise AssertionError


def assert_as_by_brute_force(found, scores: Tensor, same: Tensor, fars: list[float] = FARS) -> None:
    expected = {far: by_brute_force(scores.tolist(), same.tolist(), far) for far in fars}
    assert found.left_out == tuple(far for far in fars if expected[far] is None)
    assert [(point.asked, (point.rate, point.found)) for point in found.points] == [
        (far, pair) for far, pair in expected.items() if pair is not None
    ]
    for point in found.points:  # the threshold is the smallest number that keeps the rate
        below = np.nextafter(np.float32(point.threshold), np.float32(-np.inf))
        kept = (scores[~same] >= point.threshold).double().mean()
        assert kept == point.rate
        assert (scores[~same] >= float(below)).double().mean() > point.asked


def few(**changes: list[float]) -> tuple[Tensor, Tensor]:
    scores = {"genuine": [0.9, 0.6, 0.5, 0.2], "impostor": [0.7, 0.5, 0.5, 0.3, 0.1, 0.0, -0.1, -0.2, -0.5, -0.9]}
    scores |= changes
    values = torch.tensor(scores["genuine"] + scores["impostor"])
    return values, torch.arange(len(values)) < len(scores["genuine"])


def test_tar_at_far_counted_by_hand() -> None:
    found = tar_at_far(Given(*few()), [0.1, 0.2, 0.3, 0.4, 0.05])
    assert [(point.asked, point.rate, point.found) for point in found.points] == [
        (0.1, 0.1, 0.5),  # one impostor may pass, 0.7: of the genuine 0.9 and 0.6 are above the next, 0.5
        (0.2, 0.1, 0.5),  # two may, but two are tied at 0.5, so that one does
        (0.3, 0.3, 0.75),  # three may: the next is 0.3
        (0.4, 0.4, 1.0),
    ]
    assert found.left_out == (0.05,)  # one of ten is 0.1: a rate of 0.05 cannot be seen
    assert (found.genuine, found.impostors) == (4, 10)


def test_a_genuine_score_tied_with_the_first_refused_impostor_is_refused() -> None:
    found = tar_at_far(Given(*few(genuine=[0.5, 0.5, 0.70001])), [0.1])
    assert found.points[0].found == pytest.approx(1 / 3)


def test_all_impostors_tied_leave_only_what_is_above_them() -> None:
    scores, same = few(impostor=[0.5] * 10)
    point = tar_at_far(Given(scores, same), [0.5]).points[0]
    assert (point.rate, point.found) == (0, 0.5)
    assert point.threshold == float(np.nextafter(np.float32(0.5), np.float32(1)))


@pytest.mark.parametrize("seed", range(6))
def test_any_scores_agree_with_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randn(400) * 10.0 ** torch.randint(-45, 5, (400,))  # with denormals
    scores = torch.where(torch.rand(400) < 0.5, scores, torch.randn(400).round(decimals=1))  # and ties
    scores[torch.rand(400) < 0.1] = -torch.inf
    scores[torch.rand(400) < 0.1] = 0.0
    scores[torch.rand(400) < 0.1] = -0.0
    same = torch.rand(400) < 0.2
    assert_as_by_brute_force(tar_at_far(Given(scores, same), FARS), scores, same)


def test_minus_zero_ties_with_zero() -> None:
    scores = torch.tensor([-0.0, 0.0, 0.5, -0.5, 0.0, -0.0])
    same = torch.tensor([True, True, False, False, False, False])
    point = tar_at_far(Given(scores, same), [0.25]).points[0]
    assert (point.rate, point.found) == (0.25, 0)


def test_missing_templates_are_counted_and_never_accepted() -> None:
    low = -torch.inf
    scores, same = few(genuine=[0.9, low, low, low], impostor=[0.5, low, low, low])
    found = tar_at_far(Given(scores, same), [0.25, 0.75])
    assert [(point.rate, point.found) for point in found.points] == [(0.25, 0.25), (0.25, 0.25)]
    assert found.points[1].threshold == float(np.finfo(np.float32).min)  # whatever has a score at all


def test_a_rate_is_read_as_it_is_written() -> None:
    """29 of 100 is a rate of 0.29, though 0.29 * 100 is less than 29 in floating point."""
    scores = torch.arange(100, 0, -1).float()
    same = torch.zeros(100, dtype=torch.bool)
    point = tar_at_far(Given(torch.cat([scores, torch.tensor([71.5])]), torch.cat([same, ~same[:1]])), [0.29]).points[0]
    assert (point.rate, point.found) == (0.29, 1)
    assert point.threshold > 71


def toy(people: int, templates: int, width: int, missing: float = 0.2) -> tuple[Templates, Tensor]:
    """Templates with entries of -1, 0 and 1 in a few dimensions: many are equal, many scores are tied."""
    vectors = torch.randint(-1, 2, (templates, width)).float()
    return Templates.of(vectors, torch.rand(templates) >= missing), torch.randint(people, (templates,))


@pytest.mark.parametrize("edges", [(512, 2048), (7, 5), (1, 1)])
def test_crossed_templates_agree_with_brute_force_whatever_the_blocks(edges, monkeypatch) -> None:
    monkeypatch.setattr(comparisons, "_ROWS", edges[0])
    monkeypatch.setattr(comparisons, "_COLUMNS", edges[1])
    torch.manual_seed(0)
    left, left_subjects = toy(6, 23, 4)
    right, right_subjects = toy(8, 31, 4)
    scores, same = scores_between(left, right).flatten(), (left_subjects[:, None] == right_subjects).flatten()
    assert len(scores.unique()) < 50 < len(scores)
    assert_as_by_brute_force(tar_at_far(Crossed(left, left_subjects, right, right_subjects), FARS), scores, same)


@pytest.mark.parametrize("edges", [(512, 2048), (7, 5)])
@pytest.mark.parametrize("dense", [0, 32, 10**9])
def test_listed_pairs_agree_with_brute_force_whatever_way_they_are_computed(edges, dense, monkeypatch) -> None:
    for name, value in zip(("_ROWS", "_COLUMNS", "_DENSE", "_CHUNK", "_LONGEST"), (*edges, dense, 3, 11), strict=True):
        monkeypatch.setattr(comparisons, name, value)
    torch.manual_seed(1)
    templates, subjects = toy(6, 40, 4)
    first, second = torch.randint(40, (2, 300), dtype=torch.int32)
    same = subjects[first] == subjects[second]
    scores = scores_between(templates, templates)[first, second]
    assert torch.equal(pair_scores(templates, first, second), scores)
    assert_as_by_brute_force(tar_at_far(Listed(templates, first, second, same), FARS), scores, same)


def test_real_scores_of_both_ways_are_the_same_to_the_last_bit() -> None:
    torch.manual_seed(2)
    templates = Templates.of(torch.randn(60, 512))
    subjects = torch.arange(60) % 9
    first, second = (part.flatten().int() for part in torch.meshgrid(*[torch.arange(60)] * 2, indexing="ij"))
    listed = tar_at_far(Listed(templates, first, second, subjects[first] == subjects[second]), FARS)
    crossed = tar_at_far(Crossed(templates, subjects, templates, subjects), FARS)
    assert listed.points == crossed.points
    assert np.array_equal(listed.roc, crossed.roc)


def test_points_of_the_curve_are_exact_and_ascend() -> None:
    torch.manual_seed(3)
    same = torch.rand(20_000) < 0.1
    scores = torch.randn(20_000) + 2 * same
    scores[:100] = -torch.inf
    roc = tar_at_far(Given(scores, same), [0.1]).roc
    assert 100 < len(roc) <= 256
    assert (np.diff(roc, axis=0) >= 0).all()
    genuine, impostors = scores[same].sort(descending=True).values, scores[~same].sort(descending=True).values
    for far, tar in roc:
        right, wrong = round(tar * len(genuine)), round(far * len(impostors))
        assert (right, wrong) == (pytest.approx(tar * len(genuine)), pytest.approx(far * len(impostors)))
        assert right <= (genuine > impostors[wrong]).sum()  # a threshold above the first that is refused ..
        assert not wrong or right >= (genuine >= impostors[wrong - 1]).sum()  # .. and not above the last accepted
    assert roc[-1, 0] == pytest.approx((impostors > -torch.inf).double().mean().item())  # nothing missing is accepted


def test_what_cannot_be_measured_is_refused() -> None:
    scores = torch.tensor([0.5, 0.6])
    with pytest.raises(DataError, match="2 comparisons of one person and 0 of two"):
        tar_at_far(Given(scores, torch.tensor([True, True])), [0.1])
    for far in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(DataError, match="between 0 and 1"):
            tar_at_far(Given(scores, torch.tensor([True, False])), [far])
    with pytest.raises(DataError, match="1 scores are no numbers"):
        Given(torch.tensor([0.5, float("nan")]), torch.tensor([True, False]))
    with pytest.raises(DataError, match=r"\(2,\) with labels of shape \(1,\)"):
        Given(scores, torch.tensor([True]))


MEMORY = """
import torch
from potstill.tasks.comparisons import Crossed
from potstill.tasks.templates import Templates
from potstill.tasks.verification import tar_at_far

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def run(count):
    subjects = torch.arange(count) % (count // 4)
    templates = Templates.of(torch.randn(count, 16))
    return tar_at_far(Crossed(templates, subjects, templates, subjects), [1e-1, 1e-3, 1e-6])

torch.set_num_threads(1)
run(3000)
before = peak()
assert run(9000).impostors == 9000 * 9000 - 9000 * 4
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_grows_with_templates_and_not_with_comparisons() -> None:
    """81 million scores would be 309 MiB in float32; 6,000 templates more of 16 dimensions are 1 MiB."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 64 * 1024  # KiB


@pytest.mark.parametrize(("count", "seconds"), [(3_000, 3.0), pytest.param(10_000, 10.0, marks=pytest.mark.long)])
def test_time_of_crossed_templates(count: int, seconds: float) -> None:
    """5 s on two cores is what 10,000 x 10,000 may take, 10 s of one: a thread's own time, whoever else is at work."""
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(count // 4, 512, generator=generator)
    subjects = torch.arange(count) % (count // 4)
    left, right = (Templates.of(people[subjects] + 2 * torch.randn(count, 512, generator=generator)) for _ in range(2))
    start = time.thread_time()
    found = tar_at_far(Crossed(left, subjects, right, subjects), [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    took = time.thread_time() - start
    assert torch.get_num_threads() == 1
    assert len(found.points) == 6
    assert (found.genuine, found.impostors) == (4 * count, count * count - 4 * count)
    assert took < seconds


def folds_by_brute_force(scores: Tensor, same: Tensor, folds: int) -> list[float]:
    """Accuracies of the folds, with every middle of two neighbouring scores of the others tried."""
    found = []
    for part in np.array_split(np.arange(len(scores)), folds):
        others = [i for i in range(len(scores)) if i not in set(part.tolist())]
        levels = sorted({scores[i].item() for i in others if scores[i] > -torch.inf})
        tried = [-1e300, *((a + b) / 2 for a, b in pairwise(levels)), float("inf")]
        right = [sum((scores[i].item() >= t) == same[i].item() for i in others) for t in tried]
        best = max(t for t, count in zip(tried, right, strict=True) if count == max(right))
        found.append(np.mean([(scores[i].item() >= best) == same[i].item() for i in part]))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_accuracy_over_folds_agrees_with_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    same = torch.rand(97) < 0.5
    scores = (torch.randn(97) + same).round(decimals=1)
    scores[torch.rand(97) < 0.1] = -torch.inf
    found = ten_folds(scores, same)
    expected = folds_by_brute_force(scores.double(), same, 10)
    assert found.accuracies.tolist() == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.spread == pytest.approx(np.std(expected))


def test_folds_are_consecutive_parts_with_thresholds_of_the_others() -> None:
    # the first half is shifted by 1: its own best threshold is 1.5, that of the other half 0.5
    scores = torch.tensor([2.0, 1.0, 2.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    same = torch.tensor([True, False] * 4)
    found = ten_folds(scores, same, folds=2)
    assert found.thresholds.tolist() == [0.5, 1.5]
    assert found.accuracies.tolist() == [0.5, 0.5]  # 0.5 accepts the other half's impostors, 1.5 none of it
    assert found.spread == 0


def test_of_several_best_thresholds_the_highest_is_taken() -> None:
    # on the second half 0.35 and 0.75 are right in 3 of 4: below 0.35 an impostor passes, above 0.75 a genuine fails
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9, 0.6, 0.4, 0.3])
    same = torch.tensor([True, False, True, False, True, False, True, False])
    assert ten_folds(scores, same, folds=2).thresholds[0] == pytest.approx(0.75)


def test_pairs_with_a_missing_face_are_named_different() -> None:
    low = -torch.inf
    scores = torch.tensor([0.9, 0.8, low, low, 0.9, 0.8, low, low])
    same = torch.tensor([True, True, True, False] * 2)
    found = ten_folds(scores, same, folds=2)
    assert found.mean == 0.75  # the lowest threshold accepts what has a score, and nothing else
    nobody = ten_folds(torch.full((8,), low), same, folds=2)
    assert nobody.mean == 0.25


def test_folds_that_cannot_be_made_are_refused() -> None:
    scores, same = torch.rand(9), torch.tensor([True] * 4 + [False] * 5)
    with pytest.raises(DataError, match="9 scores and 9 labels do not make 10 folds"):
        ten_folds(scores, same)
    with pytest.raises(DataError, match="do not make 1 folds"):
        ten_folds(scores, same, folds=1)
    with pytest.raises(DataError, match="of one kind"):
        ten_folds(scores, torch.ones(9, dtype=torch.bool), folds=3)
    with pytest.raises(DataError, match="9 scores are no numbers"):
        ten_folds(scores * float("nan"), same, folds=3)
