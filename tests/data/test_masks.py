"""Segmentation data: which mask is of which image, what its values mean, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.data.masks import MaskSource, find_classes, read_mask
from potstill.data.scenes import open_scenes
from potstill.errors import DataError

PALETTE = [200, 0, 0, 0, 200, 0, 0, 0, 200]  # the colours of 0, 1, 2: they mean nothing


def values(*numbers: int, height: int = 6, width: int = 8) -> np.ndarray:
    """A mask that has these values, in columns."""
    return np.resize(np.array(numbers, np.uint8), (height, width))


def save_mask(path: Path, mask: np.ndarray, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes(mode, mask.shape[::-1], mask.tobytes())
    if mode == "P":
        image.putpalette(PALETTE * 85 + [9, 9, 9])
    image.save(path)


def save_image(path: Path, height: int = 6, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 8, 7)).save(path)


def write(root: Path, parts: tuple[str, ...] = ("train", "val"), mask: np.ndarray | None = None) -> Path:
    """Three images a part, with masks of 0, 1 and 255."""
    mask = values(0, 1, 255) if mask is None else mask
    for part in parts:
        for stem in ("a", "b", "c"):
            save_image(root / "images" / part / f"{stem}.jpg")
            save_mask(root / "masks" / part / f"{stem}.png", mask)
    return root


def test_a_masks_values_are_its_classes_with_a_palette_and_in_grey(tmp_path):
    mask = values(0, 1, 2, 255)
    for mode in ("P", "L"):
        save_mask(tmp_path / "mask.png", mask, mode)
        assert Image.open(tmp_path / "mask.png").mode == mode
        found = read_mask(tmp_path / "mask.png")
        assert found.dtype == np.uint8
        assert np.array_equal(found, mask)


def test_masks_of_two_levels_and_of_small_palettes(tmp_path):
    mask = values(0, 1)
    Image.fromarray(mask.astype(bool)).save(tmp_path / "two.png")
    image = Image.frombytes("P", (8, 6), mask.tobytes())
    image.putpalette(PALETTE)
    image.save(tmp_path / "palette.png", bits=1)
    for name in ("two.png", "palette.png"):
        assert (tmp_path / name).read_bytes()[24] == 1  # bits of a value
        assert np.array_equal(read_mask(tmp_path / name), mask)


def test_grey_of_few_bits_is_refused_because_its_values_would_be_others(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)  # 4 x 1 pixels of 4 bits of grey
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x01\x23"))
    (tmp_path / "grey.png").write_bytes(content + chunk(b"IEND", b""))
    assert np.array(Image.open(tmp_path / "grey.png")).tolist() == [[0, 17, 34, 51]]  # what would be read
    with pytest.raises(DataError, match=r"grey\.png has pixels of 4 bits of kind L, which are no class numbers"):
        read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_colours_are_no_classes(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png has pixels of .*save it as PNG with a palette or in grey"):
        read_mask(tmp_path / "mask.png")


def test_masks_that_cannot_be_read(tmp_path):
    path = tmp_path / "mask.png"
    with pytest.raises(DataError, match=r"Cannot read the mask .*mask\.png: there is no such file"):
        read_mask(path)
    save_mask(path, values(0, 1, height=60))
    content = path.read_bytes()
    for damaged, reason in ((b"", "it is empty"), (content[:-40], ""), (b"P5 1 1 255 x", "its beginning is damaged")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"Cannot read the mask .*mask\.png: .*{reason}"):
            read_mask(path)


def test_images_and_masks_go_together_by_name(tmp_path):
    write(tmp_path)
    save_image(tmp_path / "images" / "train" / "0.PNG", 5, 7)
    save_mask(tmp_path / "masks" / "train" / "0.png", values(1, height=5, width=7))
    split = open_scenes("segmentation", tmp_path)
    assert (len(split.train), len(split.val)) == (4, 3)
    assert split.train.classes == split.val.classes == ("0", "1")
    assert [Path(split.train.describe(i)).name for i in range(4)] == ["0.PNG", "a.jpg", "b.jpg", "c.jpg"]
    assert (split.train.size(0), split.train.size(1)) == ((5, 7), (6, 8))
    assert np.array_equal(split.train.mask(0), values(1, height=5, width=7))
    assert np.array_equal(split.train.mask(1), values(0, 1, 255))
    assert split.train.image(0).shape == (5, 7, 3)
    assert split.train.labels is None
    assert "There is no classes.txt; the masks have 2 classes" in split.note
    assert "judged by the data's own val: 3 images" in split.note


def test_without_parts_some_images_are_kept_to_judge_by(tmp_path):
    write(tmp_path, parts=(".",))
    split = open_scenes("segmentation", tmp_path, val_fraction=0.4, seed=1)
    assert (len(split.train), len(split.val)) == (2, 1)
    assert {Path(one.describe(i)).stem for one in (split.train, split.val) for i in range(len(one))} == {"a", "b", "c"}
    assert np.array_equal(split.val.mask(0), values(0, 1, 255))
    assert split.val.identity != split.train.identity


def test_vocs_folders_and_lists(tmp_path):
    for stem in "abc":
        save_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        save_mask(tmp_path / "SegmentationClass" / f"{stem}.png", values(0, 1, 2))
    save_image(tmp_path / "JPEGImages" / "of_boxes_only.jpg")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\n")
    (lists / "val.txt").write_text("b\n")
    split = open_scenes("segmentation", tmp_path)
    assert [Path(split.train.describe(i)).stem for i in range(2)] == ["c", "a"]
    assert [len(split.val), split.val.classes] == [1, ("0", "1", "2")]
    (lists / "val.txt").write_text("b\nof_boxes_only\n")
    with pytest.raises(DataError, match="SegmentationClass has nothing called of_boxes_only, and 1 in all are missing"):
        open_scenes("segmentation", tmp_path)


def test_classes_are_those_of_the_file_where_there_is_one(tmp_path):
    write(tmp_path, mask=values(0, 3))
    (tmp_path / "classes.txt").write_text("ground\ncell\nplate\nedge\n")
    split = open_scenes("segmentation", tmp_path)
    assert split.train.classes == ("ground", "cell", "plate", "edge")
    assert np.array_equal(split.train.mask(0), values(0, 3))
    (tmp_path / "classes.txt").write_text("ground\ncell\nplate\n")
    with pytest.raises(
        DataError, match=r"a\.png has 24 pixels of values that are no class, 3 for one: there are 3 cla"
    ):
        open_scenes("segmentation", tmp_path).train.mask(0)
    (tmp_path / "classes.txt").write_text("ground\n")
    with pytest.raises(DataError, match="masks tell from 2 to 255 classes apart, got 1"):
        open_scenes("segmentation", tmp_path)


def test_classes_are_looked_for_in_all_masks(tmp_path):
    write(tmp_path)
    save_mask(tmp_path / "masks" / "val" / "b.png", values(2))
    assert open_scenes("segmentation", tmp_path).train.classes == ("0", "1", "2")
    save_mask(tmp_path / "masks" / "val" / "c.png", values(6, 4))
    with pytest.raises(DataError, match=r"values 0, 1, 2, 4, 6, so of the classes from 0 to 6 these are nowhere: 3, 5"):
        open_scenes("segmentation", tmp_path)


@pytest.mark.parametrize("mask", [values(0), values(255), values(0, 255)])
def test_one_class_is_none(tmp_path, mask):
    save_mask(tmp_path / "mask.png", mask)
    with pytest.raises(DataError, match=r"the masks have [01] class, and at least two are needed"):
        find_classes([tmp_path / "mask.png"])


def test_a_mask_of_another_size_than_its_image_is_named(tmp_path):
    write(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "b.png", values(0, 1, height=8, width=6))
    with pytest.raises(DataError, match=r"b\.png is 8 pixels high and 6 wide, but its image is 6 high and 8 wide"):
        open_scenes("segmentation", tmp_path).train.mask(1)


def test_a_turned_photographs_size_is_that_of_the_upright_one(tmp_path):
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    save_mask(tmp_path / "masks" / "train" / "a.png", values(0, 1, height=8, width=6))
    source = open_scenes("segmentation", tmp_path).train
    assert source.size(0) == source.image(0).shape[:2] == source.mask(0).shape == (8, 6)


def test_each_image_needs_a_mask(tmp_path):
    write(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "stray.png", values(0, 1))
    note = open_scenes("segmentation", tmp_path).note
    assert "train: 1 masks are of no image there and are not used (stray)" in note
    (tmp_path / "masks" / "train" / "b.png").unlink()
    with pytest.raises(DataError, match="masks/train has nothing called b, and 1 in all are missing, of the 3"):
        open_scenes("segmentation", tmp_path)


def test_the_identity_is_of_images_masks_and_classes(tmp_path):
    write(tmp_path)
    before = open_scenes("segmentation", tmp_path).train.identity
    assert open_scenes("segmentation", tmp_path).train.identity == before
    with open(tmp_path / "masks" / "train" / "b.png", "ab") as file:
        file.write(b"\0")
    after = open_scenes("segmentation", tmp_path).train.identity
    assert after != before
    (tmp_path / "classes.txt").write_text("ground\ncell\n")
    assert open_scenes("segmentation", tmp_path).train.identity not in (before, after)


def test_a_part_of_the_images(tmp_path):
    write(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "c.png", values(1, 0, 0))
    whole = open_scenes("segmentation", tmp_path).train
    part = whole.select([2, 0])
    assert [part.describe(i) for i in range(2)] == [whole.describe(2), whole.describe(0)]
    assert np.array_equal(part.mask(0), values(1, 0, 0))
    assert (len(whole), len(part), part.classes) == (3, 2, whole.classes)
    with pytest.raises(DataError, match="between 0 and 2"):
        whole.select([3])


def test_a_link_that_leaves_the_data_is_not_followed(tmp_path):
    write(tmp_path / "data")
    (tmp_path / "data" / "masks" / "train" / "a.png").rename(tmp_path / "a.png")
    (tmp_path / "data" / "masks" / "train" / "a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "data" / "classes.txt").write_text("ground\ncell\n")
    with pytest.raises(DataError, match=r"a\.png is a link that leaves"):
        open_scenes("segmentation", tmp_path / "data")


def test_no_images(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match="images has no images"):
        open_scenes("segmentation", tmp_path)
    assert len(MaskSource(tmp_path, tmp_path, [], ("a", "b"), root=tmp_path)) == 0
