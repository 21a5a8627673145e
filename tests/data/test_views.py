"""Views: the distribution of crops and flips, their pixels, and on what they depend."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from potstill.data.pixels import Raster
from potstill.data.views import Augmentation, Evaluation
from potstill.errors import DataError


def samples(count: int, view: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(count)
    return index, torch.full_like(index, view)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def off_by(most: int, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Two filters of whole numbers, each rounded in its own way, but of the same weights."""
    difference = ours.astype(int) - theirs.astype(int)
    assert np.abs(difference).max() <= most
    assert np.abs(difference).mean() < 0.3
    assert abs(difference.mean()) < 0.05


def test_pad_crop_offsets_are_uniform_over_all_places():
    top, left = Augmentation(32, crop="pad", padding=4, seed=1).offsets(*samples(81_000))
    counts = torch.bincount((top + 4) * 9 + left + 4, minlength=81).float()
    assert len(counts) == 81
    assert ((counts - 1000) ** 2 / 1000).sum() < 80 + 4 * 160**0.5


def test_half_of_the_views_are_mirrored_and_none_without_flip():
    index, view = samples(40_000)
    assert abs(Augmentation(32, flip=True).flips(index, view).float().mean() - 0.5) < 4 * 0.5 / 200
    assert not Augmentation(32, flip=False).flips(index, view).any()


def test_views_depend_on_seed_index_and_view_alone():
    augmentation = Augmentation(32, crop="pad", flip=True, seed=4)
    index, view = samples(500, view=3)
    top, left = augmentation.offsets(index, view)
    some = torch.tensor([400, 7, 7, 123])
    again_top, again_left = augmentation.offsets(some, torch.full_like(some, 3))
    assert torch.equal(again_top, top[some])
    assert torch.equal(again_left, left[some])
    assert not torch.equal(top, augmentation.offsets(index, view + 1)[0])
    assert not torch.equal(top, Augmentation(32, crop="pad", flip=True, seed=5).offsets(index, view)[0])


def test_the_first_views_are_pinned():
    """Part of AUGMENTATION_VERSION: a change of these numbers makes all that was stored under it wrong."""
    index, view = samples(6, view=1)
    cifar = Augmentation(32, crop="pad", flip=True)
    assert [t.tolist() for t in cifar.offsets(index, view)] == [[-1, 2, 0, -1, -3, -2], [-4, 2, 4, 1, -1, 4]]
    assert cifar.flips(index, view).int().tolist() == [1, 0, 1, 1, 1, 0]
    sides = torch.tensor([375, 500, 32, 1, 224, 300])
    boxes = Augmentation(224, crop="resized").boxes(index, view, sides, sides.flip(0))
    assert boxes.tolist() == [
        [36, 1, 268, 225],
        [201, 17, 241, 199],
        [15, 0, 1, 1],
        [0, 15, 1, 1],
        [0, 112, 223, 213],
        [32, 195, 167, 180],
    ]


