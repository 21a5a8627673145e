"""Crops of one image on the host; what views.py makes of them is tested there, against PIL and torchvision."""

import numpy as np

from potstill.data.pixels import centre_crop, crop_resize, pad_crop, resize_centre

IMAGE = np.arange(1, 25, dtype=np.uint8)[:, None].repeat(3, 1).reshape(4, 6, 3)  # pixel (r, c) is 6 r + c + 1


def test_a_window_is_black_where_it_reaches_outside():
    assert pad_crop(IMAGE, -1, 4, (3, 4))[..., 0].tolist() == [[0, 0, 0, 0], [5, 6, 0, 0], [11, 12, 0, 0]]
    assert not pad_crop(IMAGE, 4, 0, (2, 2)).any()
    assert not pad_crop(IMAGE, 0, -9, (2, 2)).any()


def test_a_box_of_the_size_asked_for_is_cut_out_as_it_is():
    np.testing.assert_array_equal(crop_resize(IMAGE, (1, 2, 3, 4), (3, 4)), IMAGE[1:4, 2:6])


def test_nothing_outside_the_box_is_read():
    image = IMAGE.copy()
    image[:, 3:] = 255
    assert crop_resize(image, (0, 0, 4, 3), (8, 9)).max() <= 21


def test_the_centre_without_a_resize():
    np.testing.assert_array_equal(resize_centre(IMAGE, (4, 2), 1.0), IMAGE[:, 2:4])


def test_evaluation_of_a_size_that_is_not_square_covers_it():
    assert centre_crop(100, 100, (20, 40), 1.0) == ((40, 40), (10, 0))
    assert centre_crop(10, 100, (20, 40), 1.5) == ((30, 300), (5, 130))
