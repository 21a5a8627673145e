"""Parquet in the Hugging Face layout: columns, classes, reading, and what is refused."""

import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from potstill.data import parquet as module
from potstill.data.cifar import CIFAR
from potstill.data.groups import choose_order
from potstill.data.open import open_data
from potstill.data.order import Plan
from potstill.data.parquet import ParquetSource
from potstill.data.source import Subset
from potstill.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE = {"_type": "Image"}


def png(value, size=(4, 4)):
    buffer = BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def structs(values, **options):
    return pa.array([{"bytes": png(value, **options), "path": f"/etc/{value}.png"} for value in values], STRUCT)


def class_label(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def write(path, columns, features=None, **options):
    """A Parquet file with the columns given, and the metadata that the hub's files carry."""
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def plain(path, values=(1, 2, 3, 4), labels=(0, 1, 0, 1), names=("cat", "dog"), **options):
    """The usual layout."""
    features = {"image": IMAGE, "label": class_label(*names)}
    return write(path, {"image": structs(values), "label": list(labels)}, features, **options)


def read(path, **options):
    return ParquetSource([path], name=path.name, **options)


def values_of(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


class TestColumns:
    def test_the_usual_layout(self, tmp_path):
        path = plain(tmp_path / "a.parquet")
        source = read(path)
        assert values_of(source) == [1, 2, 3, 4]
        assert source.labels.tolist() == [0, 1, 0, 1]
        assert source.labels.dtype == np.int64
        assert source.classes == ("cat", "dog")
        assert source.fixed_size == (4, 4)
        assert source.describe(2) == f"row 2 of {path}"
        assert source.encoded(2) == png(3)
        assert Subset(source, [3, 2]).encoded(1) == png(3)
        assert source.columns.note == ""

    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
    def test_plain_bytes_without_metadata(self, tmp_path, kind):
        columns = {"picture": pa.array([png(5), png(6)], kind), "label": [1, 0]}
        source = read(write(tmp_path / "a.parquet", columns))
        assert values_of(source) == [5, 6]
        assert source.classes == ("0", "1")

    def test_text_labels_are_numbered_in_sorted_order(self, tmp_path):
        columns = {"image": structs([1, 2, 3]), "label": ["zebra", "ant", "zebra"]}
        source = read(write(tmp_path / "a.parquet", columns))
        assert source.classes == ("ant", "zebra")
        assert source.labels.tolist() == [1, 0, 1]

    def test_text_labels_stored_once_each(self, tmp_path):
        columns = {"image": structs([1, 2, 3]), "label": pa.array(["b", "a", "b"]).dictionary_encode()}
        source = read(write(tmp_path / "a.parquet", columns))
        assert source.classes == ("a", "b")
        assert source.labels.tolist() == [1, 0, 1]

    def test_the_image_column_is_the_one_that_the_metadata_name(self, tmp_path):
        columns = {"mask": structs([9, 9]), "photo": structs([1, 2]), "kind": [0, 1]}
        features = {"photo": IMAGE, "kind": class_label("a", "b")}
        source = read(write(tmp_path / "a.parquet", columns, features))
        assert (source.columns.image, source.columns.label) == ("photo", "kind")
        assert values_of(source) == [1, 2]

    def test_columns_can_be_named(self, tmp_path):
        columns = {"left": structs([1, 2]), "right": structs([3, 4]), "label": [0, 1], "style": [1, 0]}
        path = write(tmp_path / "a.parquet", columns)
        source = read(path, image_column="right", label_column="style")
        assert values_of(source) == [3, 4]
        assert source.labels.tolist() == [1, 0]

    def test_fine_labels_are_preferred_and_it_is_said(self, tmp_path):
        columns = {"img": structs([1, 2]), "coarse_label": [0, 0], "fine_label": [1, 0]}
        features = {"img": IMAGE, "coarse_label": class_label("x", "y"), "fine_label": class_label("a", "b")}
        source = read(write(tmp_path / "a.parquet", columns, features))
        assert source.classes == ("a", "b")
        assert source.note == "Labels are the column 'fine_label' (there is coarse_label too)."

    def test_no_label_column_is_no_labels_and_it_is_said(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"image": structs([1, 2]), "width": [4, 4]})
        source = read(path)
        assert (source.labels, source.classes) == (None, ())
        note = open_data("parquet", path, val_fraction=0.5).note
        assert "No label column, so the images go without labels (columns: width; name one with" in note

    def test_labels_kept_back_are_no_labels(self, tmp_path):
        source = read(plain(tmp_path / "a.parquet", labels=(-1, -1, -1, -1)))
        assert source.labels is None
        assert source.note == "Column 'label' is -1 throughout, so the images go without labels."

    @pytest.mark.parametrize(
        ("columns", "features", "options", "message"),
        [
            ({"label": [0, 1]}, None, {}, r"has no column of image files\. Its columns: label \(int64\)"),
            ({"a": structs([1]), "b": structs([1])}, None, {}, r"several image columns: a, b\. Name one with data"),
            ({"image": structs([1])}, None, {"image_column": "imagee"}, "no column 'imagee' .* Did you mean 'image'"),
            ({"image": structs([1]), "n": [1]}, None, {"image_column": "n"}, "column 'n' holds int64, not image files"),
            ({"image": structs([1]), "n": [1]}, None, {"label_column": "m"}, r"no column 'm' for data\.label_column"),
            (
                {"image": structs([1]), "label": [0.5]},
                None,
                {},
                "whole numbers or text, but column 'label' holds doubl",
            ),
            (
                {"image": structs([1]), "x": [0], "y": [0]},
                {"x": class_label("a", "b"), "y": class_label("a", "b")},
                {},
                r"several label columns: x, y\. Name one with data\.label_column",
            ),
            ({"image": structs([1, 2]), "label": [0, 5]}, {"label": class_label("a", "b")}, {}, r"0\.\.1.*row 1: 5"),
            ({"image": structs([1, 2]), "label": [0, -1]}, {"label": class_label("a", "b")}, {}, r"0\.\.1.*row 1: -1"),
            ({"image": structs([1, 2]), "label": [0, 700]}, None, {}, "goes up to 700, but there are only 2 rows"),
            ({"image": structs([1, 2]), "label": [0, None]}, None, {}, "row 1 has no label in column 'label'"),
            ({"image": structs([])}, None, {}, "has no rows"),
        ],
    )
    def test_refused(self, tmp_path, columns, features, options, message):
        path = write(tmp_path / "a.parquet", columns, features)
        with pytest.raises(DataError, match=message):
            read(path, **options)

    def test_metadata_that_cannot_be_read(self, tmp_path):
        table = pa.table({"image": structs([1])}).replace_schema_metadata({"huggingface": "{broken"})
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="'huggingface' metadata cannot be read"):
            read(tmp_path / "a.parquet")

    def test_two_columns_of_one_name(self, tmp_path):
        table = pa.Table.from_arrays([structs([1]), structs([2])], names=["image", "image"])
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="several columns of one name: image, image"):
            read(tmp_path / "a.parquet")

    def test_one_class(self, tmp_path):
        path = plain(tmp_path / "a.parquet", labels=(0, 0, 0, 0), names=("only",))
        with pytest.raises(DataError, match="one class only"):
            open_data("parquet", path)


