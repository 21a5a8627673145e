"""A whole source as one array, and what happens to damaged images."""

import numpy as np
import pytest
from PIL import Image

from potstill.data.folder import FolderSource
from potstill.data.materialise import CHUNK, Skipped, fit_square, materialise
from potstill.data.source import ArraySource, Source, subset
from potstill.errors import DataError


class Drawn(Source):
    """Images drawn on demand, each filled with its number; the ones listed are damaged."""

    name = "drawn"

    def __init__(self, count, damaged=(), sizes=None):
        self.count, self.damaged, self.sizes = count, damaged, sizes or {}

    @property
    def identity(self):
        return "drawn"

    def __len__(self):
        return self.count

    def image(self, index):
        if index in self.damaged:
            raise DataError(f"picture {index} is torn")
        return np.full((*self.sizes.get(index, (4, 4)), 3), index % 256, np.uint8)

    def describe(self, index):
        return f"picture {index}"


@pytest.mark.parametrize("threads", [1, 3, None])
def test_every_image_is_at_its_place(threads):
    count = 2 * CHUNK + 5
    images, kept, skipped = materialise(Drawn(count), threads=threads)
    assert images.shape == (count, 4, 4, 3)
    assert images[:, 0, 0, 0].tolist() == [index % 256 for index in range(count)]
    assert kept.tolist() == list(range(count))
    assert skipped == []


def test_stop_names_the_first_damaged_image():
    with pytest.raises(DataError, match="picture 3 is torn"):
        materialise(Drawn(600, damaged={3, 550}))


def test_skip_leaves_them_out_and_lists_them():
    source = Drawn(600, damaged={0, 3, 550})
    images, kept, skipped = materialise(source, on_error="skip", threads=2)
    assert images.shape == (597, 4, 4, 3)
    assert images[:, 0, 0, 0].tolist() == [index % 256 for index in kept]
    assert sorted({*range(600)} - {*kept.tolist()}) == [0, 3, 550]
    assert skipped[1] == Skipped(3, "picture 3", "picture 3 is torn")
    assert [one.index for one in skipped] == [0, 3, 550]


def test_labels_follow_what_was_kept():
    source = Drawn(4, damaged={1})
    source.labels = np.array([5, 6, 7, 8])
    assert source.labels[materialise(source, on_error="skip").kept].tolist() == [5, 7, 8]


@pytest.mark.parametrize("size", [None, 4])
def test_nothing_that_can_be_read(size):
    with pytest.raises(DataError, match="None of the 2 images of drawn can be read"):
        materialise(Drawn(2, damaged={0, 1}), size=size, on_error="skip")


def test_no_images():
    with pytest.raises(DataError, match="drawn has no images"):
        materialise(Drawn(0))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_several_sizes_need_a_size(on_error):
    source = Drawn(3, sizes={2: (4, 6)})
    with pytest.raises(DataError, match=r"picture 2 has 6 x 4 pixels, the images before it 4 x 4.*data\.size"):
        materialise(source, on_error=on_error)
    assert materialise(source, size=8, on_error=on_error).images.shape == (3, 8, 8, 3)


def test_arrays_are_not_copied():
    source = ArraySource(np.zeros((3, 4, 4, 3), np.uint8), None, name="zeros")
    assert materialise(source).images is source.arrays()
    assert materialise(source, size=4).images is source.arrays()
    assert materialise(subset(source, [2, 0])).images.shape == (2, 4, 4, 3)


def test_an_unknown_policy():
    with pytest.raises(DataError, match=r"data\.on_error must be 'stop' or 'skip', got 'skipp'\. Did you mean 'skip'"):
        materialise(Drawn(1), on_error="skipp")


def test_an_error_in_the_program_is_not_taken_for_a_damaged_image():
    source = Drawn(2)
    source.image = lambda index: 1 // 0
    with pytest.raises(ZeroDivisionError):
        materialise(source, size=4, on_error="skip")


def test_fit_square_keeps_the_centre():
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 200
    assert (fit_square(image, 4) == 200).all()
    assert (fit_square(image.transpose(1, 0, 2), 4) == 200).all()


def test_fit_square_averages_when_it_makes_smaller():
    checks = ((np.indices((32, 32)).sum(0) % 2) * 255).astype(np.uint8)
    small = fit_square(np.repeat(checks[..., None], 3, 2), 4)
    assert abs(small[1:3, 1:3].astype(int) - 127).max() <= 2  # every other pixel alone would give 0 or 255


def test_photographs_of_several_sizes(shared_data):
    source = subset(FolderSource(shared_data("imagenet-samples")), range(6))
    images, kept, _ = materialise(source, size=32)
    assert images.shape == (6, 32, 32, 3)
    expected = Image.fromarray(source.image(2))
    np.testing.assert_allclose(images[2].mean(), np.asarray(expected).mean(), atol=25)
    assert kept.tolist() == list(range(6))
