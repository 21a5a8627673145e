"""The device-resident loader: the same pixels as one image at a time, every sample once, resumable."""

import numpy as np
import pytest
import torch

from potstill.data.mixing import Mixing
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation, Evaluation
from potstill.errors import DataError

COUNT, HEIGHT, WIDTH = 60, 14, 11
MEAN, STD = [0.1, 0.5, 0.9], [0.2, 0.25, 0.5]
AS_BYTES = {"mean": [0, 0, 0], "std": [1 / 255] * 3}  # normalised so, a pixel keeps its value


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)


def plan(**settings) -> Plan:
    return Plan(**{"length": COUNT, "batch_size": 16, "seed": 1, "shuffle": True, **settings})


def batches(loader, epoch: int, start: int = 0) -> list:
    return [batch for step in loader.epoch(epoch, start) for batch in step]


@pytest.mark.parametrize(
    ("augmentation", "tolerance"),
    [
        (Augmentation((HEIGHT, WIDTH), crop="pad", padding=3, flip=True, seed=1), 0),
        (Augmentation((HEIGHT - 2, WIDTH + 4), crop="pad", padding=3, flip=True, seed=1), 0),
        (Augmentation((HEIGHT, WIDTH), flip=True, seed=1), 0),
        # PIL rounds to whole values after each of its two passes.
        (Augmentation((9, 16), crop="resized", flip=True, seed=1), 1.001),
        (Evaluation((9, 16)), 1.001),
        (Evaluation(8, resize=1.0), 1.001),
    ],
)
def test_pixels_are_those_of_the_host(images, augmentation, tolerance):
    loader = ResidentLoader(images, None, plan(), augmentation, **AS_BYTES)
    for batch in batches(loader, epoch=3):
        host = augmentation.apply([images[i] for i in batch.index], batch.index, batch.view)
        # At tolerance 0 the sums are of whole numbers and exact.
        torch.testing.assert_close(
            batch.images, torch.from_numpy(host).permute(0, 3, 1, 2).float(), rtol=0, atol=tolerance
        )


