"""The loader of scenes: padded batches with boxes or masks, whatever the workers, and images that cannot be used."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.batch import Batch
from potstill.data.boxes import BoxSource, Category, ImageRow, ObjectRow
from potstill.data.masks import MaskSource
from potstill.data.order import Plan
from potstill.data.scene_loader import SceneLoader
from potstill.data.scene_view import SceneAugmentation, SceneEvaluation, scene
from potstill.data.scenes import open_scenes
from potstill.errors import DataError

COUNT = 11
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
VIEW = SceneAugmentation((30, 40, 50), longest=70, flip=True, seed=2)
CROP = SceneAugmentation((40,), longest=80, crop=48, scale=(0.7, 1.8), seed=2)
SIZES = [(40 + 3 * number, 60 - 2 * number) for number in range(COUNT)]  # (height, width)


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)


def with_boxes(folder: Path) -> BoxSource:
    """Image i has i % 4 boxes to learn from, and image 3 a crowd region besides."""
    rows, objects = [], []
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(noise(number)).save(folder / f"{number}.png")
        rows.append(ImageRow(number, f"{number}.png", height, width))
        for one in range(number % 4):
            box = (2 + 5.0 * one, 3.0 + one, 20.0, 15.0 + one)
            objects.append(ObjectRow(len(objects), number, (number + one) % 3, box, 1.0, False))
    objects.append(ObjectRow(99, 3, 0, (0.0, 0.0, 30.0, 30.0), 900.0, True))
    return BoxSource(folder, rows, objects, [Category(i, name) for i, name in enumerate("abc")], name="noise")


def with_masks(folder: Path) -> MaskSource:
    for number in range(COUNT):
        Image.fromarray(noise(number)).save(folder / f"{number}.png")
        Image.fromarray(noise(number)[..., 0] % 3).save(folder / f"m{number}.png")
    pairs = [(f"{number}.png", f"m{number}.png") for number in range(COUNT)]
    return MaskSource(folder, folder, pairs, ("a", "b", "c"), name="noise", root=folder)


def plan(**settings) -> Plan:
    return Plan(**{"length": COUNT, "batch_size": 4, "seed": 1, "shuffle": True, **settings})


def loader(source: BoxSource | MaskSource, view=VIEW, order: Plan | None = None, **settings) -> SceneLoader:
    masks = isinstance(source, MaskSource)
    return SceneLoader(source, order or plan(), view, MEAN, STD, masks=masks, **settings)


def batches(one: SceneLoader, epoch: int = 0, start: int = 0) -> list[Batch]:
    return [batch for step in one.epoch(epoch, start) for batch in step]


def check_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for field in ("images", "targets", "index", "view"):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0)
        assert a.weight == b.weight
        assert a.images.stride() == b.images.stride()
        assert (a.objects is None) == (b.objects is None)
        if a.objects is not None:
            assert (a.objects.sizes, a.objects.originals) == (b.objects.sizes, b.objects.originals)
            for x, y in zip((*a.objects.boxes, *a.objects.labels), (*b.objects.boxes, *b.objects.labels), strict=True):
                assert torch.equal(x, y)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def test_a_batch_holds_each_image_with_its_boxes_and_zeros_around(tmp_path):
    source = with_boxes(tmp_path)
    seen = []
    for batch in batches(loader(source), epoch=3):
        assert batch.targets is None
        assert batch.view.tolist() == [3] * len(batch)
        assert batch.images.dtype == torch.float32
        assert len(batch.objects) == len(batch.objects.boxes) == len(batch.objects.labels) == len(batch)
        tall, wide = batch.images.shape[2:]
        most = [max(side) for side in zip(*batch.objects.sizes, strict=True)]
        assert [tall % 32, wide % 32, 0 <= tall - most[0] < 32, 0 <= wide - most[1] < 32] == [0, 0, True, True]
        for position, index in enumerate(batch.index.tolist()):
            given = source.objects(index)
            place = VIEW.place(index, 3, *SIZES[index])
            expected = scene(noise(index), place, given.boxes[~given.crowd])
            height, width = batch.objects.sizes[position]
            assert (height, width) == place.size
            assert batch.objects.originals[position] == SIZES[index]
            image = batch.images[position]
            torch.testing.assert_close(
                image[:, :height, :width].double(), normalised(expected.pixels), rtol=0, atol=1e-5
            )
            assert image[:, height:].abs().sum() == 0
            assert image[:, :, width:].abs().sum() == 0
            assert torch.equal(batch.objects.boxes[position], expected.boxes)
            assert len(expected.boxes) == index % 4  # the crowd region is not among them
            assert batch.objects.labels[position].tolist() == [(index + one) % 3 for one in range(index % 4)]
            seen.append(index)
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("view", [CROP, SceneEvaluation(40, 60)])
def test_a_batch_of_segmentation_has_255_around_its_masks(tmp_path, view):
    source = with_masks(tmp_path)
    for batch in batches(loader(source, view), epoch=1):
        assert batch.objects is None
        assert batch.targets.dtype == torch.int64
        assert batch.targets.shape == (len(batch), *batch.images.shape[2:])
        if view is CROP:
            assert batch.targets.shape[1:] == (64, 64)  # the window's 48, up to a multiple of 32, in every batch
        for image, target, index in zip(batch.images, batch.targets, batch.index.tolist(), strict=True):
            place = view.place(index, 1, *SIZES[index])
            expected = scene(noise(index), place, np.zeros((0, 4), np.float32), source.mask(index))
            height, width = place.size
            torch.testing.assert_close(
                image[:, :height, :width].double(), normalised(expected.pixels), rtol=0, atol=1e-5
            )
            assert torch.equal(target[:height, :width], expected.mask.long())
            assert {*target[:height, :width].unique().tolist()} == {0, 1, 2}
            assert (target[height:] == 255).all()
            assert (target[:, width:] == 255).all()
            assert image[:, height:].abs().sum() + image[:, :, width:].abs().sum() == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [with_boxes, with_masks])
def test_the_same_batches_whatever_the_workers_and_from_any_step(tmp_path, kind, workers):
    source, view = kind(tmp_path), VIEW if kind is with_boxes else CROP
    alone, together = loader(source, view), loader(source, view, workers=workers)
    for epoch in (0, 4):
        whole = batches(alone, epoch)
        assert [len(batch) for batch in whole] == [4, 4, 3]
        for start in (0, 2, 1, 3):
            check_same(batches(together, epoch, start), whole[start:])
            check_same(batches(alone, epoch, start), whole[start:])


def test_an_epoch_may_be_left_and_another_begun(tmp_path):
    source = with_boxes(tmp_path)
    one = loader(source, workers=2)
    next(one.epoch(0))
    check_same(batches(one, 1), batches(loader(source), 1))


def test_shares_of_a_step_are_its_samples_with_their_weights(tmp_path):
    source = with_boxes(tmp_path)
    whole = batches(loader(source), 2)
    sums = torch.zeros(COUNT)
    for rank in range(2):
        shares = list(loader(source, order=plan(rank=rank, world=2, accumulate=2)).epoch(2))
        assert [len(step) for step in shares] == [2, 2, 2]
        for step, batch in zip(shares, whole, strict=True):
            for share in step:
                assert {*share.index.tolist()} <= {*batch.index.tolist()}
                sums[share.index] += share.weight / len(share) / 2 * len(batch)
    assert sums.tolist() == [1.0] * COUNT


def test_views_come_round_and_the_order_does_not(tmp_path):
    one = loader(with_boxes(tmp_path), views=2)
    first, third = batches(one, 0), batches(one, 2)
    assert {view for batch in third for view in batch.view.tolist()} == {0}
    assert [batch.index.tolist() for batch in first] != [batch.index.tolist() for batch in third]
    sizes = [
        {i: size for batch in found for i, size in zip(batch.index.tolist(), batch.objects.sizes, strict=True)}
        for found in (first, third, batches(one, 1))
    ]
    assert sizes[0] == sizes[1] != sizes[2]
    with pytest.raises(DataError, match="views=0 leaves nothing to be seen"):
        loader(with_boxes(tmp_path), views=0)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_at_a_damaged_image_with_its_own_sentence(tmp_path, workers):
    source = with_boxes(tmp_path)
    damage(tmp_path / "6.png")
    steps = loader(source, order=plan(shuffle=False), workers=workers).epoch(0)
    next(steps)
    with pytest.raises(DataError, match=r"^Cannot read the image .*6\.png: .* Mend or remove it, or set data.on_error"):
        next(steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_skip_images_that_cannot_be_used_and_name_each_once(tmp_path, workers):
    source = with_boxes(tmp_path)
    damage(tmp_path / "6.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "1.png")  # of another size than its annotations
    one = loader(source, order=plan(shuffle=False), workers=workers, on_error="skip")
    for epoch in range(2):
        found = batches(one, epoch)
        assert [batch.index.tolist() for batch in found] == [[0, 2, 3], [4, 5, 7], [8, 9, 10]]
        assert [batch.weight for batch in found] == [3 / 4, 3 / 4, 1.0]
        assert [len(boxes) for batch in found for boxes in batch.objects.boxes] == [0, 2, 3, 0, 1, 3, 0, 1, 2]
        assert list(one.skipped) == [source.describe(1), source.describe(6)]
        assert "is 5 pixels high and 5 wide, but its annotations are for" in one.skipped[source.describe(1)]


def test_masks_that_do_not_fit_stop_or_are_skipped(tmp_path):
    source = with_masks(tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "m2.png")
    damage(tmp_path / "m5.png")
    Image.fromarray(np.full(SIZES[9], 7, np.uint8)).save(tmp_path / "m9.png")
    order = plan(shuffle=False)
    one = loader(source, CROP, order, on_error="skip")
    assert [batch.index.tolist() for batch in batches(one)] == [[0, 1, 3], [4, 6, 7], [8, 10]]
    reasons = [one.skipped[source.describe(number)] for number in (2, 5, 9)]
    for reason, said in zip(
        reasons, ("m2.png is 5 pixels high", "Cannot read the mask", "values that are no class, 7"), strict=True
    ):
        assert said in reason
    with pytest.raises(DataError, match=r"m2\.png is 5 pixels high and 5 wide, but its image is 46 high and 56 wide"):
        batches(loader(source, CROP, order))


@pytest.mark.parametrize("kind", [with_boxes, with_masks])
def test_a_batch_of_which_nothing_is_left(tmp_path, kind):
    source, view = kind(tmp_path), VIEW if kind is with_boxes else CROP
    for number in range(4, 8):
        damage(tmp_path / f"{number}.png")
    filler = batches(loader(source, view, plan(shuffle=False), on_error="skip"))[1]
    assert (len(filler), filler.weight, filler.index.tolist(), filler.view.tolist()) == (1, 0.0, [4], [0])
    if kind is with_boxes:
        assert [tuple(boxes.shape) for boxes in filler.objects.boxes] == [(0, 4)]
        assert [labels.dtype for labels in filler.objects.labels] == [torch.int64]
        assert filler.objects.sizes == filler.objects.originals == ((64, 64),)
        assert filler.images.shape == (1, 3, 64, 64)
    else:
        assert torch.equal(filler.targets, torch.zeros(1, 64, 64, dtype=torch.int64))
    evaluation = loader(source, view, plan(shuffle=False, fillers=False), on_error="skip")
    assert [len(step) for step in evaluation.epoch(0)] == [1, 0, 1]


def test_an_epoch_without_one_image_that_can_be_used(tmp_path):
    source = with_boxes(tmp_path)
    for number in range(COUNT):
        damage(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=r"None of the images of epoch 0 could be used. The first: Cannot read"):
        batches(loader(source, on_error="skip"))


def test_tuples_stay_tuples_where_memory_is_pinned(tmp_path):
    """Pinning hands a tuple on as a list; what is compared and hashed later must not differ by the device."""
    one = loader(with_boxes(tmp_path))
    found = one._decoded.dataset[[4, 5], [0]]
    pinned = found._replace(sizes=[list(size) for size in found.sizes], originals=[list(s) for s in found.originals])
    batch = one._batch(torch.tensor([4, 5]), 0, 1.0, pinned)
    assert batch.objects.sizes == found.sizes
    assert batch.objects.originals == (SIZES[4], SIZES[5])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(tmp_path, workers):
    before = torch.get_rng_state()
    batches(loader(with_boxes(tmp_path), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [with_boxes, with_masks])
def test_what_workers_get_can_be_sent_to_them(tmp_path, kind):
    decoder = loader(kind(tmp_path)).__dict__["_decoded"].dataset
    sent = pickle.loads(pickle.dumps(decoder))
    assert torch.equal(sent[[3], [1]].pixels, decoder[[3], [1]].pixels)


def test_what_the_loop_and_the_judge_ask_of_a_loader(tmp_path):
    one = loader(with_boxes(tmp_path), views=3)
    assert (one.steps, one.labels, one.mixing, one.skipped, one.number_of_views) == (3, None, None, {}, 3)
    assert one.plan == plan()
    assert one.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_error": "ignore"}, "on_error='ignore' is unknown; choose 'stop' or 'skip'"),
        ({"workers": -1}, "workers=-1 and prefetch=2 must be at least 0 and 1"),
        ({"plan": Plan(5, 4, 0, True)}, "noise has 11 images, which do not fit a plan of 5"),
        ({"masks": True}, "noise has boxes, but masks were asked for"),
        ({"std": [1, 1]}, "must be three numbers each"),
    ],
)
def test_what_does_not_fit_together(tmp_path, change, message):
    arguments = {"source": with_boxes(tmp_path), "plan": plan(), "view": VIEW, "mean": MEAN, "std": STD}
    with pytest.raises(DataError, match=message):
        SceneLoader(**{**arguments, **change})


def test_an_epoch_of_the_blood_cells_has_every_box_once(shared_data):
    source = open_scenes("detection", shared_data("bccd")).train
    view = SceneAugmentation((240, 280, 320), longest=430, seed=1)
    order = Plan(len(source), 16, seed=0, shuffle=True)
    one = SceneLoader(source, order, view, *source.statistics, workers=2)
    total, smallest = 0, 1e9
    for batch in batches(one):
        assert (torch.tensor(batch.objects.sizes).amin(dim=1).unique()[:, None] == torch.tensor([240, 280, 320])).any()
        for boxes, (height, width) in zip(batch.objects.boxes, batch.objects.sizes, strict=True):
            total += len(boxes)
            assert (boxes >= 0).all()
            assert (boxes[:, [0, 2]] <= width).all()
            assert (boxes[:, [1, 3]] <= height).all()
            smallest = min(smallest, float((boxes[:, 2:] - boxes[:, :2]).min()))
    assert total == source.boxes == 2804
    assert smallest >= 1
