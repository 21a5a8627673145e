"""Normalising and resampling on the device; that views have the host's pixels is tested with the resident loader."""

import numpy as np
import torch
from PIL import Image

from potstill.data.batched import Normalise, PackedViews, ResampledViews
from potstill.data.views import Augmentation, Evaluation

MEAN, STD = [0.1, 0.5, 0.9], [0.2, 0.25, 0.5]
KEEP = Normalise([0, 0, 0], [1 / 255] * 3)  # a pixel keeps its value


def test_normalise_of_three_and_of_four_channels():
    pixels = torch.randint(0, 256, (2, 4, 5, 4), dtype=torch.uint8)
    normalise = Normalise(MEAN, STD)
    torch.testing.assert_close(normalise(pixels), normalise(pixels[..., :3].contiguous()), rtol=0, atol=0)
    before = pixels.float()
    floats = before[..., :3].contiguous()
    kept = floats.clone()
    normalise(floats)
    assert torch.equal(floats, kept)  # the input is not written to


def test_normalise_is_the_formula():
    pixels = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    expected = ((pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()).permute(0, 3, 1, 2)
    torch.testing.assert_close(Normalise(MEAN, STD)(pixels), expected.float(), rtol=1e-5, atol=1e-6)


def test_large_and_small_batches_are_normalised_alike():
    """From some size on a batch lies in memory of another kind."""
    pixels = torch.randint(0, 256, (6, 300, 301, 3), dtype=torch.uint8)
    normalise = Normalise(MEAN, STD)
    together = normalise(pixels)
    assert together.numel() > 1 << 20
    assert torch.equal(together, torch.cat([normalise(pixels[n : n + 1]) for n in range(6)]))
    assert together.data_ptr() % 64 == 0
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert not together.requires_grad
    padded = torch.cat([pixels, pixels[..., :1]], dim=3)
    assert torch.equal(normalise(padded), together)


def test_normalise_of_no_images():
    assert Normalise(MEAN, STD)(torch.empty((0, 4, 5, 3), dtype=torch.uint8)).shape == (0, 3, 4, 5)


def test_packed_views_of_a_repeated_and_unordered_index():
    images = torch.randint(0, 256, (5, 3, 4, 3), dtype=torch.uint8)
    index = torch.tensor([4, 0, 4, 2])
    views = PackedViews(images, None, KEEP)(index, torch.zeros_like(index))
    assert torch.equal(views, images[index].permute(0, 3, 1, 2).float())


def test_resampling_is_pils_filter_when_shrinking_and_enlarging():
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    zero = torch.zeros(1, dtype=torch.int64)
    for size in ((7, 11), (50, 40), (24, 80)):
        whole = Augmentation(size, crop="resized", scale=(1.0, 1.0), ratio=(36 / 24, 36 / 24))
        assert whole.boxes(zero, zero, zero + 24, zero + 36).tolist() == [[0, 0, 24, 36]]
        ours = ResampledViews(torch.from_numpy(image)[None], whole, KEEP)(zero, zero)[0].permute(1, 2, 0).numpy()
        theirs = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)
        assert np.abs(ours - theirs).max() <= 1.001
        assert np.abs(ours - theirs).mean() < 0.4  # rounding alone


def test_one_evaluation_for_every_view_number():
    images = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8)
    views = ResampledViews(images, Evaluation(16), KEEP)
    index = torch.arange(2)
    assert torch.equal(views(index, index * 0), views(index, index + 9))
