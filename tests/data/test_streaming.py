"""The streaming loader: the resident loader's batches whatever the workers, and what becomes of damaged images."""

import pickle
import re

import numpy as np
import pytest
import torch

from potstill.data.mixing import Mixing
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.source import ArraySource, Source
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation, Evaluation
from potstill.errors import DataError

COUNT, SIDE = 40, 12
AS_BYTES = {"mean": [0, 0, 0], "std": [1 / 255] * 3}  # normalised so, a pixel keeps its value


class DamagedSource(ArraySource):
    """Some images of which cannot be read."""

    def __init__(self, *args, damaged: set[int], **settings) -> None:
        super().__init__(*args, **settings)
        self.damaged = damaged

    def image(self, index: int) -> np.ndarray:
        if index in self.damaged:
            raise DataError(f"Cannot read the image {self.describe(index)}: it is truncated.")
        return super().image(index)


class Photographs(Source):
    """Images of all sizes, without labels."""

    name = "photographs"
    identity = "0" * 16

    def __len__(self) -> int:
        return 10

    def image(self, index: int) -> np.ndarray:
        return np.full((20 + index, 40 - index, 3), index, np.uint8)

    def describe(self, index: int) -> str:
        return f"photograph {index}"


def source(damaged: set[int] = frozenset(), labels: bool = True) -> DamagedSource:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    numbers, classes = (np.arange(COUNT) % 4, ("a", "b", "c", "d")) if labels else (None, ())
    return DamagedSource(images, numbers, name="noise", classes=classes, damaged=damaged)


def plan(**settings) -> Plan:
    return Plan(**{"length": COUNT, "batch_size": 16, "seed": 1, "shuffle": True, **settings})


def batches(loader, epoch: int, start: int = 0) -> list:
    return [batch for step in loader.epoch(epoch, start) for batch in step]


def check_same(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for field in ("images", "targets", "index", "view"):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0)
        assert a.weight == b.weight
        assert a.images.stride() == b.images.stride()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_the_resident_loader(workers):
    augmentation = Augmentation(SIDE, crop="pad", flip=True, seed=1)
    settings = {"mean": [0.5] * 3, "std": [0.2] * 3, "mixing": Mixing(4, mixup=1.0, cutmix=1.0)}
    for shares in ({}, {"rank": 1, "world": 2, "accumulate": 2}):
        resident = ResidentLoader(source().arrays(), source().labels, plan(**shares), augmentation, **settings)
        streaming = StreamingLoader(source(), plan(**shares), augmentation, workers=workers, **settings)
        assert streaming.steps == resident.steps == 3
        for epoch, start in ((0, 0), (1, 0), (1, 2)):
            check_same(batches(streaming, epoch, start), batches(resident, epoch, start))


def test_an_epoch_may_be_left_and_another_begun():
    loader = StreamingLoader(source(), plan(batch_size=4), None, workers=2, **AS_BYTES)
    for epoch in range(3):
        for k, (batch,) in enumerate(loader.epoch(epoch)):
            assert torch.equal(batch.index, loader.plan.step(epoch, k)[0][0])
            assert batch.view.tolist() == [epoch] * 4
            if k == epoch:
                break
    found = batches(loader, 3)
    assert torch.equal(torch.cat([batch.index for batch in found]), loader.plan.order(3))


