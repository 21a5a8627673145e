"""Identification against counts by hand and by brute force over every probe and gallery template."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.tasks import identification
from potstill.tasks.comparisons import scores_between
from potstill.tasks.identification import identify
from potstill.tasks.templates import Templates

NONE: tuple[float, ...] = ()


def by_brute_force(
    gallery: Templates, owners: list[int], probes: Templates, subjects: list[int], ranks: list[int], fpirs: list[float]
) -> tuple[dict[int, float], dict[float, float]]:
    scores = scores_between(probes, gallery).tolist()
    places, mates, alarms = [], [], []
    for row, subject in zip(scores, subjects, strict=True):
        best: dict[int, float] = {}
        for score, owner in zip(row, owners, strict=True):
            best[owner] = max(score, best.get(owner, float("-inf")))
        if subject not in best:
            alarms.append(max(best.values()))
            continue
        mate = best.pop(subject)
        mates.append(mate)
        never = mate == float("-inf")
        places.append(float("inf") if never else 1 + sum(other >= mate for other in best.values()))
    told = {rank: sum(place <= rank for place in places) / len(places) for rank in ranks}
    found = {}
    for fpir in fpirs:
        for threshold in [*sorted({*alarms, *mates}), float("inf")]:
            if Fraction(sum(alarm >= threshold for alarm in alarms), len(alarms)) <= Fraction(str(fpir)):
                hits = [place == 1 and mate >= threshold for place, mate in zip(places, mates, strict=True)]
                found[fpir] = sum(hits) / len(hits)
                break
    return told, found


def toy(templates: int, people: int, width: int, missing: float) -> tuple[Templates, Tensor]:
    vectors = torch.randint(-1, 2, (templates, width)).float()
    return Templates.of(vectors, torch.rand(templates) >= missing), torch.randint(people, (templates,))


@pytest.mark.parametrize("block", [1 << 21, 40])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("alone", [True, False], ids=["one template a person", "several"])
def test_searches_agree_with_brute_force(block: int, missing: float, alone: bool, monkeypatch) -> None:
    monkeypatch.setattr(identification, "_SCORES", block)
    torch.manual_seed(0)
    gallery, owners = toy(25, 18, 4, missing)
    if alone:
        owners = torch.randperm(25) * 3  # in no order, with gaps
    probes, subjects = toy(300, 40, 4, missing)
    if alone:
        subjects = subjects * 3
    found = identify(gallery, owners, probes, subjects, ranks=(1, 2, 5), fpirs=(0.5, 0.1, 0.02, 0.001))
    ranks, tpirs = by_brute_force(gallery, owners.tolist(), probes, subjects.tolist(), [1, 2, 5], [0.5, 0.1, 0.02])
    assert found.ranks == ranks
    assert {point.asked: point.found for point in found.points} == tpirs
    assert found.left_out == (0.001,)
    assert found.mated + found.strangers == 300
    assert 0 < found.ranks[1] < found.ranks[5]


def eye(*numbers: int) -> Templates:
    return Templates.of(torch.eye(6)[list(numbers)])


def test_a_tie_between_the_mate_and_somebody_else_counts_against_the_mate() -> None:
    gallery = eye(0, 0, 1)  # two people have the same template
    found = identify(gallery, torch.tensor([10, 20, 30]), eye(0, 1), torch.tensor([10, 30]), ranks=(1, 2), fpirs=NONE)
    assert found.ranks == {1: 0.5, 2: 1.0}


def test_strangers_are_counted_in_searches_and_mated_probes_raise_no_false_alarm() -> None:
    """The known mistakes: alarms counted in comparisons over mated probes, and a mate that is outranked as a find."""
    gallery = eye(0, 1, 2)
    owners = torch.tensor([1, 2, 3])
    probes = Templates.of(
        torch.tensor(
            [
                [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # person 1, score 1
                [0.9, 1.0, 0.0, 0.0, 0.0, 0.0],  # person 1, outranked by person 2, with a high score of the mate
                [0.0, 0.0, 0.6, 0.8, 0.0, 0.0],  # person 3, score 0.6
                [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],  # a stranger, 0
                [0.8, 0.0, 0.0, 0.6, 0.0, 0.0],  # a stranger, 0.8
            ]
        )
    )
    subjects = torch.tensor([1, 1, 3, 7, 8])
    found = identify(gallery, owners, probes, subjects, ranks=(1, 2, 3), fpirs=(0.5, 0.4))
    assert (found.mated, found.strangers) == (3, 2)
    assert found.ranks == {1: pytest.approx(2 / 3), 2: 1.0}
    assert found.idle_ranks == (3,)  # everybody is within rank 3 of three
    # one stranger of two may raise an alarm: the threshold is just above 0
    assert [(point.asked, point.rate, point.found) for point in found.points] == [(0.5, 0.5, pytest.approx(2 / 3))]
    assert found.left_out == (0.4,)


def test_a_mate_tied_with_the_first_refused_stranger_is_not_found() -> None:
    strangers = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    gallery = Templates.of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    probes = Templates.of(torch.cat([torch.tensor([[0.6, -0.8], [0.61, -0.8]]), strangers]))
    found = identify(gallery, torch.tensor([1, 2]), probes, torch.tensor([1, 1, 7, 8]), ranks=(1,), fpirs=(0.5,))
    assert found.points[0].found == 0.5  # 0.6 is refused with the stranger's 0.6, 0.606 passes


def test_what_is_not_enrolled_is_a_miss_and_counted() -> None:
    gallery = Templates.of(torch.eye(3), torch.tensor([True, True, False]))
    owners = torch.tensor([1, 2, 3])
    probes = Templates.of(torch.eye(3)[[0, 1, 2, 0, 1]], torch.tensor([True, False, True, False, True]))
    found = identify(gallery, owners, probes, torch.tensor([1, 2, 3, 9, 9]), ranks=(1, 2), fpirs=(0.5,))
    assert found.ranks == {1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3)}
    # of the strangers one has no face, so that one of two raises an alarm: whatever has a score passes
    assert (found.points[0].rate, found.points[0].found) == (0.5, pytest.approx(1 / 3))


def test_without_strangers_there_is_no_open_set() -> None:
    found = identify(eye(0, 1), torch.tensor([1, 2]), eye(0), torch.tensor([1]), ranks=(1,), fpirs=(0.1, 0.01))
    assert (found.ranks, found.points, found.left_out) == ({1: 1.0}, (), (0.1, 0.01))


def test_galleries_in_which_nobody_can_be_found_are_refused() -> None:
    with pytest.raises(DataError, match="has no templates"):
        identify(eye(), torch.tensor([], dtype=torch.int64), eye(0), torch.tensor([1]))
    with pytest.raises(DataError, match="None of the 2 probes"):
        identify(eye(0), torch.tensor([5]), eye(0, 1), torch.tensor([1, 9]))
