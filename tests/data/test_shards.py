"""Which Parquet files make which split."""

from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from potstill.data.open import open_data
from potstill.data.shards import find_shards
from potstill.errors import DataError


def png(value):
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, values=(1, 2, 3, 4), labels=("cat", "dog", "cat", "dog")):
    """A Parquet file of images, each filled with its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(value) for value in values], "label": list(labels)}), path)
    return path


def read_values(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


def shards(root, prefix, count, first=0, folder="."):
    for number in range(count):
        start = first + 4 * number
        write(root / folder / f"{prefix}-{number:05}-of-{count:05}.parquet", range(start, start + 4))


def test_standard_splits_in_one_folder(tmp_path):
    shards(tmp_path, "train", 2, folder="data")
    shards(tmp_path, "test", 1, first=100, folder="data")
    split = open_data("auto", tmp_path)
    assert read_values(split.train) == list(range(8))
    assert read_values(split.val) == [100, 101, 102, 103]
    assert split.note == "Validation is the data's own test set: 4 images."
    assert split.train.describe(5).endswith("row 1 of " + str(tmp_path / "data/train-00001-of-00002.parquet"))


def test_validation_comes_before_test_and_the_rest_is_said(tmp_path):
    for number, part in enumerate(("train", "validation", "test")):
        shards(tmp_path, part, 1, first=10 * number)
    split = open_data("auto", tmp_path)
    assert read_values(split.val) == [10, 11, 12, 13]
    assert "own validation set: 4 images. Not used: test." in split.note


def test_sub_folders_by_split(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "plain_text" / part / "0000.parquet")
    assert {split: len(files) for split, files in find_shards(tmp_path).items()} == {"train": 1, "test": 1}
    assert len(open_data("auto", tmp_path).val) == 4


def test_one_file_is_split_by_class(tmp_path):
    split = open_data("auto", write(tmp_path / "all.parquet"), val_fraction=0.5, seed=3)
    assert split.val.labels.tolist() == [0, 1]
    assert split.note.endswith("2 of 4 images are kept for it, chosen by class with seed 3.")


def test_names_without_a_split_are_all_training(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number:04}.parquet")
    assert list(find_shards(tmp_path)) == ["train"]


def test_a_word_that_only_begins_like_a_split(tmp_path):
    write(tmp_path / "testament.parquet")
    assert list(find_shards(tmp_path)) == ["train"]


def test_hidden_files_are_passed_over(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet")
    write(tmp_path / ".cache" / "train-00000-of-00001.parquet")
    assert len(find_shards(tmp_path)["train"]) == 1


def test_missing_shards(tmp_path):
    shards(tmp_path, "train", 3)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="lacks 1 of the train shards: number 1"):
        open_data("auto", tmp_path)


def test_several_sets(tmp_path):
    shards(tmp_path, "train", 1, folder="english")
    shards(tmp_path, "train", 1, folder="french")
    with pytest.raises(DataError, match="train files in several folders: english, french"):
        open_data("auto", tmp_path)


def test_some_with_a_split_and_some_without(tmp_path):
    write(tmp_path / "train.parquet")
    write(tmp_path / "more.parquet")
    with pytest.raises(DataError, match=r"some do not, such as more\.parquet"):
        open_data("auto", tmp_path)


def test_no_training_set(tmp_path):
    write(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="Parquet files for test but none for train"):
        open_data("auto", tmp_path)


def test_no_parquet(tmp_path):
    with pytest.raises(DataError, match="There is no Parquet file in"):
        open_data("parquet", tmp_path)


def test_shards_that_differ(tmp_path):
    write(tmp_path / "train-a.parquet")
    write(tmp_path / "train-b.parquet", labels=(0, 1, 0, 1))
    with pytest.raises(DataError, match=r"train-b\.parquet and .*train-a\.parquet differ in column 'label'"):
        open_data("auto", tmp_path)