def test_a_resized_crop_of_a_smooth_image_is_the_smooth_image():
    """A ramp stays a ramp: the box is placed right to a fraction of a pixel, in both directions."""
    ramp = np.zeros((20, 40, 40, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(40) * 6, np.arange(40)[:, None] * 6
    augmentation = Augmentation(10, crop="resized", scale=(0.3, 0.5), seed=0)
    loader = ResidentLoader(ramp, None, Plan(20, 20, 0, False), augmentation, **AS_BYTES)
    (batch,) = batches(loader, 0)
    sides = torch.full((20,), 40)
    top, left, tall, wide = augmentation.boxes(batch.index, batch.view, sides, sides).unbind(1)
    inner = torch.arange(1, 9) + 0.5
    across = (left[:, None] + inner * wide[:, None] / 10 - 0.5) * 6
    down = (top[:, None] + inner * tall[:, None] / 10 - 0.5) * 6
    torch.testing.assert_close(batch.images[:, 0, 5, 1:9], across, rtol=0, atol=0.6)  # a tenth of a pixel
    torch.testing.assert_close(batch.images[:, 1, 1:9, 5], down, rtol=0, atol=0.6)  # a tenth of a pixel


def test_normalised_with_mean_and_std(images):
    loader = ResidentLoader(images, np.arange(COUNT), plan(shuffle=False), None, MEAN, STD)
    first = next(loader.epoch(0))[0]
    expected = (images[:16].transpose(0, 3, 1, 2) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    torch.testing.assert_close(first.images, torch.from_numpy(expected).float())
    assert first.images.dtype == torch.float32
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.targets.tolist() == list(range(16))
    assert first.targets.dtype == torch.int64


def test_every_sample_once_with_its_label_and_view(images):
    labels = np.arange(COUNT) * 3
    loader = ResidentLoader(images, labels, plan(), None, **AS_BYTES)
    found = batches(loader, epoch=5)
    assert [len(batch) for batch in found] == [16, 16, 16, 12]
    index = torch.cat([batch.index for batch in found])
    assert torch.equal(index, loader.plan.order(5))
    assert torch.equal(torch.cat([batch.targets for batch in found]), index * 3)
    assert {view for batch in found for view in batch.view.tolist()} == {5}


@pytest.mark.parametrize("together", [1, 3, 100])
def test_steps_made_together_are_those_made_alone(images, together):
    augmentation = Augmentation((HEIGHT, WIDTH), crop="pad", flip=True)
    loader = ResidentLoader(images, None, plan(batch_size=7), augmentation, MEAN, STD)
    alone = ResidentLoader(images, None, plan(batch_size=7), augmentation, MEAN, STD)
    loader._together, alone._together = together, 1
    for a, b in zip(batches(loader, 2), batches(alone, 2), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_resume_inside_an_epoch(images):
    settings = (images, np.arange(COUNT), plan(), Augmentation((HEIGHT, WIDTH), crop="pad", flip=True), MEAN, STD)
    mixing = Mixing(classes=COUNT, mixup=1.0, cutmix=1.0)
    whole = batches(ResidentLoader(*settings, mixing=mixing), 4)
    rest = batches(ResidentLoader(*settings, mixing=mixing), 4, start=2)
    assert len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


def test_processes_and_micro_batches_share_the_samples(images):
    seen = []
    for rank in range(2):
        loader = ResidentLoader(images, None, plan(rank=rank, world=2, accumulate=3), None, **AS_BYTES)
        steps = list(loader.epoch(0))
        assert [len(step) for step in steps] == [3] * 4
        for k, step in enumerate(steps):
            for batch, (index, weight) in zip(step, loader.plan.step(0, k), strict=True):
                assert torch.equal(batch.index, index)
                assert batch.weight == weight
                expected = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float()
                assert torch.equal(batch.images, expected)
                seen += batch.index.tolist()
    assert sorted(seen) == list(range(COUNT))


def test_a_process_without_samples(images):
    def steps(fillers: bool) -> list:
        settings = plan(batch_size=59, rank=0, world=2, fillers=fillers)
        return list(ResidentLoader(images, None, settings, None, **AS_BYTES).epoch(0))

    assert [[batch.weight for batch in step] for step in steps(fillers=True)][1] == [0.0]
    assert steps(fillers=False)[1] == []


def test_arrays_that_may_not_be_written_to(images, recwarn):
    frozen = images.copy()
    frozen.flags.writeable = False
    loader = ResidentLoader(frozen, None, plan(shuffle=False), None, **AS_BYTES)
    assert torch.equal(next(loader.epoch(0))[0].images[0], torch.from_numpy(images[0]).permute(2, 0, 1).float())
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((COUNT, 3, 8, 8), np.uint8)}, r"Images of shape \(60, 3, 8, 8\) and torch.uint8"),
        ({"images": np.zeros((COUNT, 8, 8, 3), np.float32)}, r"\(N, H, W, 3\), uint8 is needed"),
        ({"images": np.zeros((50, 8, 8, 3), np.uint8)}, "50 images and no labels do not fit a plan of 60 samples"),
        ({"labels": np.arange(59)}, "60 images and 59 labels do not fit a plan of 60"),
        ({"augmentation": Augmentation(32)}, "Each image is 14x11 and crop 'none' changes no sizes, but .* 32x32"),
        ({"augmentation": Augmentation(32, crop="pad")}, "Each image is 14x11, which a padding of 4 does not bring to"),
        ({"std": [0.1, 0.0, 0.1]}, r"std=\[0.1, 0.0, 0.1\] must be three numbers each"),
        ({"mean": [0.5]}, r"mean=\[0.5\] and .* must be three numbers each"),
    ],
)
def test_what_does_not_fit_together(images, change, message):
    arguments = {"images": images, "labels": None, "plan": plan(), "augmentation": None, "mean": MEAN, "std": STD}
    with pytest.raises(DataError, match=message):
        ResidentLoader(**{**arguments, **change})
