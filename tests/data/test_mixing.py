"""Mixup and CutMix: pixels, targets, and that a draw is a pure function of (seed, epoch, step, part)."""

import pytest
import torch

from potstill.batch import Batch
from potstill.data.mixing import Mixing
from potstill.errors import DataError

CLASSES = 4


def batch(labels: bool = True, size: int = 6) -> Batch:
    """Image i has the value i + 1 everywhere, and class i mod 4."""
    index = torch.arange(size)
    images = (index + 1.0)[:, None, None, None].expand(-1, 3, 10, 8).contiguous(memory_format=torch.channels_last)
    return Batch(images, index % CLASSES if labels else None, index, torch.zeros_like(index), weight=0.5)


def check_targets(mixed: Batch, keep: torch.Tensor) -> None:
    """Row i has ``keep`` of its own class and the rest of its partner's."""
    own = torch.arange(len(mixed)) % CLASSES
    expected = torch.zeros(len(mixed), CLASSES, dtype=keep.dtype)
    for i in range(len(mixed)):
        expected[i, own[i]] += keep
        expected[i, own.flip(0)[i]] += 1 - keep
    torch.testing.assert_close(mixed.targets, expected.float())
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(len(mixed)))


def test_mixup_mixes_pixels_and_targets_alike():
    keeps = []
    for step in range(20):
        mixed = Mixing(CLASSES, mixup=0.8)(batch(), epoch=0, step=step)
        keep = (mixed.images[0, 0, 0, 0].double() - 6) / (1 - 6)
        own, other = batch().images, batch().images.flip(0)
        torch.testing.assert_close(mixed.images, (keep * own + (1 - keep) * other).float())
        check_targets(mixed, keep)
        keeps.append(float(keep))
    assert min(keeps) < 0.3
    assert max(keeps) > 0.7


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area():
    areas = []
    for step in range(20):
        mixed = Mixing(CLASSES, cutmix=1.0)(batch(), epoch=0, step=step)
        pasted = mixed.images != batch().images
        own, other = batch().images, batch().images.flip(0)
        assert torch.equal(mixed.images, torch.where(pasted, other, own))
        rows, columns = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert torch.equal(pasted, (rows[:, None] & columns).expand_as(pasted))  # one box, the same everywhere
        assert (torch.nonzero(rows).diff(dim=0) == 1).all()
        assert (torch.nonzero(columns).diff(dim=0) == 1).all()
        area = pasted[0, 0].double().mean()
        check_targets(mixed, 1 - area)
        areas.append(float(area))
    assert min(areas) < 0.2
    assert max(areas) > 0.4


def test_a_coin_chooses_between_both():
    mixing = Mixing(CLASSES, mixup=1.0, cutmix=1.0)
    mixed = [mixing(batch(), epoch=0, step=step).images for step in range(400)]
    # Mixup leaves an image of one value everywhere; CutMix leaves only values that were there.
    cut = sum(bool(torch.isin(images, torch.arange(1.0, 7)).all()) for images in mixed)
    assert abs(cut - 200) < 4 * 10


def test_a_draw_is_a_function_of_seed_epoch_step_and_part():
    mixing = Mixing(CLASSES, mixup=1.0, cutmix=1.0, seed=3)
    mixing(batch(), epoch=9, step=9)  # earlier calls leave no trace
    again = Mixing(CLASSES, mixup=1.0, cutmix=1.0, seed=3)
    first = mixing(batch(), epoch=1, step=2, part=3)
    assert torch.equal(first.images, again(batch(), epoch=1, step=2, part=3).images)
    others = [(1, 2, 4), (1, 3, 3), (2, 2, 3)]
    assert not any(torch.equal(first.images, again(batch(), *other).images) for other in others)
    assert not torch.equal(first.images, Mixing(CLASSES, 1.0, 1.0, seed=4)(batch(), 1, 2, 3).images)


def test_a_batch_without_labels_stays_without():
    mixed = Mixing(CLASSES, mixup=1.0)(batch(labels=False), epoch=0, step=0)
    assert mixed.targets is None
    assert torch.equal(mixed.images, Mixing(CLASSES, mixup=1.0)(batch(), epoch=0, step=0).images)


def test_all_else_is_left_as_it_was():
    original = batch()
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed = Mixing(CLASSES, **settings)(original, epoch=0, step=1)
        assert torch.equal(original.images, batch().images)
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)
        assert mixed.index is original.index
        assert mixed.view is original.view
        assert mixed.weight == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -0.1}, "mixup=-0.1 is no alpha of a Beta distribution; it must be 0 or more"),
        ({"cutmix": float("nan")}, "cutmix=nan is no alpha"),
        ({}, "Mixing with mixup=0 and cutmix=0 mixes nothing"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(DataError, match=message):
        Mixing(CLASSES, **settings)
