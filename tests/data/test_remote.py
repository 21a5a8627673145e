"""Shards behind addresses: the same data as from a folder, read by ranges, in every process."""

import logging
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from potstill.data.groups import choose_order
from potstill.data.open import open_data
from potstill.data.order import Plan
from potstill.data.remote import RemoteFile, is_remote, stored
from potstill.data.streaming import StreamingLoader
from potstill.errors import DataError, RunError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POTSTILL_CACHE", str(folder))
    return folder


@pytest.fixture(params=["memory", "file"])
def place(request, tmp_path):
    """A folder's address, and what writes a file below it."""
    root = "memory://bucket/set" if request.param == "memory" else f"file://{tmp_path}/set"
    files = fsspec.filesystem(request.param, **({"auto_mkdir": True} if request.param == "file" else {}))
    yield root, lambda name, content: files.pipe_file(f"{root}/{name}", content)
    if request.param == "memory":
        files.store.clear()
        files.pseudo_dirs[:] = [""]


def picture(value):
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(values, labels=None):
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for position, value in enumerate(values):
            label = position % 2 if labels is None else labels[position]
            for name, content in ((f"{value:04}.cls", str(label).encode()), (f"{value:04}.png", picture(value))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def table(values, rows=None):
    buffer = BytesIO()
    columns = {"image": [picture(value) for value in values], "label": [value % 2 for value in values]}
    pq.write_table(pa.table(columns), buffer, row_group_size=rows or len(values))
    return buffer.getvalue()


def values_of(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


MAKERS = {"tar": shard, "parquet": table}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
class TestBothKinds:
    def write(self, place, kind):
        root, put = place
        for number in range(2):
            put(f"train-{number:03}.{kind}", MAKERS[kind](range(10 * number, 10 * number + 10)))
        put(f"val-000.{kind}", MAKERS[kind]([100, 101]))
        return root

    @pytest.mark.parametrize("source", ["auto", "by name"])
    def test_a_folder(self, place, kind, source):
        root = self.write(place, kind)
        split = open_data(kind if source == "by name" else "auto", root)
        assert values_of(split.train) == list(range(20))
        assert values_of(split.val) == [100, 101]
        assert split.train.labels.tolist() == [0, 1] * 10
        assert split.train.scattered
        assert split.note == "Validation is the data's own validation set: 2 images."

    def test_a_file_and_patterns(self, place, kind):
        root = self.write(place, kind)
        assert values_of(open_data("auto", f"{root}/val-000.{kind}", val_fraction=0).train) == [100, 101]
        assert len(open_data("auto", f"{root}/train-{{000..001}}.{kind}", val_fraction=0).train) == 20
        split = open_data("auto", f"{root}/{{train,val}}-*.{kind}")
        assert (len(split.train), len(split.val)) == (20, 2)

    def test_it_is_the_same_data_as_from_a_folder(self, tmp_path, kind):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / f"train.{kind}").write_bytes(MAKERS[kind](range(10)))
        local, remote = (open_data("auto", path, val_fraction=0).train for path in (tmp_path, f"file://{tmp_path}"))
        assert local.identity == remote.identity
        assert (local.scattered, remote.scattered) == (False, True)
        assert local.groups.tolist() == remote.groups.tolist() == [0, 10]

    def test_messages_keep_the_address(self, place, kind):
        root = self.write(place, kind)
        source = open_data("auto", root).train
        assert "://" in source.describe(11)
        assert source.describe(11).endswith(f"set/train-001.{kind}")

    def test_auto_reads_it_by_groups(self, place, kind):
        source = open_data("auto", self.write(place, kind)).train
        groups = choose_order(source)
        assert groups.bounds.tolist() == [0, 10, 20]
        part = open_data("auto", f"{self.write(place, kind)}/train-*.{kind}").train
        assert choose_order(part).length == len(part) < 20

    def test_a_copy_for_another_process(self, place, kind):
        source = open_data("auto", self.write(place, kind)).train
        source.image(0)
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.identity, values_of(copy)) == (source.identity, list(range(20)))

    def test_a_spawned_process(self, tmp_path, kind):
        (tmp_path / f"train.{kind}").write_bytes(MAKERS[kind](range(10)))
        source = open_data("auto", f"file://{tmp_path}", val_fraction=0).train
        source.image(0)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            assert pool.submit(source.encoded, 7).result(timeout=60) == picture(7)

    def test_forked_workers(self, place, kind):
        source = open_data("auto", self.write(place, kind)).train
        plan = Plan(20, 8, 0, True, groups=choose_order(source))
        loader = StreamingLoader(source, plan, None, mean=[0.0] * 3, std=[1.0] * 3, workers=2)
        batches = [batch for step in loader.epoch(0) for batch in step]
        seen = [value for batch in batches for value in batch.index.tolist()]
        assert sorted(seen) == list(range(20))
        for batch in batches:
            assert (batch.images[:, 0, 0, 0] * 255).round().long().tolist() == batch.index.tolist()

    def test_what_is_not_there(self, place, kind):
        root = self.write(place, kind)
        for path in (
            f"{root}/gone.{kind}",
            f"{root}/gone",
            f"{root}/train-{{000..005}}.{kind}",
            f"{root}/gone-*.{kind}",
        ):
            with pytest.raises(DataError, match=r"There is no (file )?(memory|file)://.*"):
                open_data("auto", path)

    def test_a_server_that_fails_stops_the_run(self, place, kind, monkeypatch):
        """It is no image's damage, which on_error=skip would pass over."""
        source = open_data("auto", self.write(place, kind)).train
        source = pickle.loads(pickle.dumps(source))

        def fail(*_, **__):
            raise ConnectionError("the line is dead")

        for one in (MemoryFileSystem, fsspec.implementations.local.LocalFileSystem):
            monkeypatch.setattr(one, "cat_file", fail)
            monkeypatch.setattr(one, "_open", fail)
        with pytest.raises((RunError, DataError), match="the line is dead"):
            source.image(0)

    def test_damage_is_named(self, place, kind):
        root, put = place
        put(f"a.{kind}", MAKERS[kind](range(10))[:600])
        with pytest.raises(DataError, match=rf"(Cannot read .*)?a\.{kind}"):
            open_data("auto", f"{root}/a.{kind}")