class TestClasses:
    def test_classes_that_differ_between_splits(self, tmp_path):
        plain(tmp_path / "train.parquet")
        plain(tmp_path / "test.parquet", names=("dog", "cat"))
        with pytest.raises(DataError, match="the classes of column 'label' differ from the training set's"):
            open_data("auto", tmp_path)

    def test_an_unknown_text_label_in_validation(self, tmp_path):
        write(tmp_path / "train.parquet", {"image": structs([1, 2]), "label": ["a", "b"]})
        write(tmp_path / "test.parquet", {"image": structs([1, 2]), "label": ["b", "emu"]})
        with pytest.raises(DataError, match="has a class that the training set lacks: emu"):
            open_data("auto", tmp_path)


class TestDamage:
    def test_a_truncated_file_is_named(self, tmp_path):
        path = plain(tmp_path / "a.parquet")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=f"Cannot read {path} as Parquet"):
            read(path)

    def test_spoilt_pages_are_named(self, tmp_path):
        path = plain(tmp_path / "a.parquet", values=range(200), labels=[0, 1] * 100, compression="snappy")
        data = bytearray(path.read_bytes())
        data[20:400] = bytes(380)
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"Cannot read {path}"):
            read(path).image(0)

    def test_a_damaged_image_is_named_by_its_row(self, tmp_path):
        rows = pa.array([{"bytes": png(1)}, {"bytes": png(2)[:40]}, {"bytes": b""}], STRUCT)
        path = write(tmp_path / "a.parquet", {"image": rows})
        source = read(path)
        with pytest.raises(DataError, match=f"Cannot read the image row 1 of {path}: "):
            source.image(1)
        with pytest.raises(DataError, match=f"Cannot read the image row 2 of {path}: it is empty"):
            source.image(2)

    def test_only_the_closed_list_of_formats_is_read(self, tmp_path):
        """Also for their sizes alone: Pillow knows EPS, and would look into it."""
        eps = []
        for value in (1, 2):
            buffer = BytesIO()
            Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "EPS")
            eps.append({"bytes": buffer.getvalue()})
        source = read(write(tmp_path / "a.parquet", {"image": pa.array(eps, STRUCT)}))
        assert source.fixed_size is None
        with pytest.raises(DataError, match="it is none of JPEG, PNG"):
            source.image(0)

    def test_the_path_of_a_row_is_never_opened(self, tmp_path):
        (tmp_path / "real.png").write_bytes(png(7))
        rows = pa.array([{"bytes": None, "path": str(tmp_path / "real.png")}, None], STRUCT)
        source = read(write(tmp_path / "a.parquet", {"image": rows}))
        for index in range(2):
            with pytest.raises(DataError, match=f"row {index} of .* holds no bytes of an image in column 'image'"):
                source.image(index)

    def test_a_position_that_is_not_there(self, tmp_path):
        source = read(plain(tmp_path / "a.parquet"))
        for index in (4, -1):
            with pytest.raises(IndexError, match=f"has 4 images, there is no image {index}"):
                source.image(index)


