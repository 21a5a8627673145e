"""The streaming loader: the resident loader's batches whatever the workers, and what becomes of damaged images."""

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.decode import EncodedImage
from potstill.data.folder import FolderSource
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
    monkeypatch.setattr("potstill.data.decoder._HELD", 1000)
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
    sent = pickle.loads(pickle.dumps(loader._decoder))
    assert torch.equal(sent[key].pixels[0], loader._decoder[key].pixels[0])
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


@pytest.fixture
def photographs(shared_data) -> FolderSource:
    """119 photographs of about 500 x 375."""
    return FolderSource(shared_data("imagenet-samples"))


def jpegs(folder: Path, sizes: list[tuple[int, int]], damaged: tuple[int, ...] = ()) -> FolderSource:
    """Noise that is smooth enough to look like photographs, (height, width) each, some cut short."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / f"{number:03d}.jpg"
        small.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        if number in damaged:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return FolderSource(folder)


def of_photographs(source: Source, view=None, **settings) -> StreamingLoader:
    order = Plan(len(source), settings.pop("batch_size", 16), seed=3, shuffle=True)
    view = view or Augmentation(64, crop="resized", flip=True, seed=5)
    return StreamingLoader(source, order, view, **{**AS_BYTES, **settings})


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_of_photographs_resumes_with_the_very_same_batches(photographs, workers):
    whole = [batch for step in of_photographs(photographs).epoch(4) for batch in step]
    resumed = of_photographs(photographs, workers=workers)
    for start in (5, 3):
        rest = [batch for step in resumed.epoch(4, start=start) for batch in step]
        assert len(rest) == 8 - start
        check_same(rest, whole[start:])
    check_same(batches(resumed, 4), whole)


@pytest.mark.parametrize("view", [Augmentation(96, "resized", flip=True), Augmentation(224, "resized"), Evaluation(96)])
def test_a_smaller_decoding_changes_photographs_little(photographs, view):
    draft, full = (
        batches(of_photographs(photographs, view, draft=draft, batch_size=119), 0)[0] for draft in (True, False)
    )
    assert torch.equal(draft.index, full.index)
    sizes = [EncodedImage(photographs.encoded(int(i)), "x").full for i in draft.index]
    reduced = torch.tensor([cut.scale > 1 for cut in view.cuts(draft.index, draft.view, sizes)])
    assert reduced.any()
    assert torch.equal(draft.images[~reduced], full.images[~reduced])
    difference = draft.images[reduced] - full.images[reduced]
    assert difference.any()
    assert difference.abs().mean(dim=(1, 2, 3)).max() < 3  # of 255, the worst photograph
    assert difference.abs().mean() < 1.5
    assert difference.mean(dim=(1, 2, 3)).abs().max() < 0.2  # neither brighter nor darker


def test_without_draft_pixels_are_those_of_the_whole_image(photographs):
    view = Augmentation(48, crop="resized", flip=True)
    (batch,) = batches(of_photographs(photographs, view, draft=False, batch_size=119), 2)
    expected = view.apply([photographs.image(int(i)) for i in batch.index], batch.index, batch.view)
    assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(expected).float())


def test_turned_photographs_are_seen_upright_at_every_scale(tmp_path):
    """A photograph stored lying, with the EXIF orientation that says so, shows what the one stored upright does."""
    upright = jpegs(tmp_path / "upright", [(330, 250)] * 8)
    turned = tmp_path / "turned"
    turned.mkdir()
    for number in range(1, 9):
        image = Image.open(upright.encoded(number - 1))
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(number)  # PIL's number of what undoes the turn
        exif = Image.Exif()
        exif[0x0112] = number
        (image if undo is None else image.transpose(undo)).save(turned / f"{number:03d}.jpg", quality=98, exif=exif)
    for view in (Augmentation(30, "resized", flip=True), Augmentation(60, "resized"), Evaluation(32), Evaluation(100)):
        ours, theirs = (batches(of_photographs(one, view), 1)[0] for one in (FolderSource(turned), upright))
        scales = {cut.scale for cut in view.cuts(ours.index, ours.view, [(330, 250)] * 8)}
        assert scales != {1}
        assert (ours.images - theirs.images).abs().mean(dim=(1, 2, 3)).max() < 3  # of 255, saved twice


def test_the_view_of_an_epoch_comes_round_and_the_order_does_not(photographs):
    loader = of_photographs(photographs, views=3)
    images, labels = np.stack([np.full((8, 8, 3), i, np.uint8) for i in range(40)]), np.arange(40)
    resident = ResidentLoader(
        images, labels, Plan(40, 16, 3, True), Augmentation(8, "pad", flip=True), **AS_BYTES, views=3
    )
    for each in (loader, resident):
        first, fourth, fifth = (batches(each, epoch) for epoch in (0, 3, 4))
        orders = [torch.cat([batch.index for batch in found]) for found in (first, fourth, fifth)]
        assert [{v for batch in found for v in batch.view.tolist()} for found in (first, fourth, fifth)] == [
            {0}, {0}, {1},
        ]  # fmt: skip
        assert not torch.equal(orders[0], orders[1])
        assert torch.equal(orders[1], each.plan.order(3))
        pixels = [
            torch.cat([b.images for b in found])[order.argsort()]
            for found, order in zip((first, fourth, fifth), orders, strict=True)
        ]
        assert torch.equal(pixels[0], pixels[1])
        assert not torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize("views", [0, -1])
def test_no_views_are_refused(loader, views):
    kind, given = (
        (ResidentLoader, (source().arrays(), None)) if loader == "resident" else (StreamingLoader, (source(),))
    )
    with pytest.raises(DataError, match=f"views={views} leaves nothing to be seen of a sample"):
        kind(*given, plan(), None, **AS_BYTES, views=views)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["photographs", "arrays", "resident"])
def test_requested_views_are_those_of_the_epochs(request, kind, workers):
    if kind == "photographs":
        loader = of_photographs(request.getfixturevalue("photographs"), workers=workers, mixing=Mixing(119, mixup=1.0))
        plain = of_photographs(request.getfixturevalue("photographs"))
    else:
        augmentation, found = Augmentation(SIDE, "pad", flip=True, seed=2), source()
        loader, plain = (
            StreamingLoader(found, plan(), augmentation, workers=workers, mixing=mixing, **AS_BYTES)
            if kind == "arrays"
            else ResidentLoader(found.arrays(), found.labels, plan(), augmentation, mixing=mixing, **AS_BYTES)
            for mixing in (Mixing(4, mixup=1.0), None)
        )
    by_view = {
        view: {
            int(i): (image, target)
            for b in batches(plain, view)
            for i, image, target in zip(b.index, b.images, b.targets, strict=True)
        }
        for view in (0, 1, 7)
    }
    requests = [
        (torch.tensor([5, 0, 39, 5]), [7, 0]),
        (torch.tensor([3]), [1]),
        (torch.arange(20, 30), [0, 1, 7]),
    ]
    answers = list(loader.requested(iter(requests)))
    assert [[batch.view.tolist() for batch in answer] for answer in answers] == [
        [[view] * len(index) for view in views] for index, views in requests
    ]
    for (index, views), answer in zip(requests, answers, strict=True):
        for view, batch in zip(views, answer, strict=True):
            assert torch.equal(batch.index, index)
            assert batch.weight == 1.0
            assert torch.equal(batch.images, torch.stack([by_view[view][int(i)][0] for i in index]))
            assert torch.equal(batch.targets, torch.stack([by_view[view][int(i)][1] for i in index]))
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_request_does_not_disturb_a_running_epoch(photographs, workers):
    loader = of_photographs(photographs, workers=workers)
    expected = batches(loader, 1)
    running, found = loader.epoch(1), []
    found += next(running)
    asked = loader.requested((torch.tensor([n]), [0]) for n in range(20))
    assert next(asked)[0].index.tolist() == [0]
    found += next(running)
    assert [answer[0].index.item() for answer in asked] == list(range(1, 20))
    abandoned = loader.requested((torch.tensor([n]), [0]) for n in range(20))
    next(abandoned)
    abandoned.close()
    found += [batch for step in running for batch in step]
    check_same(found, expected)


def test_an_image_is_decoded_once_for_all_views_of_a_request(photographs, monkeypatch):
    decoded = []
    raster = EncodedImage.raster
    monkeypatch.setattr(
        EncodedImage, "raster", lambda self, scale=1: decoded.append((self.name, scale)) or raster(self, scale)
    )
    index, views = torch.arange(30), list(range(6))
    list(of_photographs(photographs, draft=False).requested([(index, views)]))
    assert sorted(decoded) == [(photographs.describe(i), 1) for i in range(30)]
    decoded.clear()
    view = Augmentation(64, crop="resized", flip=True, seed=5)
    list(of_photographs(photographs, view).requested([(index, views)]))
    sizes = [EncodedImage(photographs.encoded(i), "x").full for i in range(30)]
    needed = {
        (photographs.describe(i), cut.scale)
        for number in views
        for i, cut in enumerate(view.cuts(index, torch.full_like(index, number), sizes))
    }
    assert sorted(decoded) == sorted(needed)  # each scale once


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_of_a_request(tmp_path, workers):
    found = jpegs(tmp_path / "some", [(60, 80)] * 6, damaged=(1, 4))
    skipping = of_photographs(found, workers=workers, on_error="skip")
    both, none, first = skipping.requested(
        [(torch.tensor([4, 0, 1, 5]), [0, 3]), (torch.tensor([1, 4]), [2]), (torch.tensor([0]), [0])]
    )
    assert [batch.index.tolist() for batch in both] == [[0, 5], [0, 5]]
    assert [tuple(batch.images.shape) for batch in both] == [(2, 3, 64, 64)] * 2
    assert (none[0].index.tolist(), tuple(none[0].images.shape), none[0].weight) == ([], (0, 3, 64, 64), 1.0)
    assert torch.equal(first[0].images[0], both[0].images[0])
    assert sorted(skipping.skipped) == [found.describe(1), found.describe(4)]
    stopping = of_photographs(found, workers=workers)
    with pytest.raises(DataError, match=r"^Cannot read the image .*004\.jpg: .*truncated.*data\.on_error=skip"):
        list(stopping.requested([(torch.tensor([0, 4, 1]), [0])]))


@pytest.mark.parametrize(
    ("index", "views", "message"),
    [
        (torch.tensor([0, 40]), [0], "Samples 0 to 40 were requested of a source whose samples are 0 to 39"),
        (torch.tensor([-1]), [0], "Samples -1 to -1 were requested"),
        (torch.tensor([0.0]), [0], r"Indices \(1,\) of torch.float32 in 1 views were requested"),
        (torch.tensor([[0]]), [0], r"Indices \(1, 1\) of torch.int64"),
        (torch.tensor([], dtype=torch.int64), [0], r"Indices \(0,\) of torch.int64 in 1 views"),
        (torch.tensor([0]), [], "in 0 views were requested; at least one int64"),
    ],
)
def test_requests_that_ask_for_nothing_that_there_is(index, views, message):
    resident = ResidentLoader(source().arrays(), None, plan(), None, **AS_BYTES)
    for loader in (StreamingLoader(source(), plan(), None, **AS_BYTES), resident):
        with pytest.raises(DataError, match=message):
            list(loader.requested([(index, views)]))


@pytest.mark.parametrize("draft", [True, False])
def test_truncated_photographs_stop_or_are_skipped_in_their_order(tmp_path, draft):
    found = jpegs(tmp_path / "some", [(300, 400)] * 10, damaged=(3, 7))
    (tmp_path / "some" / "005.jpg").write_bytes(b"")
    order = Plan(10, 10, 0, shuffle=False)
    view = Augmentation(40, "resized")
    skipping = StreamingLoader(found, order, view, **AS_BYTES, draft=draft, on_error="skip")
    (batch,) = batches(skipping, 0)
    assert batch.index.tolist() == [0, 1, 2, 4, 6, 8, 9]
    assert batch.weight == 0.7
    assert list(skipping.skipped) == [found.describe(n) for n in (3, 5, 7)]
    assert "it is empty (0 bytes)" in skipping.skipped[found.describe(5)]
    with pytest.raises(DataError, match=r"003\.jpg: image file is truncated"):
        batches(StreamingLoader(found, order, view, **AS_BYTES, draft=draft), 0)


def test_an_image_too_small_for_the_crop_is_skipped_where_it_is_damaged_too(tmp_path):
    found = jpegs(tmp_path / "some", [(60, 80), (20, 20)])
    small = found.encoded(1)
    small.write_bytes(small.read_bytes()[:-30])
    view = Augmentation(48, crop="pad", padding=2)
    loader = StreamingLoader(found, Plan(2, 2, 0, False), view, **AS_BYTES, on_error="skip")
    assert batches(loader, 0)[0].index.tolist() == [0]
    assert "truncated" in loader.skipped[found.describe(1)]


def test_workers_say_nothing(photographs, recwarn, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(of_photographs(photographs, workers=2), 0)
    assert capfd.readouterr() == ("", "")
