"""Which shards make which split."""

from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from potstill.data.open import open_data
from potstill.data.patterns import expand_braces
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


def test_the_word_may_stand_anywhere_in_a_name(tmp_path):
    for name in ("imagenet-train-000.parquet", "imagenet1k_validation_00.parquet", "Test.parquet"):
        write(tmp_path / name)
    assert set(find_shards(tmp_path)) == {"train", "validation", "test"}


@pytest.mark.parametrize("name", ["pretrain-0.parquet", "latest.parquet", "values.parquet", "trains.parquet"])
def test_a_word_inside_of_another_is_no_split(tmp_path, name):
    write(tmp_path / "train.parquet")
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"some do not, such as {name}"):
        find_shards(tmp_path)


class TestPatterns:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a.tar", ["a.tar"]),
            ("{8..11}", ["8", "9", "10", "11"]),
            ("{08..11}", ["08", "09", "10", "11"]),
            ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
            ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
            ("x{,.old}", ["x", "x.old"]),
            ("{5..5}", ["5"]),
        ],
    )
    def test_braces(self, text, expected):
        assert expand_braces(text) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{3..1}", "must count upwards"),
            ("{0..999999999999999999999}", "must count upwards, and to no more than 100,000"),
            ("{0..9999}{0..9999}", "stands for more than 100,000 files"),
            ("{0..9999}{0..9999}{0..9999}{0..9999}{0..9999}", "stands for more than 100,000 files"),
            ("{a}", "neither a range .* nor a list"),
            ("{a..c}", "neither a range"),
            ("{-1..3}", "neither a range"),
            ("{a,{b,c}}", "braces in braces, or without their other half"),
            ("{a,b}{", "braces in braces, or without their other half"),
        ],
    )
    def test_braces_that_are_none(self, text, message):
        with pytest.raises(DataError, match=message):
            expand_braces(text)

    def test_parquet_by_pattern(self, tmp_path, monkeypatch):
        shards(tmp_path, "train", 3, folder="data")
        shards(tmp_path, "test", 1, first=100, folder="data")
        monkeypatch.chdir(tmp_path)
        assert read_values(open_data("auto", "data/*-of-*.parquet").train) == list(range(12))
        part = open_data("auto", "data/train-{00001..00002}-of-00003.parquet", val_fraction=0)
        assert read_values(part.train) == list(range(4, 12))
        (tmp_path / "data/train-00001-of-00003.parquet").unlink()
        with pytest.raises(DataError, match="lacks 1 of the train shards: number 1"):
            open_data("auto", "data/train-*.parquet")

    def test_each_file_once(self, tmp_path):
        write(tmp_path / "a1.parquet")
        assert len(find_shards(f"{tmp_path}/{{a*,a1}}.parquet")["train"]) == 1

    def test_a_file_of_just_that_name_comes_first(self, tmp_path):
        path = write(tmp_path / "a[1]{0..1}.parquet")
        write(tmp_path / "a10.parquet")
        assert [str(file) for file in find_shards(path)["train"]] == [str(path)]

    def test_splits_by_the_folders_of_a_pattern(self, tmp_path):
        for part in ("train", "val"):
            write(tmp_path / "train-sets" / part / "0.parquet")
        assert set(find_shards(f"{tmp_path}/train-sets/{{train,val}}/*.parquet")) == {"train", "validation"}
        assert set(find_shards(f"{tmp_path}/*/*/*.parquet")) == {"train", "validation"}

    def test_files_of_two_kinds(self, tmp_path):
        write(tmp_path / "a.parquet")
        (tmp_path / "a.tar").write_bytes(b"")
        with pytest.raises(DataError, match=r"holds \.parquet files and \.tar files\. Name the one to use"):
            open_data("auto", f"{tmp_path}/a.*")

    def test_files_of_no_kind(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"")
        with pytest.raises(DataError, match=r"names no \.tar and no \.parquet files that 'auto' can read"):
            open_data("auto", f"{tmp_path}/*.txt")

    def test_loose_images(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"")
        for source in ("auto", "folder"):
            with pytest.raises(DataError, match=r"loose images are read from a local folder only"):
                open_data(source, f"{tmp_path}/*.jpg")
