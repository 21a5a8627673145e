"""Views of scenes: boxes and masks move with the pixels, and a view is a pure function of (seed, index, view)."""

import numpy as np
import pytest
import torch

from potstill.data.scene_view import Placement, SceneAugmentation, SceneEvaluation, scene
from potstill.errors import DataError

NONE = np.zeros((0, 4), np.float32)


def drawn(box: tuple[int, int, int, int], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A black image with a white box in it, and the box's mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return np.repeat(mask[:, :, None] * 255, 3, axis=2), mask


def found(bright: torch.Tensor) -> list[int]:
    """x1, y1, x2, y2 around what is true in ``(h, w)``."""
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def boxes(*each: tuple[float, ...]) -> np.ndarray:
    return np.array(each, np.float32).reshape(-1, 4)


def whole(height: int, width: int, mirrored: bool = False) -> Placement:
    return Placement((height, width), mirrored, (0, 0, height, width))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (whole(48, 64), [16, 6, 40, 30]),
        (whole(48, 64, mirrored=True), [24, 6, 48, 30]),
        (whole(24, 32), [8, 3, 20, 15]),
        (whole(24, 32, mirrored=True), [12, 3, 24, 15]),
        (whole(96, 128), [32, 12, 80, 60]),
        (whole(48, 128, mirrored=True), [48, 6, 96, 30]),  # each side by its own ratio
        (Placement((48, 64), False, (4, 10, 20, 25)), [6, 2, 25, 20]),  # cut off at the right and at the bottom
        (Placement((96, 128), True, (20, 50, 50, 60)), [0, 0, 46, 40]),  # at the left and at the top
    ],
)
def test_a_box_is_where_its_pixels_are(place, expected):
    box = (16, 6, 40, 30)
    pixels, mask = drawn(box, 48, 64)
    seen = scene(pixels, place, boxes(box), mask)
    assert seen.boxes.tolist() == [expected]
    assert found(seen.pixels[..., 0] >= 128) == expected
    assert found(seen.mask == 1) == expected
    assert seen.pixels.shape == (*place.size, 3)
    assert seen.mask.shape == place.size
    assert (seen.pixels.dtype, seen.boxes.dtype, seen.kept.dtype, seen.mask.dtype) == (
        torch.uint8, torch.float32, torch.int64, torch.uint8,
    )  # fmt: skip
    assert seen.pixels.is_contiguous()


def test_boxes_follow_the_pixels_of_random_views():
    box = (20, 31, 77, 90)
    pixels, mask = drawn(box, 120, 160)
    view = SceneAugmentation((60, 75, 100, 133), longest=170, flip=True, crop=70, scale=(0.7, 1.6), seed=3)
    seen_of = {True: 0, False: 0}
    for number in range(60):
        place = view.place(0, number, 120, 160)
        seen = scene(pixels, place, boxes(box), mask)
        bright = seen.pixels[..., 0] >= 128
        assert (bright == (seen.mask == 1)).float().mean() > 0.98  # but for the rounding of the border
        if not len(seen.boxes):
            assert bright.sum() == 0 or min(bright.any(0).sum(), bright.any(1).sum()) <= 1
            continue
        seen_of[place.mirrored] += 1
        assert seen.boxes[0].tolist() == pytest.approx(found(bright), abs=0.75)
        assert seen.boxes[0].tolist() == pytest.approx(found(seen.mask == 1), abs=0.75)
    assert min(seen_of.values()) > 15


def test_a_mask_is_not_half_a_pixel_beside_its_image():
    box = (7, 10, 31, 40)  # no multiples of 3: a third more or less of a pixel of the view
    pixels, mask = drawn(box, 48, 66)
    seen = scene(pixels, whole(16, 22), NONE, mask)
    assert found(seen.pixels[..., 0] >= 128) == found(seen.mask == 1) == [2, 3, 10, 13]


def test_a_masks_values_are_not_mixed():
    mask = np.random.default_rng(0).choice(np.array([0, 3, 255], np.uint8), (40, 50))
    seen = scene(np.zeros((40, 50, 3), np.uint8), Placement((33, 71), True, (2, 5, 20, 40)), NONE, mask)
    assert {*seen.mask.unique().tolist()} == {0, 3, 255}


def test_boxes_smaller_than_a_pixel_are_dropped_and_the_others_named():
    given = boxes((0, 0, 8, 8), (10, 10, 11.5, 40), (10, 10, 12, 12), (50, 3, 64, 4), (20, 20, 22, 60))
    seen = scene(np.zeros((64, 64, 3), np.uint8), whole(32, 32), given)
    assert seen.kept.tolist() == [0, 2, 4]
    assert seen.boxes.tolist() == [[0, 0, 4, 4], [5, 5, 6, 6], [10, 10, 11, 30]]
    assert seen.mask is None


def test_boxes_outside_the_window_are_dropped_and_those_on_its_edge_are_clipped():
    given = boxes((0, 0, 5, 64), (60, 0, 64, 64), (8, 8, 12, 12), (30, 30, 64, 64), (39.5, 20, 50, 30))
    seen = scene(np.zeros((64, 64, 3), np.uint8), Placement((64, 64), False, (10, 10, 30, 30)), given)
    assert seen.kept.tolist() == [2, 3]
    assert seen.boxes.tolist() == [[0, 0, 2, 2], [20, 20, 30, 30]]


