"""The order of an epoch: whole, the same for any number of processes, resumable."""

import pytest
import torch

from potstill.data.order import Plan
from potstill.data.views import Augmentation
from potstill.errors import DataError


def global_batches(epoch: int, world: int, accumulate: int, **settings) -> list[torch.Tensor]:
    """Every step's samples, put together from all processes and micro-batches."""
    plans = [Plan(rank=rank, world=world, accumulate=accumulate, **settings) for rank in range(world)]
    batches = []
    for k in range(plans[0].steps):
        steps = [plan.step(epoch, k) for plan in plans]
        assert all(len(step) == accumulate for step in steps)
        real = [steps[rank][micro] for micro in range(accumulate) for rank in range(world)]
        batches.append(torch.cat([index for index, weight in real if weight > 0]))
    return batches


def test_cifar_keeps_its_last_batch():
    plan = Plan(length=50_000, batch_size=64, seed=0, shuffle=True)
    assert plan.steps == 782
    assert [len(index) for index, _ in plan.step(0, 781)] == [16]


def test_the_order_is_pinned():
    """Part of what a seed means: a change of these numbers changes every run."""
    assert Plan(length=10, batch_size=2, seed=0, shuffle=True).order(0).tolist() == [9, 6, 4, 1, 7, 0, 8, 3, 5, 2]
    assert Plan(length=10, batch_size=2, seed=0, shuffle=True).order(1).tolist() == [6, 9, 4, 8, 0, 7, 5, 2, 1, 3]
    assert Plan(length=10, batch_size=2, seed=7, shuffle=True).order(0).tolist() == [4, 1, 8, 0, 9, 2, 3, 7, 6, 5]


def test_an_epoch_is_a_permutation_of_its_own():
    plan = Plan(length=1000, batch_size=64, seed=3, shuffle=True)
    first, second = plan.order(0), plan.order(1)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))
    # Two random permutations agree in one place on average.
    assert (first == second).sum() < 8
    assert (first == torch.arange(1000)).sum() < 8


def test_the_order_says_nothing_of_the_views():
    """With one seed for both, the place of a sample in its epoch and its augmentation are independent."""
    order = Plan(length=20_000, batch_size=64, seed=0, shuffle=True).order(1)
    augmentation = Augmentation(32, crop="pad", flip=True, seed=0)
    view = torch.ones_like(order)
    place = torch.linspace(-1, 1, 20_000).double()
    for value in (augmentation.flips(order, view), *augmentation.offsets(order, view)):
        correlation = torch.corrcoef(torch.stack((place, value.double())))[0, 1]
        assert abs(correlation) < 4 / 20_000**0.5


def test_without_shuffle_the_order_is_the_sources():
    plan = Plan(length=5, batch_size=2, seed=3, shuffle=False)
    assert [plan.step(4, k)[0][0].tolist() for k in range(3)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (3, 2), (4, 4), (40, 1)])
def test_the_global_batch_does_not_depend_on_processes_and_micro_batches(world, accumulate):
    settings = {"length": 103, "batch_size": 32, "seed": 5, "shuffle": True}
    order = Plan(**settings).order(2)
    expected = [order[start : start + 32] for start in range(0, 103, 32)]
    batches = global_batches(2, world, accumulate, **settings)
    assert len(batches) == len(expected)
    for batch, whole in zip(batches, expected, strict=True):
        assert torch.equal(batch, whole)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (3, 2), (40, 1)])
def test_weights_make_the_mean_over_the_global_batch(world, accumulate):
    values = torch.randn(103, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plans = [Plan(103, 32, 5, True, rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    order = plans[0].order(0)
    for k in range(4):
        # As in training: means times weights, summed over micro-batches, averaged over processes.
        sums = [sum(weight * values[index].mean() for index, weight in plan.step(0, k)) for plan in plans]
        torch.testing.assert_close(sum(sums) / world, values[order[32 * k : 32 * (k + 1)]].mean())


def test_chunks_differ_in_size_by_one_at_most():
    plans = [Plan(103, 32, 0, True, rank=rank, world=5, accumulate=2) for rank in range(5)]
    sizes = [len(index) for plan in plans for index, _ in plan.step(0, 0)]
    assert sum(sizes) == 32
    assert max(sizes) - min(sizes) == 1


def test_a_process_without_samples_gets_a_filler_in_training_only():
    steps = [Plan(5, 4, 0, False, rank=rank, world=3).step(0, 1) for rank in range(3)]
    assert sorted(step[0][1] for step in steps) == [0.0, 0.0, 3.0]
    assert [step[0][0].tolist() for step in steps] == [[4], [4], [4]]
    evaluation = [Plan(5, 4, 0, False, rank=rank, world=3, fillers=False).step(0, 1) for rank in range(3)]
    assert sorted(len(step) for step in evaluation) == [0, 0, 1]


def test_parts_number_all_chunks_of_a_step():
    parts = [chunk.part for rank in range(3) for chunk in Plan(30, 12, 0, True, rank, 3, accumulate=2).chunks(0)]
    assert sorted(parts) == list(range(6))


def test_resume_asks_for_the_next_step():
    settings = {"length": 103, "batch_size": 10, "seed": 5, "shuffle": True, "world": 2, "rank": 1}
    undisturbed = [index for epoch in range(3) for k in range(11) for index, _ in Plan(**settings).step(epoch, k)]
    position = 2 * 11 + 4
    resumed = [index for k in range(4, 11) for index, _ in Plan(**settings).step(2, k)]
    for a, b in zip(undisturbed[position:], resumed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length=0 gives no batches; it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 gives no batches"),
        ({"accumulate": 0}, "accumulate=0 gives no batches"),
        ({"rank": 2, "world": 2}, "rank=2 is not one of the 2 processes"),
    ],
)
def test_impossible_plans(settings, message):
    with pytest.raises(DataError, match=message):
        Plan(**{"length": 10, "batch_size": 2, "seed": 0, "shuffle": True, **settings})


def test_a_step_that_is_not_there():
    with pytest.raises(DataError, match="step 5 is not in an epoch of 5 steps"):
        Plan(10, 2, 0, True).step(0, 5)