class TestTar:
    def test_an_image_is_one_request_of_just_its_bytes(self, monkeypatch):
        fsspec.filesystem("memory").pipe_file("memory://requests/a.tar", shard(range(10)))
        source = open_data("auto", "memory://requests/a.tar", val_fraction=0).train
        asked = []
        cat_file = MemoryFileSystem.cat_file

        def count(self, path, start=None, end=None, **options):
            asked.append(end - start)
            return cat_file(self, path, start=start, end=end, **options)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", count)
        source.encoded(3)
        assert asked == [len(picture(3))]

    def test_the_index_is_kept(self, place, caplog):
        root, put = place
        put("a.tar", shard(range(10)))
        with caplog.at_level(logging.INFO):
            for expected in (1, 1):
                open_data("auto", f"{root}/a.tar")
                assert caplog.text.count("looking for where its samples lie") == expected
            put("a.tar", shard(range(12)))
            assert len(open_data("auto", f"{root}/a.tar", val_fraction=0).train) == 12
        assert caplog.text.count("looking for where its samples lie") == 2

    def test_class_names(self, place):
        root, put = place
        put("train/0.tar", shard(range(4)))
        put("test/0.tar", shard([9], [1]))
        put("classes.txt", b"cat\ndog\n")
        split = open_data("auto", root)
        assert (split.train.classes, split.val.labels.tolist()) == (("cat", "dog"), [1])
        assert open_data("auto", f"{root}/train/0.tar").train.classes == ("0", "1")

    def test_a_shard_that_shrinks_stops_the_run(self, place):
        root, put = place
        put("a.tar", shard(range(4)))
        source = open_data("auto", f"{root}/a.tar", val_fraction=0).train
        put("a.tar", shard(range(4))[:700])
        with pytest.raises(RunError, match=r"gave 0 bytes where .* were asked for: it changed since the run began"):
            source.image(3)


