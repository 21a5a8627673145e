"""Cuts of one image on the host; which cuts views draw, and their pixels against PIL, is tested with the views."""

import numpy as np
import pytest
from PIL import Image

from potstill.data.pixels import Cut, Raster, centre_crop

IMAGE = np.arange(1, 25, dtype=np.uint8)[:, None].repeat(3, 1).reshape(4, 6, 3)  # pixel (r, c) is 6 r + c + 1


def window(top: int, left: int, height: int, width: int, mirrored: bool = False) -> Cut:
    return Cut((top, left, height, width), (height, width), (0, 0), (height, width), mirrored)


def resized(box: tuple[int, int, int, int], size: tuple[int, int]) -> Cut:
    return Cut(box, size, (0, 0), size)


@pytest.fixture(params=["array", "PIL"])
def image(request):
    """The same image, decoded to either kind."""
    return Raster(IMAGE if request.param == "array" else Image.fromarray(IMAGE), (4, 6))


def test_a_window_is_black_where_it_reaches_outside(image):
    assert window(-1, 4, 3, 4).pixels(image)[..., 0].tolist() == [[0, 0, 0, 0], [5, 6, 0, 0], [11, 12, 0, 0]]
    for outside in (window(4, 0, 2, 2), window(0, -9, 2, 2), window(9, 0, 8, 2), window(0, 7, 2, 9)):
        assert not outside.pixels(image).any()


def test_a_mirrored_window(image):
    assert window(1, 1, 2, 3, mirrored=True).pixels(image)[..., 1].tolist() == [[10, 9, 8], [16, 15, 14]]


def test_a_box_of_the_size_asked_for_is_cut_out_as_it_is(image):
    np.testing.assert_array_equal(resized((1, 2, 3, 4), (3, 4)).pixels(image), IMAGE[1:4, 2:6])


def test_nothing_outside_the_box_is_read():
    pixels = IMAGE.copy()
    pixels[:, 3:] = 255
    for raster in (Raster.of(pixels), Raster(Image.fromarray(pixels), (4, 6))):
        assert resized((0, 0, 4, 3), (8, 9)).pixels(raster).max() <= 21


def test_arrays_and_pil_images_give_the_same_bytes_in_one_piece():
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for cut in (resized((3, 5, 40, 31), (20, 22)), resized((0, 0, 9, 9), (30, 30)), window(2, 3, 8, 9, mirrored=True)):
        ours = cut.pixels(Raster.of(noise))
        np.testing.assert_array_equal(ours, cut.pixels(Raster(Image.fromarray(noise), (50, 70))))
        assert ours.is_contiguous()


def test_what_may_not_be_written_to_is_read_without_a_warning(recwarn):
    frozen = IMAGE.copy()
    frozen.flags.writeable = False
    for cut in (window(0, 0, 4, 6), resized((0, 0, 4, 6), (2, 2))):
        cut.pixels(Raster.of(frozen))
    assert not list(recwarn)
    whole = window(0, 0, 4, 6).pixels(Raster.of(IMAGE))
    np.testing.assert_array_equal(whole, IMAGE)


def test_the_centre_without_a_resize(image):
    cut = Cut((0, 0, 4, 6), (4, 6), (0, 2), (4, 2))
    np.testing.assert_array_equal(cut.pixels(image), IMAGE[:, 2:4])


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("corner", [(0, 0), (1, 1)])
def test_a_box_lies_where_it_lay_at_full_size(scale, corner):
    """A ramp at 1/2, 1/4 and 1/8: pixel i is the mean of the full pixels that it stands for, to a rounding."""
    top, left = corner  # full pixels of the first row and column that are not there
    rows, columns = np.mgrid[:20, :24]
    middle = scale // 2  # half a pixel more than it is, so that values are whole
    ramp = np.stack([rows * scale - top + middle, columns * scale - left + middle, rows * 0], axis=2)
    small = Raster(Image.fromarray(ramp.astype(np.uint8)), (160, 190), scale, top, left)
    assert 24 * scale < 256
    out = (
        resized((4 * scale + 3, 5 * scale + 1, 8 * scale + 5, 9 * scale + 2), (5, 6))
        .pixels(small)
        .numpy()
        .astype(float)
    )
    down = 4 * scale + 3 + (np.arange(5) + 0.5) * (8 * scale + 5) / 5 - 0.5
    across = 5 * scale + 1 + (np.arange(6) + 0.5) * (9 * scale + 2) / 6 - 0.5
    # Pixels at the edge of the box have no neighbours on one side.
    np.testing.assert_allclose(out[2, 2, 0] - 0.5, down[2], atol=0.8)
    np.testing.assert_allclose(out[2, 2:4, 1] - 0.5, across[2:4], atol=0.8)


def test_the_scale_of_a_cut():
    assert [resized((0, 0, side, 900), (100, 100)).scale for side in (99, 199, 200, 399, 400, 800, 5000)] == [
        1, 1, 2, 2, 4, 8, 8,
    ]  # fmt: skip
    assert resized((0, 0, 800, 100), (100, 100)).scale == 1  # both directions count
    assert window(0, 0, 64, 64).scale == 1


def test_evaluation_of_a_size_that_is_not_square_covers_it():
    assert centre_crop(100, 100, (20, 40), 1.0) == ((40, 40), (10, 0))
    assert centre_crop(10, 100, (20, 40), 1.5) == ((30, 300), (5, 130))