class TestReading:
    def test_row_groups(self, tmp_path):
        path = plain(tmp_path / "a.parquet", values=range(50), labels=[0, 1] * 25, row_group_size=7)
        source = read(path)
        assert source.groups.tolist() == [0, 7, 14, 21, 28, 35, 42, 49, 50]
        order = np.random.default_rng(0).permutation(50)
        assert [int(source.image(int(index))[0, 0, 0]) for index in order] == order.tolist()

    def test_old_row_groups_make_room(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "CACHE", 2000)
        path = plain(tmp_path / "a.parquet", values=range(100), labels=[0, 1] * 50, row_group_size=10)
        source = read(path)
        assert values_of(source) == list(range(100))
        assert 0 < source._held <= 2000
        assert source._held == sum(part.nbytes for part in source._cache.values())

    def test_a_set_larger_than_what_is_kept_is_read_by_groups(self, tmp_path, monkeypatch, caplog):
        path = plain(tmp_path / "a.parquet", values=range(200), labels=[0, 1] * 100, row_group_size=5)
        assert choose_order(read(path)) is None
        monkeypatch.setattr(module, "CACHE", 10_000)
        source = read(path)
        assert 40 < source.held < 140
        groups = choose_order(source)
        assert groups.bounds.tolist() == list(range(0, 201, 5))
        assert groups.streams * (groups.window + 2 * 5) <= source.held
        with caplog.at_level(logging.WARNING):
            assert choose_order(source, "full") is None
        assert "where most images cost a request or the reading of a whole row group" in caplog.text

    def test_each_process_reads_only_its_row_groups_and_each_of_them_once(self, tmp_path, monkeypatch):
        """Two processes that keep a tenth of the data; the full order would read a row group for most images."""
        count, rows, batch_size = 1600, 5, 32
        paths = [
            plain(tmp_path / f"{n}.parquet", values=[n] * 400, labels=[0, 1] * 200, row_group_size=rows)
            for n in range(4)
        ]
        whole = ParquetSource(paths, name="whole")
        total = sum(
            pq.ParquetFile(path).metadata.row_group(group).total_byte_size for path in paths for group in range(80)
        )
        monkeypatch.setattr(module, "CACHE", total // 8)

        def reads(groups, rank):
            source = pickle.loads(pickle.dumps(ParquetSource(paths, name="whole")))  # nothing in its cache yet
            found = []
            original = source._read
            monkeypatch.setattr(
                source,
                "_read",
                lambda number, group, column: found.append((number, *group)) or original(number, group, column),
            )
            plan = Plan(count, batch_size, 0, True, rank=rank, world=2, groups=groups)
            for k in range(plan.steps):
                for index, _ in plan.step(3, k):
                    for one in index.tolist():
                        source.encoded(one)
            return found

        groups = choose_order(ParquetSource(paths, name="whole"))
        assert groups.streams == 8
        assert groups.length == len(whole)
        first, second = reads(groups, 0), reads(groups, 1)
        for found in (first, second):
            assert len(found) == len(set(found))
            assert len(found) <= 320 // 2 + groups.streams
        assert len(set(first) | set(second)) == 320
        assert len(set(first) & set(second)) <= 1  # where the cut between their streams falls into a group
        assert len(reads(None, 0)) > 500

    def test_many_threads_read_the_same(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "CACHE", 2000)
        path = plain(tmp_path / "a.parquet", values=range(60), labels=[0, 1] * 30, row_group_size=5)
        source = read(path)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda index: int(source.image(index)[0, 0, 0]), range(60))) == list(range(60))

    def test_a_copy_for_another_process_opens_the_files_anew(self, tmp_path):
        source = read(plain(tmp_path / "a.parquet"))
        source.image(0)
        copy = pickle.loads(pickle.dumps(source))
        assert not copy._handles
        assert not copy._cache
        assert values_of(copy) == [1, 2, 3, 4]
        assert copy.identity == source.identity

    def test_arrays(self, tmp_path):
        assert read(plain(tmp_path / "a.parquet")).arrays()[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
        mixed = pa.concat_arrays([structs([1]), structs([2], size=(5, 4))])
        large = structs([1, 2], size=(200, 200))
        assert read(write(tmp_path / "b.parquet", {"image": mixed})).arrays() is None
        assert read(write(tmp_path / "c.parquet", {"image": large})).arrays() is None

    def test_identity_follows_the_content(self, tmp_path):
        first = read(plain(tmp_path / "1" / "a.parquet")).identity
        again = read(plain(tmp_path / "2" / "a.parquet")).identity
        others = [
            plain(tmp_path / "3" / "b.parquet"),
            plain(tmp_path / "4" / "a.parquet", labels=(1, 1, 0, 1)),
            plain(tmp_path / "5" / "a.parquet", names=("cat", "cow")),
            plain(tmp_path / "6" / "a.parquet", values=(200, 2, 3, 4)),
        ]
        assert first == again
        assert len({first, *(read(path).identity for path in others)}) == 5


class TestCifar:
    """The real thing: all of CIFAR-100's labels, a few hundred of its images."""

    def test_cifar100(self, shared_data):
        split = open_data("auto", shared_data("cifar100"))
        assert (len(split.train), len(split.val)) == (50_000, 10_000)
        assert np.bincount(split.train.labels).tolist() == [500] * 100
        assert np.bincount(split.val.labels).tolist() == [100] * 100
        assert (split.train.classes[0], split.train.classes[99]) == ("apple", "worm")
        assert split.train.statistics == CIFAR["cifar100"].statistics
        assert split.train.fixed_size == (32, 32)
        assert split.note == (
            "Labels are the column 'fine_label' (there is coarse_label too). "
            "Validation is the data's own test set: 10,000 images."
        )

    def test_the_groups_of_classes(self, shared_data):
        split = open_data("cifar100", shared_data("cifar100"), label_column="coarse_label")
        assert len(split.train.classes) == 20
        assert split.train.statistics == CIFAR["cifar100"].statistics

    def test_images(self, shared_data):
        source = open_data("cifar100", shared_data("cifar100")).val
        images = np.stack([source.image(index) for index in range(300)])
        assert images.shape == (300, 32, 32, 3)
        mean, std = CIFAR["cifar100"].statistics
        np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, mean, atol=0.02)
        np.testing.assert_allclose(images.std((0, 1, 2)) / 255, std, atol=0.02)

    def test_another_set_under_its_name(self, shared_data, tmp_path):
        with pytest.raises(DataError, match="is not cifar10: its 100 classes or its images' size are others"):
            open_data("cifar10", shared_data("cifar100"))
        with pytest.raises(DataError, match="is not cifar100: its 2 classes"):
            open_data("cifar100", plain(tmp_path / "a.parquet"))
