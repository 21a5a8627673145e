"""The one call that opens everything: what it takes for what, and what it says."""

from pathlib import Path

import numpy as np
import pytest

from potstill.data.open import SOURCES, open_data
from potstill.data.recognise import recognise
from potstill.data.source import Subset
from potstill.errors import DataError


def test_without_a_path_the_digits():
    split = open_data()
    assert (len(split.train), len(split.val), split.train.name) == (1438, 359, "digits")


def test_size_and_fraction_reach_the_digits():
    split = open_data("digits", size=8, val_fraction=0.5, seed=2)
    assert split.train.fixed_size == (8, 8)
    assert len(split.val) == 898
    assert "with seed 2" in split.note
    assert open_data("digits", val_fraction=0).val is None


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("cifar", {}, r"no data source 'cifar'; there are auto, digits, .*Did you mean 'cifar10'"),
        ("digits", {"path": "/x"}, r"need no path, got /x\. Leave data\.path out"),
        ("folder", {}, r"The data source 'folder' needs data\.path"),
        ("parquet", {}, r"The data source 'parquet' needs data\.path"),
        ("tar", {}, r"The data source 'tar' needs data\.path"),
        ("cifar100", {}, r"The data source 'cifar100' needs data\.path"),
        ("auto", {"path": "/not/there"}, r"There is no /not/there"),
        ("digits", {"val_fraction": 1.0}, r"at least 0 and below 1, got 1\.0"),
        ("digits", {"val_fraction": -0.1}, r"at least 0 and below 1, got -0\.1"),
        ("digits", {"label_column": "x"}, r"data\.label_column='x' is for Parquet files, tar shards and CIFAR, but"),
        ("digits", {"image_column": "x"}, r"data\.image_column='x' is for Parquet files, but the data are digits"),
    ],
)
def test_refused(source, options, message):
    with pytest.raises(DataError, match=message):
        open_data(source, **options)


@pytest.mark.parametrize("source", ["auto", "folder", "cifar10"])
@pytest.mark.parametrize("name", ["pictures.zip", "notes.txt", "a.jpg"])
def test_a_file_that_no_source_reads(tmp_path, source, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"is a file, which the data source .* an archive must be unpacked first"):
        open_data(source, path)


@pytest.mark.parametrize("source", ["auto", "tar"])
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "train-000.tgz", "a.tar.zst"])
def test_a_compressed_archive(tmp_path, source, name):
    with pytest.raises(DataError, match=r"compressed archive, in which nothing .* must be unpacked first"):
        open_data(source, tmp_path / name)


def test_compressed_archives_in_a_folder(tmp_path, caplog):
    (tmp_path / "train-000.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds a compressed archive, .* must be unpacked first"):
        open_data("auto", tmp_path)
    (tmp_path / "train-000.tar").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "tar"
    assert "passed over compressed archives beside the .tar files" in caplog.text


@pytest.mark.parametrize("source", ["folder", "cifar10"])
def test_a_tar_shard_is_no_folder_and_no_cifar(tmp_path, source):
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.tar is a file, which the data source .* cannot read"):
        open_data(source, tmp_path / "a.tar")


def test_several_kinds_in_one_folder(tmp_path):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "tar"
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.JPEG").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds \.tar files and images\. Name the one to use .*: folder, tar"):
        open_data("auto", tmp_path)
    assert recognise("folder", tmp_path) == "folder"
    (tmp_path / "train.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds \.parquet files and \.tar files and images"):
        open_data("auto", tmp_path)


def test_images_beside_parquet_are_its_documentation(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"x")
    (tmp_path / "logo.png").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "parquet"


def test_what_lies_deeper_than_shards_do_is_not_looked_at(tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "x.tar").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "folder"
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.tar").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "folder"
    (deep.parent / "x.tar").write_bytes(b"x")
    assert recognise("auto", tmp_path) == "tar"


def test_an_address_that_went_through_a_path():
    with pytest.raises(DataError, match=r"There is no s3:/bucket/train; .* An address is given as text"):
        open_data("auto", Path("s3://bucket/train"))


def test_cifar_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="holds no cifar10: neither cifar-10-batches-py with its pickles nor a Parquet"):
        open_data("cifar10", tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="has no images"):
        open_data("auto", tmp_path)


def test_a_text_file_called_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    for path in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(DataError, match=r"as Parquet: .*Fetch it again, or give another file"):
            open_data("auto", path)


def test_every_source_is_known_by_name():
    assert SOURCES == ("auto", "digits", "cifar10", "cifar100", "folder", "parquet", "tar")


def test_a_chosen_split_shares_its_source():
    split = open_data("digits")
    assert isinstance(split.train, Subset)
    assert split.train.source is split.val.source
    assert not np.intersect1d(split.train.indices, split.val.indices).size
