"""The order of an epoch: whole, the same for any number of processes, resumable."""

import logging
import time

import numpy as np
import pytest
import torch

from potstill.data.groups import Groups, choose_order, grouped_order
from potstill.data.order import Plan
from potstill.data.source import ArraySource, subset
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


PINNED = ([6, 7, 1, 3, 5, 0, 2, 4, 8], [6, 7, 2, 1, 5, 8, 3, 4, 0], [4, 3, 1, 8, 5, 7, 0, 2, 6])

# Uneven groups: one of a single sample, one larger than a stream.
UNEVEN = Groups(np.array([0, 1, 8, 20, 21, 60, 75, 90, 103]), streams=4, window=12)


@pytest.mark.parametrize("groups", [None, UNEVEN], ids=["full", "groups"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (3, 2), (4, 4), (40, 1)])
def test_the_global_batch_does_not_depend_on_processes_and_micro_batches(world, accumulate, groups):
    settings = {"length": 103, "batch_size": 32, "seed": 5, "shuffle": True, "groups": groups}
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


@pytest.mark.parametrize("groups", [None, UNEVEN], ids=["full", "groups"])
def test_resume_asks_for_the_next_step(groups):
    settings = {"length": 103, "batch_size": 10, "seed": 5, "shuffle": True, "world": 2, "rank": 1, "groups": groups}
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
        ({"groups": UNEVEN}, "Groups of 103 samples do not fit a plan of 10"),
    ],
)
def test_impossible_plans(settings, message):
    with pytest.raises(DataError, match=message):
        Plan(**{"length": 10, "batch_size": 2, "seed": 0, "shuffle": True, **settings})


def test_a_step_that_is_not_there():
    with pytest.raises(DataError, match="step 5 is not in an epoch of 5 steps"):
        Plan(10, 2, 0, True).step(0, 5)