class TestParquet:
    def test_a_row_group_is_one_request(self, monkeypatch):
        files = fsspec.filesystem("memory")
        files.pipe_file("memory://requests/a.parquet", table(range(40), rows=10))
        source = open_data("auto", "memory://requests/a.parquet", val_fraction=0).train
        source = pickle.loads(pickle.dumps(source))
        source.image(0)
        opened = source._handles[0]
        read = []
        monkeypatch.setattr(source, "_open", lambda number: read.append(number) or opened)
        assert [int(source.image(index)[0, 0, 0]) for index in range(20, 40)] == list(range(20, 40))
        assert len(read) == 2


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "package"),
        [("s3://bucket/train", "s3fs"), ("gs://bucket/train-{0..9}.tar", "gcsfs"), ("https://host/a.tar", "aiohttp")],
    )
    def test_a_package_that_is_missing(self, address, package):
        if find_spec(package):
            pytest.skip(f"{package} is installed")
        protocol = address.partition("://")[0]
        with pytest.raises(DataError, match=f"Reading {protocol}:// needs the package {package}, which is not install"):
            open_data("auto", address)

    def test_a_package_of_a_protocol_that_was_added(self):
        fsspec.register_implementation("warehouse", "no_such_package.FileSystem", errtxt="Ask the warehouse")
        with pytest.raises(DataError, match="Reading warehouse:// needs the package no_such_package, which is not"):
            open_data("auto", "warehouse://a/b.tar")

    def test_a_protocol_that_nobody_knows(self):
        with pytest.raises(DataError, match="Cannot read nope://a/b: Protocol not known: nope"):
            open_data("auto", "nope://a/b")

    def test_chains(self):
        with pytest.raises(DataError, match="is a chain of addresses, which is not read; give a plain one"):
            open_data("auto", "simplecache::s3://bucket/a.tar")

    def test_loose_images(self, place):
        root, put = place
        put("train/cat/1.jpg", picture(1))
        put("train/dog/2.jpg", picture(2))
        for source in ("auto", "folder"):
            with pytest.raises(
                DataError, match=r"loose images are read from a local folder only.*Pack them into tar shard"
            ):
                open_data(source, root)

    def test_compressed_shards(self, place):
        root, put = place
        put("train-000.tar.gz", b"x")
        for path in (root, f"{root}/train-000.tar.gz", f"{root}/train-*.tar.gz"):
            with pytest.raises(DataError, match="compressed archive, in which nothing can be read"):
                open_data("auto", path)

    def test_a_folder_of_nothing(self, place):
        root, put = place
        put("notes.txt", b"x")
        with pytest.raises(DataError, match=r"names no \.tar and no \.parquet files"):
            open_data("auto", root)
        with pytest.raises(DataError, match="There is no tar file in"):
            open_data("tar", root)

    def test_both_kinds_in_one_folder(self, place):
        root, put = place
        put("a.tar", shard(range(4)))
        put("a.parquet", table(range(4)))
        with pytest.raises(DataError, match=r"holds \.parquet files and \.tar files\. Name the one to use"):
            open_data("auto", root)
        assert len(open_data("tar", root, val_fraction=0).train) == 4

    def test_cifar_by_name(self, place):
        root, put = place
        put("train.parquet", table(range(4)))
        with pytest.raises(DataError, match=r"is not cifar10: its 2 classes or its images' size are others"):
            open_data("cifar10", root)
        put("a.tar", shard(range(4)))
        with pytest.raises(DataError, match=r"names no \.tar and no \.parquet files that 'cifar10' can read"):
            open_data("cifar10", f"{root}/a.tar")

    def test_hidden_files_are_passed_over(self, place):
        root, put = place
        put("train-0.tar", shard(range(4)))
        put(".cache/train-1.tar", shard(range(4)))
        assert len(open_data("auto", root, val_fraction=0).train) == 4

    def test_what_is_an_address(self, tmp_path):
        assert is_remote("memory://a")
        assert not is_remote(tmp_path)
        assert not is_remote("C:/data")
        (tmp_path / "a").write_bytes(b"x")
        assert (stored(tmp_path / "a").size, stored(f"file://{tmp_path}/a").size) == (1, 1)

    def test_a_file_knows_its_size_and_version(self, tmp_path):
        path = Path(tmp_path / "a")
        path.write_bytes(b"abc")
        file = RemoteFile(f"file://{path}")
        assert (file.size, file.name, file.read(1, 2)) == (3, "a", b"bc")
        os.utime(path, (1, 1))
        assert RemoteFile(f"file://{path}").version != file.version
        with pytest.raises(DataError, match="is a folder, not a file"):
            RemoteFile(f"file://{tmp_path}")
        with pytest.raises(DataError, match="does not tell the size"):
            RemoteFile("https://host/a.tar", {"size": None})
        assert RemoteFile("x://a", {"size": 1, "ETag": '"5d"', "mtime": 7}).version == '"5d"'
        assert RemoteFile("x://a", {"size": 1, "a": 1}).version != RemoteFile("x://a", {"size": 1, "a": 2}).version
