"""The one call that opens everything: what it takes for what, and what it says."""

import numpy as np
import pytest

from potstill.data.open import SOURCES, open_data
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
        ("cifar100", {}, r"The data source 'cifar100' needs data\.path"),
        ("auto", {"path": "/not/there"}, r"There is no /not/there"),
        ("digits", {"val_fraction": 1.0}, r"at least 0 and below 1, got 1\.0"),
        ("digits", {"val_fraction": -0.1}, r"at least 0 and below 1, got -0\.1"),
        ("digits", {"label_column": "x"}, r"data\.label_column='x' is for Parquet files and CIFAR"),
        ("digits", {"image_column": "x"}, r"data\.image_column='x' is for Parquet files, but the data are digits"),
    ],
)
def test_refused(source, options, message):
    with pytest.raises(DataError, match=message):
        open_data(source, **options)


@pytest.mark.parametrize("source", ["auto", "folder", "cifar10"])
def test_a_file_that_no_source_reads(tmp_path, source):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"is a file, which the data source .* an archive must be unpacked first"):
        open_data(source, path)


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
    assert SOURCES == ("auto", "digits", "cifar10", "cifar100", "folder", "parquet")


def test_a_chosen_split_shares_its_source():
    split = open_data("digits")
    assert isinstance(split.train, Subset)
    assert split.train.source is split.val.source
    assert not np.intersect1d(split.train.indices, split.val.indices).size