class TestGroups:
    """The order that reads what lies together: groups in random order, in streams, shuffled in windows."""

    def equal(self, groups=50, size=20, **options):
        return Groups(np.arange(0, groups * size + 1, size), **options)

    def test_it_is_pinned(self):
        """Part of what a seed means, like the full order."""
        groups = Groups(np.array([0, 3, 5, 9]), streams=2, window=4)
        assert grouped_order(groups, 4, 0, 0).tolist() == PINNED[0]
        assert grouped_order(groups, 4, 0, 1).tolist() == PINNED[1]
        assert grouped_order(groups, 4, 7, 0).tolist() == PINNED[2]

    @pytest.mark.parametrize("bounds", [[0, 1], [0, 7], [0, 1, 2, 3], [0, 100, 103], [0, 3, 50, 51, 1000]])
    @pytest.mark.parametrize(("streams", "window"), [(1, 1), (4, 5), (16, 1000), (7, 64)])
    @pytest.mark.parametrize("batch_size", [1, 10, 64, 5000])
    def test_each_sample_comes_once_an_epoch(self, bounds, streams, window, batch_size):
        groups = Groups(np.array(bounds), streams, window)
        for epoch in (0, 3, None):
            order = grouped_order(groups, batch_size, 1, epoch)
            assert torch.equal(order.sort().values, torch.arange(groups.length))

    def test_epochs_and_seeds_have_orders_of_their_own(self):
        groups = self.equal(streams=4, window=60)
        orders = [grouped_order(groups, 64, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
        for number, one in enumerate(orders):
            for other in orders[:number]:
                assert (one == other).sum() < 12  # two random orders agree in one place on average
                # ... and the groups of their beginnings are others, not only the samples in them
                assert set((one[:64] // 20).tolist()) != set((other[:64] // 20).tolist())

    def test_a_call_for_another_epoch_in_between_changes_nothing(self):
        plan = Plan(1000, 64, 0, True, groups=self.equal(streams=4, window=60))
        first = plan.step(2, 5)[0][0].clone()
        for epoch in range(6):
            plan.order(epoch)
        assert torch.equal(plan.step(2, 5)[0][0], first)

    @pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2)])
    def test_a_process_reads_its_own_groups_and_few_at_a_time(self, world, accumulate):
        groups = self.equal(groups=160, streams=4, window=60)
        readers: dict[int, set[int]] = {}
        for rank in range(world):
            plan = Plan(3200, 64, 0, True, rank=rank, world=world, accumulate=accumulate, groups=groups)
            open_until: dict[int, int] = {}
            seen: list[set[int]] = []
            for k in range(plan.steps):
                touched = {one for index, _ in plan.step(1, k) for one in (index // 20).tolist()}
                seen.append(touched)
                open_until |= dict.fromkeys(touched, k)
                for group in touched:
                    readers.setdefault(group, set()).add(rank)
            first = {group: k for k in reversed(range(plan.steps)) for group in seen[k]}
            at_once = [sum(first[group] <= k <= last for group, last in open_until.items()) for k in range(plan.steps)]
            # Of each stream a window of three groups, which may begin and end inside of one; two of them at a change.
            assert max(at_once) <= 2 * 4 // world * 4
            assert len(open_until) <= 160 // world + 4
        shared = [group for group, ranks in readers.items() if len(ranks) > 1]
        assert len(readers) == 160
        assert len(shared) <= 3  # only where a cut between streams falls into a group

    def test_a_full_order_has_every_process_read_every_group(self):
        """What the test above would not see if it could not fail."""
        plan = Plan(3200, 64, 0, True, rank=1, world=2)
        assert (
            len({one for k in range(plan.steps) for index, _ in plan.step(1, k) for one in (index // 20).tolist()})
            == 160
        )

    def test_windows_are_shuffled_through_and_through(self):
        """Inside a window, a sample's place says nothing of where it lay."""
        size, window = 10, 2000
        groups = self.equal(groups=1600, size=size, streams=1, window=window)
        order = grouped_order(groups, 1, 0, 0)
        rank = order.argsort()  # the place of each sample
        for start in range(0, 16_000, window):
            inside = order[start : start + window]
            assert len(set((inside // size).tolist())) == window // size  # whole groups: windows do not mix
            place = torch.arange(window).double()
            for value in (inside.double(), (inside % size).double()):
                assert abs(torch.corrcoef(torch.stack((place, value)))[0, 1]) < 4 / window**0.5
        # Neighbours in the data are as far from each other as two places of a window drawn at random: a third of it.
        near = rank.view(-1, size)
        distance = (near[:, 1:] - near[:, :-1]).abs().double().mean().item()
        assert distance == pytest.approx(window / 3, rel=0.03)

    def test_batches_mix_groups(self):
        plan = Plan(3200, 64, 0, True, groups=self.equal(groups=160, streams=16, window=60))
        for k in range(plan.steps):
            assert len(set((plan.step(0, k)[0][0] // 20).tolist())) >= 30

    def test_the_order_of_groups_is_not_that_of_samples(self):
        """Groups of one sample each, in windows of one, show the order of the groups."""
        groups = Groups(np.arange(2001), streams=1, window=1)
        alone = grouped_order(groups, 1, 0, 0)
        assert (alone == Plan(2000, 1, 0, True).order(0)).sum() < 12

    def test_without_shuffle_streams_are_read_in_their_order(self):
        plan = Plan(12, 6, 0, False, groups=Groups(np.array([0, 5, 12]), streams=3))
        assert [plan.step(4, k)[0][0].tolist() for k in range(2)] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]

    def test_a_window_is_never_larger_than_asked_for(self):
        groups = self.equal(groups=10, size=10, streams=1, window=30)
        line = grouped_order(groups, 1, 0, 0)
        # 100 samples in windows of at most 30: four of 25, each of which holds samples of four groups at most.
        assert [len(set((part // 10).tolist())) <= 4 for part in line.split(25)] == [True] * 4

    def test_imagenet_takes_a_fraction_of_a_second(self):
        groups = Groups(np.append(np.arange(0, 1_281_167, 100), 1_281_167))
        start = time.process_time()
        grouped_order(groups, 256, 0, 12345)
        assert time.process_time() - start < 2

    @pytest.mark.parametrize("bounds", [[], [0], [1, 2], [0, 2, 2], [0, 3, 1], [[0, 1]]])
    def test_bounds_that_are_none(self, bounds):
        with pytest.raises(DataError, match="must begin with 0, ascend, and end with the number of samples"):
            Groups(np.array(bounds))

    @pytest.mark.parametrize("options", [{"streams": 0}, {"window": 0}])
    def test_numbers_that_read_nothing(self, options):
        with pytest.raises(DataError, match="must be at least 1"):
            Groups(np.array([0, 2]), **options)


class TestChoice:
    """Which order a source is read in."""

    def source(self, length=1000, size=10, **attributes):
        source = ArraySource(np.zeros((length, 4, 4, 3), np.uint8), None, name="pictures")
        source.groups = np.arange(0, length + 1, size)
        for name, value in attributes.items():
            setattr(source, name, value)
        return source

    def test_auto_takes_groups_where_any_order_is_slow(self):
        assert choose_order(self.source()) is None
        assert choose_order(self.source(scattered=True)).length == 1000
        assert choose_order(self.source(scattered=True, groups=None)) is None

    def test_what_is_asked_for(self, caplog):
        assert choose_order(self.source(), "groups").streams == 16
        with caplog.at_level(logging.WARNING):
            assert choose_order(self.source(), "full") is None
            assert caplog.text == ""
            assert choose_order(self.source(scattered=True), "full") is None
        assert "pictures is read in any order, where most images cost a request" in caplog.text

    def test_refused(self):
        with pytest.raises(DataError, match="pictures has no groups to order images by"):
            choose_order(self.source(groups=None), "groups")
        with pytest.raises(DataError, match=r"must be one of auto, full, groups, got 'group'\. Did you mean 'groups'"):
            choose_order(self.source(), "group")

    @pytest.mark.parametrize(
        ("held", "streams", "window"),
        [(640, 16, 20), (1600, 16, 80), (639, 8, 59), (100, 2, 30), (45, 1, 25), (30, 1, 10), (5, 1, 10), (0, 1, 10)],
    )
    def test_streams_and_windows_fit_what_is_kept(self, held, streams, window, caplog):
        with caplog.at_level(logging.WARNING):
            groups = choose_order(self.source(scattered=True, held=held))
        assert (groups.streams, groups.window) == (streams, window)
        assert ("images that lie together are seen together" in caplog.text) == (held < 30)

    def test_a_subset_has_what_is_left_of_the_groups(self):
        source = self.source(length=40, size=10, scattered=True, held=100)
        part = subset(source, [0, 1, 9, 10, 35])
        assert part.groups.tolist() == [0, 3, 4, 5]  # none of the third group
        assert (part.scattered, part.held) == (True, 12)
        assert choose_order(part, "groups").length == 5
        assert subset(source, [9, 0]).groups is None
        assert subset(subset(source, range(0, 40, 2)), range(20)).groups.tolist() == [0, 5, 10, 15, 20]
