"""Folders of images: what is read, in which order, and what is refused."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.data.folder import FolderSource, find_parts
from potstill.data.materialise import materialise
from potstill.data.open import open_data
from potstill.data.source import Subset
from potstill.errors import DataError


def draw(path, value=0, size=(4, 4)):
    """An image of one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def animals(tmp_path):
    """Two classes, five images, one of them deeper, and things that are no images."""
    root = tmp_path / "animals"
    draw(root / "dog" / "b.PNG", 1)
    draw(root / "dog" / "a.jpg", 2)
    draw(root / "cat" / "z.webp", 3)
    draw(root / "cat" / "deeper" / "y.Tiff", 4)
    draw(root / "cat" / "x.bmp", 5)
    draw(root / "cat" / ".hidden.png", 6)
    draw(root / "cat" / ".cache" / "w.png", 7)
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / ".git").mkdir()
    return root


def names(source):
    return [os.path.relpath(source.describe(index), source.path) for index in range(len(source))]


def test_classes_and_files_come_in_order(animals):
    source = FolderSource(animals)
    assert source.classes == ("cat", "dog")
    assert names(source) == ["cat/deeper/y.Tiff", "cat/x.bmp", "cat/z.webp", "dog/a.jpg", "dog/b.PNG"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert [int(source.image(index)[0, 0, 0]) for index in (0, 1, 4)] == [4, 5, 1]
    assert source.arrays() is None


def test_other_files_are_counted_aloud_and_hidden_ones_are_not(animals, caplog):
    with caplog.at_level(logging.WARNING):
        FolderSource(animals)
    assert "passed over 1 files that are no images: dog/notes.txt" in caplog.text


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "png", "webp", "bmp", "gif", "tif", "tiff", "PPM"])
def test_every_extension(tmp_path, extension):
    draw(tmp_path / f"a.{extension}", 255)
    source = FolderSource(tmp_path)
    assert len(source) == 1
    assert source.image(0).min() > 250


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ("b.png", "a.png", "c.png"):
        draw(tmp_path / name)
    split = open_data("auto", tmp_path, val_fraction=0.34)
    assert split.train.labels is None
    assert split.train.classes == ()
    assert (len(split.train), len(split.val)) == (2, 1)
    assert split.note.startswith("The images lie flat, so they go without labels. The data bring no validation set: 1 ")


def test_without_a_validation_set_a_stratified_one_said_out_loud(tmp_path):
    for label in ("a", "b"):
        for number in range(10):
            draw(tmp_path / label / f"{number}.png")
    split = open_data("folder", tmp_path, val_fraction=0.2, seed=4)
    assert np.bincount(split.val.labels).tolist() == [2, 2]
    assert split.note == (
        "The data bring no validation set: 4 of 20 images are kept for it, chosen by class with seed 4."
    )
    assert open_data("folder", tmp_path, val_fraction=0.2, seed=4).val.identity == split.val.identity


def test_encoded_images_are_files(animals):
    source = FolderSource(animals)
    assert source.encoded(1) == Path(source.describe(1))
    assert Subset(source, [1]).encoded(0).is_file()


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test", "Val"])
def test_parts_in_sub_folders(tmp_path, part):
    draw(tmp_path / "train" / "a" / "1.png", 1)
    draw(tmp_path / "train" / "b" / "2.png", 2)
    draw(tmp_path / part / "b" / "3.png", 3)
    split = open_data("auto", tmp_path)
    assert split.train.labels.tolist() == [0, 1]
    assert split.val.labels.tolist() == [1]  # a class missing in the validation set keeps the numbers
    assert split.val.classes == ("a", "b")
    assert split.note == f"Validation is the data's own {part} set: 1 images."


def test_what_is_not_used_is_said(tmp_path):
    for part in ("train", "val", "test", "extra"):
        draw(tmp_path / part / "a" / "1.png")
        draw(tmp_path / part / "b" / "1.png")
    draw(tmp_path / "stray.png")
    note = open_data("folder", tmp_path, val_fraction=0.3).note
    assert "Not used: extra, test, 1 images beside these folders (stray.png)." in note
    assert "val_fraction=0.3 is for data without one and was not used." in note