def test_an_image_without_boxes():
    seen = scene(np.zeros((8, 9, 3), np.uint8), whole(4, 5, mirrored=True), NONE)
    assert (seen.boxes.shape, seen.kept.shape, seen.boxes.dtype) == ((0, 4), (0,), torch.float32)


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (480, 640, (300, 400)),
        (640, 480, (400, 300)),
        (300, 300, (300, 300)),
        (100, 1000, (50, 500)),  # the long side's bound counts
        (1000, 100, (500, 50)),
        (1, 5000, (1, 500)),  # never less than a pixel
        (333, 500, (300, 450)),
        (1, 1, (300, 300)),
    ],
)
def test_evaluation_brings_the_short_side_to_its_size_unless_the_long_one_were_too_long(height, width, resized):
    view = SceneEvaluation(size=300, longest=500)
    assert view.place(0, 0, height, width) == view.place(9, 4, height, width) == whole(*resized)
    assert SceneAugmentation((300,), longest=500, flip=False).place(0, 0, height, width) == whole(*resized)


def test_boxes_of_evaluation_come_back_to_the_file():
    given = boxes((0, 0, 640, 480), (13, 101.5, 300.25, 222))
    seen = scene(np.zeros((480, 640, 3), np.uint8), SceneEvaluation(320, 533).place(0, 0, 480, 640), given)
    height, width = seen.pixels.shape[:2]
    assert seen.boxes[0].tolist() == [0, 0, width, height]
    back = seen.boxes * torch.tensor([640 / width, 480 / height] * 2)
    torch.testing.assert_close(back, torch.from_numpy(given), rtol=0, atol=1e-4)


def test_a_view_is_a_pure_function_of_seed_index_and_view():
    view = SceneAugmentation((200, 240, 280), longest=400, crop=160, seed=5)
    first = [view.place(index, number, 300, 400) for index in range(20) for number in range(3)]
    torch.manual_seed(7)
    again = SceneAugmentation((200, 240, 280), longest=400, crop=160, seed=5)
    backwards = [again.place(index, number, 300, 400) for index in range(19, -1, -1) for number in (2, 1, 0)]
    assert backwards[::-1] == first
    assert len({*first}) > 55
    other = SceneAugmentation((200, 240, 280), longest=400, crop=160, seed=6)
    assert [other.place(index, number, 300, 400) for index in range(20) for number in range(3)] != first


def test_the_numbers_that_a_view_draws_are_pinned():
    """Whoever changes these raises AUGMENTATION_VERSION."""
    view = SceneAugmentation((200, 240, 280), longest=400, crop=160, seed=5)
    assert [view.place(index, number, 300, 400) for index, number in ((0, 0), (0, 1), (7, 0))] == [
        Placement((380, 507), True, (116, 216, 160, 160)),
        Placement((511, 681), True, (251, 355, 160, 160)),
        Placement((479, 639), True, (25, 397, 160, 160)),
    ]


def test_each_size_side_and_place_is_as_likely_as_the_others():
    count, side = 1500, 64
    view = SceneAugmentation((64, 80, 96), longest=200, crop=32, scale=(1.0, 1.0), seed=1)
    places = [view.place(index, 0, side, side) for index in range(count)]
    shorts = np.array([place.resized[0] for place in places])
    mirrored = np.array([place.mirrored for place in places])
    top, left = (np.array([place.window[i] / (place.resized[0] - 32) for place in places]) for i in (0, 1))
    sizes, counts = np.unique(shorts, return_counts=True)
    assert sizes.tolist() == [64, 80, 96]
    deviation = (count * 1 / 3 * 2 / 3) ** 0.5
    assert (abs(counts - count / 3) < 4 * deviation).all()
    assert abs(mirrored.sum() - count / 2) < 4 * (count / 4) ** 0.5
    assert (top.min(), left.min(), top.max(), left.max()) == (0, 0, 1, 1)
    numbers = np.corrcoef(np.stack([shorts, mirrored, top, left]))
    assert abs(numbers - np.eye(4)).max() < 4 / count**0.5  # unrelated to each other


def test_the_window_is_no_larger_than_the_image():
    view = SceneAugmentation((40,), longest=100, crop=64, scale=(0.5, 2.0), seed=0)
    for index in range(100):
        place = view.place(index, 0, 30, 45)
        top, left, tall, wide = place.window
        assert (tall, wide) == (min(64, place.resized[0]), min(64, place.resized[1]))
        assert 0 <= top <= place.resized[0] - tall
        assert 0 <= left <= place.resized[1] - wide
        assert 20 <= place.resized[0] <= 80
    assert (view.canvas, view.typical) == ((64, 64), (64, 64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SceneAugmentation((), 100), "must be one or more lengths"),
        (lambda: SceneAugmentation((0, 10), 100), "must be one or more lengths"),
        (lambda: SceneAugmentation((50, 101), 100), "longest=100 is less than the short side of 101"),
        (lambda: SceneAugmentation((50,), 100, crop=0), "crop=0 has no pixels"),
        (lambda: SceneAugmentation((50,), 100, scale=(0, 1)), "must be two factors"),
        (lambda: SceneAugmentation((50,), 100, scale=(2, 1)), "must be two factors"),
        (lambda: SceneEvaluation(0, 10), "size=0 and longest=10"),
        (lambda: SceneEvaluation(20, 10), "size=20 and longest=10"),
    ],
)
def test_values_that_describe_no_view(make, message):
    with pytest.raises(DataError, match=message):
        make()