def test_without_an_augmentation_pixels_are_the_sources():
    batch = batches(StreamingLoader(source(), plan(shuffle=False), None, **AS_BYTES), 0)[0]
    assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(source().arrays()[:16]).float())
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_photographs_of_all_sizes_without_labels():
    for view in (Augmentation(8, crop="resized", flip=True), Evaluation(8)):
        found = batches(StreamingLoader(Photographs(), Plan(10, 4, 0, True), view, **AS_BYTES), 0)
        assert [tuple(batch.images.shape) for batch in found] == [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
        for batch in found:
            assert batch.targets is None
            expected = batch.index.float()[:, None, None, None].expand_as(batch.images)
            assert torch.equal(batch.images, expected)  # a crop of one colour has that colour


def test_crops_are_the_same_however_many_images_are_held_at_once(monkeypatch):
    view = Augmentation(8, crop="resized", flip=True)
    together = batches(StreamingLoader(Photographs(), Plan(10, 10, 0, True), view, **AS_BYTES), 0)
    monkeypatch.setattr("potstill.data.streaming._PIXELS", 1000)
    apart = batches(StreamingLoader(Photographs(), Plan(10, 10, 0, True), view, **AS_BYTES), 0)
    assert torch.equal(together[0].images, apart[0].images)


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_at_a_damaged_image_with_its_own_sentence(workers):
    loader = StreamingLoader(source({21}), plan(shuffle=False), None, workers=workers, **AS_BYTES)
    steps = loader.epoch(0)
    assert len(next(steps)[0]) == 16
    with pytest.raises(
        DataError, match=r"^Cannot read the image image 21 of noise: it is truncated\. Mend or remove it, or"
    ):
        next(steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_damaged_images_and_name_each_once(workers):
    loader = StreamingLoader(
        source({3, 5, 20}), plan(shuffle=False), None, workers=workers, on_error="skip", **AS_BYTES
    )
    for epoch in range(2):
        found = batches(loader, epoch)
        assert [len(batch) for batch in found] == [14, 15, 8]
        assert [batch.weight for batch in found] == [14 / 16, 15 / 16, 1.0]
        assert found[0].index.tolist() == [0, 1, 2, 4, *range(6, 16)]
        assert torch.equal(found[0].targets, found[0].index % 4)
        expected = torch.from_numpy(source().arrays()[found[0].index]).float()
        assert torch.equal(found[0].images.permute(0, 2, 3, 1), expected)
        assert loader.skipped == {
            f"image {n} of noise": f"Cannot read the image image {n} of noise: it is truncated." for n in (3, 5, 20)
        }


def test_weights_with_skipped_images_count_every_sample_alike():
    damaged = {1, 2, 3, 9}
    sums = torch.zeros(16)
    for rank in range(2):
        settings = plan(shuffle=False, rank=rank, world=2, accumulate=2)
        loader = StreamingLoader(source(damaged), settings, None, on_error="skip", **AS_BYTES)
        for batch in next(loader.epoch(0)):
            sums[batch.index] += batch.weight / len(batch) / 2
    assert sums.tolist() == [0.0 if n in damaged else 1 / 16 for n in range(16)]


def test_a_batch_of_which_nothing_is_left():
    bad = set(range(16, 32))
    loader = StreamingLoader(source(bad), plan(shuffle=False), None, on_error="skip", **AS_BYTES)
    filler = batches(loader, 0)[1]
    assert (len(filler), filler.weight, filler.index.tolist()) == (1, 0.0, [16])
    assert torch.equal(filler.images, torch.zeros(1, 3, SIDE, SIDE))
    assert filler.targets.tolist() == [0]
    evaluation = StreamingLoader(source(bad), plan(shuffle=False, fillers=False), None, on_error="skip", **AS_BYTES)
    assert [len(step) for step in evaluation.epoch(0)] == [1, 0, 1]


def test_an_epoch_without_one_readable_image():
    loader = StreamingLoader(source(set(range(COUNT))), plan(), None, on_error="skip", **AS_BYTES)
    with pytest.raises(DataError, match=r"None of the images of epoch 0 could be read. The first: Cannot read"):
        batches(loader, 0)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_image_that_the_crop_cannot_be_applied_to_is_no_damage(on_error):
    loader = StreamingLoader(
        Photographs(), Plan(10, 4, 0, False), Augmentation((20, 40)), on_error=on_error, **AS_BYTES
    )
    with pytest.raises(DataError, match=re.escape("photograph 1 is 21x39 and crop 'none' changes no sizes")):
        batches(loader, 0)
    assert loader.skipped == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(workers):
    loader = StreamingLoader(source(), plan(), None, workers=workers, **AS_BYTES)
    before = torch.get_rng_state()
    batches(loader, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_workers_get_can_be_sent_to_them():
    loader = StreamingLoader(source(), plan(shuffle=False), Augmentation(SIDE, crop="pad"), **AS_BYTES)
    key = next(iter(loader._keys))
    sent = pickle.loads(pickle.dumps(loader._decoded.dataset))
    assert torch.equal(sent[key].pixels, loader._decoded.dataset[key].pixels)
    assert len(pickle.dumps(key)) < 2000  # the micro-batch's indices, not the epoch's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_error": "ignore"}, "on_error='ignore' is unknown; choose 'stop' or 'skip'"),
        ({"workers": -1}, "workers=-1 and prefetch=2 must be at least 0 and 1"),
        ({"plan": Plan(5, 4, 0, True)}, "photographs has 10 images, which do not fit a plan of 5"),
        ({"augmentation": None}, "photographs has images of several sizes; an augmentation must bring them to one"),
    ],
)
def test_what_does_not_fit_together(change, message):
    arguments = {"plan": Plan(10, 4, 0, True), "augmentation": Evaluation(8), **AS_BYTES}
    with pytest.raises(DataError, match=message):
        StreamingLoader(Photographs(), **{**arguments, **change})