def naive_box(part, ratio, heights, widths, row, column, bounds):
    """Random resized crop as its paper and torchvision describe it, one image and one try at a time."""
    for p, r in zip(part, ratio, strict=True):
        area = heights * widths * p
        wide, tall = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < wide <= widths and 0 < tall <= heights:
            return [row * (heights - tall + 1) >> 32, column * (widths - wide + 1) >> 32, tall, wide]
    shape = widths / heights
    if shape < bounds[0]:
        wide, tall = widths, round(widths / bounds[0])
    elif shape > bounds[1]:
        tall, wide = heights, round(heights * bounds[1])
    else:
        tall, wide = heights, widths
    return [(heights - tall) // 2, (widths - wide) // 2, tall, wide]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_are_those_of_ten_tries_one_after_another(scale):
    from potstill.data.random import bits, uniform

    augmentation = Augmentation(224, crop="resized", scale=scale, seed=9)
    index, view = samples(400, view=2)
    heights, widths = torch.randint(1, 90, (2, 400), generator=torch.Generator().manual_seed(0))
    boxes = augmentation.boxes(index, view, heights, widths).tolist()
    part = torch.stack([uniform(9, index, view, 16 + t) for t in range(10)], 1) * (scale[1] - scale[0]) + scale[0]
    span = math.log(4 / 3) - math.log(3 / 4)
    ratio = (torch.stack([uniform(9, index, view, 32 + t) for t in range(10)], 1) * span + math.log(3 / 4)).exp()
    rows, columns = bits(9, index, view, 1).tolist(), bits(9, index, view, 2).tolist()
    for n, box in enumerate(boxes):
        h, w = int(heights[n]), int(widths[n])
        assert box == naive_box(part[n].tolist(), ratio[n].tolist(), h, w, rows[n], columns[n], (3 / 4, 4 / 3))


def test_boxes_are_distributed_as_torchvisions():
    index, view = samples(4000)
    size = torch.full_like(index, 1), torch.full_like(index, 1)
    boxes = Augmentation(224, crop="resized").boxes(index, view, size[0] * 300, size[1] * 400).double()
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(224)
    image = torch.empty(3, 300, 400)
    drawn = [crop.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
    error = (boxes.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
    assert ((boxes.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    assert ((boxes.std(0) / theirs.std(0) - 1).abs() < 0.08).all()


def test_boxes_of_a_narrow_image_fall_back_to_the_centre():
    index, view = samples(2)
    heights, widths = torch.tensor([1000, 10]), torch.tensor([10, 1000])
    boxes = Augmentation(224, crop="resized", scale=(0.5, 1.0)).boxes(index, view, heights, widths)
    assert boxes.tolist() == [[493, 0, 13, 10], [0, 493, 10, 13]]


def test_pad_crop_pixels():
    augmentation = Augmentation((6, 5), crop="pad", padding=2, flip=True, seed=0)
    images = [picture(6, 5, n) for n in range(40)]
    index, view = samples(40, view=1)
    (top, left), mirrored = augmentation.offsets(index, view), augmentation.flips(index, view)
    for n, out in enumerate(augmentation.apply(images, index, view)):
        padded = np.pad(images[n], ((2, 2), (2, 2), (0, 0)))
        row, column = int(top[n]) + 2, int(left[n]) + 2
        expected = padded[row : row + 6, column : column + 5]
        np.testing.assert_array_equal(out, expected[:, ::-1] if mirrored[n] else expected)


def test_pad_crop_of_images_of_several_sizes():
    augmentation = Augmentation(8, crop="pad", padding=1)
    images = [picture(8, 20), picture(6, 7)]
    out = augmentation.apply(images, *samples(2))
    top, left = augmentation.offsets(*samples(2), torch.tensor([8, 6]), torch.tensor([20, 7]))
    assert top[1] == -1  # a padded image of the size of the crop has one place
    np.testing.assert_array_equal(
        out[0], np.pad(images[0], ((1, 1), (1, 1), (0, 0)))[top[0] + 1 :, left[0] + 1 :][:8, :8]
    )
    assert not out[1][0].any()
    np.testing.assert_array_equal(out[1][1:7, -int(left[1]) : 7 - int(left[1])], images[1])


def test_with_much_padding_a_window_may_lie_outside_altogether():
    augmentation = Augmentation(3, crop="pad", padding=9)
    index, view = samples(200)
    image = picture(4, 5)
    padded = np.pad(image, ((9, 9), (9, 9), (0, 0)))
    top, left = augmentation.offsets(index, view, torch.tensor(4), torch.tensor(5))
    for n, out in enumerate(augmentation.apply([image] * 200, index, view)):
        row, column = int(top[n]) + 9, int(left[n]) + 9
        np.testing.assert_array_equal(out, padded[row : row + 3, column : column + 3])


def test_resized_crop_pixels():
    augmentation = Augmentation((20, 30), crop="resized", flip=True, seed=2)
    images = [picture(40 + n, 60 - n, n) for n in range(8)]
    index, view = samples(8)
    sizes = torch.tensor([image.shape[:2] for image in images])
    boxes, mirrored = augmentation.boxes(index, view, *sizes.unbind(1)).tolist(), augmentation.flips(index, view)
    assert mirrored.any()
    for n, out in enumerate(augmentation.apply(images, index, view)):
        top, left, tall, wide = boxes[n]
        part = Image.fromarray(images[n]).crop((left, top, left + wide, top + tall))
        expected = np.asarray(part.resize((30, 20), Image.Resampling.BILINEAR))
        off_by(1, out, expected[:, ::-1] if mirrored[n] else expected)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (37, 37), (12, 90)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(height, width):
    image = picture(height, width)
    theirs = v2.Compose([v2.Resize(32), v2.CenterCrop(28)])
    ours = Evaluation(28, resize=8 / 7).apply([image], *samples(1))[0]
    np.testing.assert_array_equal(ours, theirs(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0))
    off_by(1, ours, np.asarray(theirs(Image.fromarray(image))))


def test_cuts_are_a_function_of_the_full_size_alone():
    """What is drawn before an image is decoded is what is drawn of its pixels."""
    images = [picture(40 + n, 60 - n, n) for n in range(6)]
    index, view = samples(6, view=3)
    for crop in (Augmentation(20, "resized", flip=True), Augmentation(20, "pad", flip=True), Evaluation((20, 16))):
        cuts = crop.cuts(index, view, [image.shape[:2] for image in images])
        applied = crop.apply(images, index, view)
        for n in range(6):
            alone = crop.cuts(index[n : n + 1], view[n : n + 1], [images[n].shape[:2]])
            assert alone == [cuts[n]]
            np.testing.assert_array_equal(cuts[n].pixels(Raster.of(images[n])), applied[n])


def test_the_scale_never_leaves_fewer_pixels_than_the_view_has():
    index, view = samples(300)
    sizes = [(100 + 3 * n, 1200 - 2 * n) for n in range(300)]
    for crop in (Augmentation((40, 60), "resized"), Evaluation((40, 60))):
        scales = set()
        for cut in crop.cuts(index, view, sizes):
            ratio = min(have / want for have, want in zip(cut.box[2:], cut.resized, strict=True))
            assert cut.scale <= max(ratio, 1)
            assert ratio < 2 * cut.scale or cut.scale == 8
            scales.add(cut.scale)
        assert scales >= {2, 4, 8}
    assert {cut.scale for cut in Augmentation(8, "pad").cuts(index, view, sizes)} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size of 0 has no pixels"),
        ({"crop": "random"}, "crop='random' is no crop; choose 'none', 'pad' or 'resized'"),
        ({"padding": -1}, "padding=-1 is negative"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\) must be two parts of the area"),
        ({"scale": (0.5, 1.5)}, r"scale=\(0.5, 1.5\) must be two parts of the area"),
        ({"ratio": (2.0, 1.0)}, r"ratio=\(2.0, 1.0\) must be two widths over heights"),
    ],
)
def test_values_that_describe_no_crop(settings, message):
    with pytest.raises(DataError, match=message):
        Augmentation(**{"size": 32, **settings})


def test_evaluation_never_shrinks_below_the_crop():
    with pytest.raises(DataError, match=r"resize=0.9 makes images smaller than the crop"):
        Evaluation(224, resize=0.9)


def test_images_that_a_crop_cannot_be_applied_to():
    with pytest.raises(
        DataError, match="An image is 30x32 and crop 'none' changes no sizes, but the size asked for is 32"
    ):
        Augmentation(32).apply([picture(30, 32)], *samples(1))
    with pytest.raises(DataError, match="An image is 30x20, which a padding of 4 does not bring to the 32x32"):
        Augmentation(32, crop="pad").apply([picture(30, 20)], *samples(1))