def test_train_alone_is_split(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        draw(tmp_path / "train" / name)
    split = open_data("folder", tmp_path)
    assert isinstance(split.val, Subset)
    assert split.val.labels.tolist() == [0, 1]


def test_unlabelled_training_with_labelled_validation(tmp_path):
    draw(tmp_path / "train" / "1.png")
    draw(tmp_path / "val" / "a" / "1.png")
    draw(tmp_path / "val" / "b" / "1.png")
    split = open_data("folder", tmp_path)
    assert split.train.labels is None
    assert split.val.classes == ("a", "b")


def test_one_image_a_class_leaves_none_for_validation(tmp_path):
    draw(tmp_path / "a" / "1.png")
    draw(tmp_path / "b" / "1.png")
    split = open_data("folder", tmp_path)
    assert split.val is None
    assert split.note == "No class has two images, so none is kept for validation: all images are trained on."


class TestRefused:
    def check(self, path, message, **options):
        with pytest.raises(DataError, match=message):
            open_data("folder", path, **options)

    def test_empty(self, tmp_path):
        self.check(tmp_path, "has no images. Give a folder with one sub-folder of images for each class")

    def test_only_other_files(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        self.check(tmp_path, "has no images")

    def test_one_class(self, tmp_path):
        draw(tmp_path / "only" / "1.png")
        self.check(tmp_path, r"one class only \(only\); a labelled set needs at least two classes.*side by side")

    def test_an_empty_class(self, tmp_path):
        draw(tmp_path / "a" / "1.png")
        draw(tmp_path / "b" / "1.png")
        (tmp_path / "c").mkdir()
        self.check(tmp_path, "no images in the class folder c")

    def test_classes_without_images(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        self.check(tmp_path, "has 2 folders but no images in them")

    def test_images_beside_folders(self, tmp_path):
        draw(tmp_path / "a" / "1.png")
        draw(tmp_path / "stray.png")
        self.check(tmp_path, r"has images \(stray\.png\) beside folders \(a\)")

    def test_an_unknown_class_in_validation(self, tmp_path):
        for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/zebra/1.png"):
            draw(tmp_path / name)
        self.check(tmp_path, "val has a class that the training set lacks: zebra")

    def test_validation_without_labels(self, tmp_path):
        for name in ("train/a/1.png", "train/b/1.png", "val/1.png"):
            draw(tmp_path / name)
        self.check(tmp_path, "train has labels but .*val has none")

    def test_validation_without_training(self, tmp_path):
        draw(tmp_path / "val" / "a" / "1.png")
        self.check(tmp_path, "has a folder 'val' but no folder 'train'")

    def test_a_path_that_is_not_there(self, tmp_path):
        self.check(tmp_path / "gone", "There is no .*gone; data.path must be an existing file or folder")

    def test_a_file(self, tmp_path):
        draw(tmp_path / "a.png")
        self.check(tmp_path / "a.png", r"a\.png is a file, which the data source 'folder' cannot read")

    def test_columns(self, animals):
        self.check(animals, "data.image_column='x' is for Parquet files", image_column="x")
        self.check(animals, "data.label_column='x' is for Parquet files, tar shards and CIFAR", label_column="x")


class TestLinks:
    def test_a_link_out_of_the_data_is_refused(self, animals, tmp_path):
        draw(tmp_path / "secret.png")
        (animals / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(DataError, match=r"link\.png is a link that leaves .*animals"):
            FolderSource(animals)

    def test_a_link_inside_the_data_is_followed(self, animals):
        (animals / "cat" / "link.png").symlink_to("../dog/b.PNG")
        source = FolderSource(animals)
        assert int(source.image(names(source).index("cat/link.png"))[0, 0, 0]) == 1

    @pytest.mark.parametrize("target", ["gone.png", "link.png"])
    def test_a_link_that_leads_nowhere(self, animals, target):
        (animals / "cat" / "link.png").symlink_to(target)
        with pytest.raises(DataError, match=r"link\.png is a link to a file that is not there"):
            FolderSource(animals)

    @pytest.mark.parametrize("place", ["bird", "cat/more"])
    def test_a_link_to_a_folder_is_refused(self, animals, place):
        (animals / place).symlink_to(animals / "dog")
        with pytest.raises(DataError, match="is a link to a folder, and is not followed"):
            FolderSource(animals)

    def test_a_linked_part_is_refused(self, animals, tmp_path):
        draw(tmp_path / "set" / "val" / "cat" / "1.png")
        (tmp_path / "set" / "train").symlink_to(animals)
        with pytest.raises(DataError, match="train is a link to a folder"):
            find_parts(tmp_path / "set")

    def test_the_path_itself_may_be_a_link(self, animals, tmp_path):
        (tmp_path / "short").symlink_to(animals)
        assert len(FolderSource(tmp_path / "short")) == 5

    def test_a_pipe_is_no_image(self, animals):
        os.mkfifo(animals / "cat" / "pipe.png")
        with pytest.raises(DataError, match=r"pipe\.png has an image's name but is no regular file"):
            FolderSource(animals)


def test_identity_follows_paths_sizes_and_classes(animals):
    first = FolderSource(animals).identity
    assert FolderSource(animals).identity == first
    draw(animals / "dog" / "c.png")
    second = FolderSource(animals).identity
    (animals / "dog" / "c.png").rename(animals / "dog" / "d.png")
    third = FolderSource(animals).identity
    (animals / "dog" / "d.png").write_bytes(b"longer" * 1000)
    assert len({first, second, third, FolderSource(animals).identity}) == 4


def test_damaged_images_are_named(animals):
    (animals / "cat" / "x.bmp").write_bytes(b"")
    source = FolderSource(animals)
    with pytest.raises(DataError, match=r"Cannot read the image .*animals/cat/x\.bmp: it is empty"):
        source.image(1)
    assert [one.index for one in materialise(source, size=8, on_error="skip").skipped] == [1]


def test_faces(shared_data):
    split = open_data("auto", shared_data("orl-faces"), val_fraction=0.2)
    assert len(split.train.classes) == 40
    assert (len(split.train), len(split.val)) == (320, 80)
    assert np.bincount(split.val.labels).tolist() == [2] * 40
    image = split.train.image(0)
    assert image.shape == (112, 92, 3)
    assert (image == image[..., :1]).all()  # grey


def test_photographs(shared_data):
    split = open_data("auto", shared_data("imagenet-samples"))
    assert (len(split.train), len(split.train.classes), split.val) == (119, 119, None)
    assert split.train.classes[0] == "n01440764_tench"
    assert split.train.image(0).ndim == 3
