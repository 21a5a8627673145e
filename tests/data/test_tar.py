"""Tar shards in the layout of webdataset: samples, labels, classes, splits, and reading by position."""

import json
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import BytesIO
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from potstill.data import stored
from potstill.data import tar as module
from potstill.data.open import open_data
from potstill.data.order import Plan
from potstill.data.source import Subset
from potstill.data.stored import LocalFile
from potstill.data.streaming import StreamingLoader
from potstill.data.tar import TarSource
from potstill.errors import DataError, RunError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POTSTILL_CACHE", str(folder))
    return folder


def picture(value, kind="PNG", size=(4, 4)):
    buffer = BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def pack(path, members, **options):
    """A tar archive of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            content = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def shard(path, values=(1, 2, 3, 4), labels=(0, 1, 0, 1)):
    """The usual layout: an image and a class number for each key."""
    pairs = zip(values, labels, strict=True)
    return pack(
        path,
        [one for value, label in pairs for one in ((f"{value:04}.cls", label), (f"{value:04}.png", picture(value)))],
    )


def read(*paths, **options):
    return TarSource([LocalFile(path) for path in paths], name="shards", **options)


def values_of(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


class TestSamples:
    def test_the_usual_layout(self, tmp_path):
        path = shard(tmp_path / "a.tar")
        source = read(path)
        assert values_of(source) == [1, 2, 3, 4]
        assert source.labels.tolist() == [0, 1, 0, 1]
        assert source.labels.dtype == np.int64
        assert source.classes == ("0", "1")
        assert source.fixed_size == (4, 4)
        assert source.arrays()[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
        assert source.describe(2) == f"0003 of {path}"
        assert source.encoded(2) == picture(3)
        assert Subset(source, [3, 2]).encoded(1) == picture(3)
        assert (source.scattered, source.note) == (False, "")

    @pytest.mark.parametrize("extension", ["jpg", "JPEG", "png", "webp", "bmp", "gif", "tif", "tiff", "PPM"])
    def test_every_extension(self, tmp_path, extension):
        kinds = {"jpg": "JPEG", "tif": "TIFF"}
        content = picture(255, kinds.get(extension.lower(), extension.upper()))
        source = read(pack(tmp_path / "a.tar", [(f"a.{extension}", content)]))
        assert source.image(0).min() > 250

    def test_the_key_ends_at_the_first_dot_of_the_last_part(self, tmp_path):
        members = [
            ("v1.2/a.png", picture(1)), ("v1.2/a.cls", 0),
            ("v1.2/b.png", picture(2)), ("v1.2/b.seg.png", picture(200)), ("v1.2/b.cls", 1),
            ("./a.png", picture(3)), ("./a.cls", 1),
        ]  # fmt: skip
        source = read(pack(tmp_path / "a.tar", members))
        assert values_of(source) == [1, 2, 3]
        assert source.labels.tolist() == [0, 1, 1]
        assert source.describe(1).startswith("v1.2/b of ")

    def test_parts_of_a_sample_may_lie_apart(self, tmp_path):
        members = [("a.png", picture(1)), ("b.png", picture(2)), ("b.cls", 1), ("a.cls", 0)]
        source = read(pack(tmp_path / "a.tar", members))
        assert (values_of(source), source.labels.tolist()) == ([1, 2], [0, 1])

    def test_what_is_no_sample_is_passed_over(self, tmp_path):
        members = [
            (".DS_Store", "x"), ("__MACOSX/._a.png", "x"), ("README", "x"), ("a.png", picture(1)), ("a.cls", 0),
            ("a.txt", "a caption"), ("b.png", picture(2)), ("b.cls", 1),
        ]  # fmt: skip
        assert values_of(read(pack(tmp_path / "a.tar", members))) == [1, 2]

    def test_labels_without_images_are_told(self, tmp_path, caplog):
        read(pack(tmp_path / "a.tar", [("a.png", picture(1)), ("a.cls", 0), ("b.cls", 1), ("c.cls", 1)]))
        assert "passed over 2 labels without an image" in caplog.text

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_and_foreign_names(self, tmp_path, form):
        key = "/".join(["folder" * 5] * 4) + "/Bär" if form == tarfile.USTAR_FORMAT else "ü" * 300
        members = [(f"{key}.png", picture(7)), (f"{key}.cls", 1), ("b.png", picture(8)), ("b.cls", 0)]
        source = read(pack(tmp_path / "a.tar", members, format=form))
        assert values_of(source) == [7, 8]
        assert source.describe(0).startswith(f"{key} of ")

    def test_names_that_would_leave_the_folder_are_only_names(self, tmp_path):
        outside = tmp_path / "outside.png"
        members = [(f"{tmp_path}/outside.png", picture(1)), ("../../etc/passwd.png", picture(2))]
        source = read(pack(tmp_path / "data" / "a.tar", members))
        assert values_of(source) == [1, 2]
        assert not outside.exists()

    def test_a_name_for_a_terminal_is_shown_harmless(self, tmp_path):
        source = read(pack(tmp_path / "a.tar", [("a\x1b[2J.png", picture(1))]))
        assert "\x1b" not in source.describe(0)

    def test_uneven_shards_and_empty_ones(self, tmp_path):
        paths = [
            shard(tmp_path / "0.tar", (1, 2, 3), (0, 1, 0)), pack(tmp_path / "1.tar", []),
            shard(tmp_path / "2.tar", (4,), (1,)), shard(tmp_path / "3.tar", (5, 6), (0, 1)),
        ]  # fmt: skip
        source = read(*paths)
        assert values_of(source) == [1, 2, 3, 4, 5, 6]
        assert source.groups.tolist() == [0, 3, 4, 6]
        assert source.describe(3) == f"0004 of {paths[2]}"
        assert source.describe(4) == f"0005 of {paths[3]}"

    def test_a_key_may_come_again_in_another_shard(self, tmp_path):
        assert values_of(read(shard(tmp_path / "0.tar"), shard(tmp_path / "1.tar"))) == [1, 2, 3, 4] * 2

    def test_a_position_that_is_not_there(self, tmp_path):
        source = read(shard(tmp_path / "a.tar"))
        for index in (4, -1):
            with pytest.raises(IndexError, match=f"has 4 images, there is no image {index}"):
                source.encoded(index)

    def test_a_damaged_image_is_named(self, tmp_path):
        path = pack(tmp_path / "a.tar", [("a.png", picture(1)), ("b.png", picture(2)[:30]), ("c.png", b"")])
        source = read(path)
        with pytest.raises(DataError, match=f"Cannot read the image b of {path}: "):
            source.image(1)
        with pytest.raises(DataError, match=f"Cannot read the image c of {path}: it is empty"):
            source.image(2)

    def test_an_image_of_gigabytes_is_not_read(self, tmp_path, monkeypatch):
        source = read(shard(tmp_path / "a.tar"))
        monkeypatch.setattr(module, "MAX_BYTES", 10)
        with pytest.raises(DataError, match=r"0001 of .*a\.tar has \d+ bytes, more than the 10 of one image file"):
            source.image(0)

    def test_no_images(self, tmp_path):
        inner = (tmp_path / "n01440764.tar", [("n01440764.tar", "an archive in an archive")])
        for path in (pack(*inner), pack(tmp_path / "empty.tar", [])):
            with pytest.raises(DataError, match=r"shards has no images\. Shards in the layout of webdataset hold KEY"):
                read(path)


class TestLabels:
    def labelled(self, tmp_path, *labels, extension="cls", **options):
        members = [
            one for n, label in enumerate(labels) for one in ((f"{n}.{extension}", label), (f"{n}.png", picture(n)))
        ]
        return read(pack(tmp_path / "a.tar", members), **options)

    def test_numbers_with_a_line_end(self, tmp_path):
        assert self.labelled(tmp_path, "1\n", " 0 ", "1\r\n").labels.tolist() == [1, 0, 1]

    def test_a_field_of_json(self, tmp_path):
        labels = [json.dumps({"label": 1, "fine": 0}), json.dumps({"label": 0, "fine": 1})]
        assert self.labelled(tmp_path, *labels, extension="json").labels.tolist() == [1, 0]
        assert self.labelled(tmp_path, *labels, extension="json", field="fine").labels.tolist() == [0, 1]

    def test_cls_comes_before_json_unless_a_field_is_named(self, tmp_path):
        for names in (("cls", "json"), ("json", "cls")):
            content = {"cls": "1", "json": '{"label": 0, "other": 0}'}
            members = [("a.png", picture(1)), *((f"a.{name}", content[name]) for name in names)]
            path = pack(tmp_path / f"{names[0]}.tar", [*members, ("b.png", picture(2)), ("b.cls", 0)])
            assert read(path).labels.tolist() == [1, 0]
        with pytest.raises(DataError, match=r"1 of 2 images have no label \(field 'other' of KEY\.json\), .*: b of"):
            read(path, field="other")

    def test_json_that_nobody_needs_may_be_anything(self, tmp_path):
        for names in (("cls", "json"), ("json", "cls")):
            content = {"cls": "1", "json": "{broken"}
            members = [("a.png", picture(1)), *((f"a.{name}", content[name]) for name in names)]
            path = pack(tmp_path / f"{names[0]}.tar", [*members, ("b.png", picture(2)), ("b.cls", 0)])
            assert read(path).labels.tolist() == [1, 0]

    @pytest.mark.parametrize("extension", ["txt", "json"])
    def test_no_labels_and_it_is_said(self, tmp_path, extension):
        source = self.labelled(tmp_path, '{"caption": "a"}', "[1]", "null", extension=extension)
        assert (source.labels, source.classes) == (None, ())
        split = open_data("tar", tmp_path / "a.tar", val_fraction=0.4)
        assert split.note.startswith("There is no KEY.cls and no label in a KEY.json, so the images go without labels.")

    def test_labels_kept_back_are_no_labels(self, tmp_path):
        source = self.labelled(tmp_path, -1, -1)
        assert (source.labels, source.classes) == (None, ())
        assert source.note == "The labels are -1 throughout, so the images go without labels."

    @pytest.mark.parametrize(
        ("extension", "label", "message"),
        [
            ("cls", "cat", "the label of 1 is cat, but must be the number of its class"),
            ("cls", "", "the label of 1 is '', but must be the number"),
            ("cls", "1.0", r"the label of 1 is 1\.0, but must"),
            ("cls", "1_0", "the label of 1 is 1_0, but must"),
            ("cls", "9" * 30, "the label of 1 is 9+, but must"),
            ("cls", "0" * (1 << 21), r"1\.cls has 2,097,152 bytes, too many for a label"),
            ("cls", -1, r"1 labels lie outside 0\.\.0, the first at image 1: -1"),
            ("cls", 700, "labels go up to 700, but there are only 2 images.* classes.txt beside the shards"),
            ("json", '{"label": "cat"}', "the label of 1, 'label' in its .json, is 'cat', but must be the number"),
            ("json", '{"label": true}', "is True, but must be the number"),
            ("json", '{"label": 1.5}', r"is 1\.5, but must be the number"),
            ("json", '{"label": NaN}', "is nan, but must be the number"),
            ("json", "{broken", r"the \.json of 1 cannot be read"),
            ("json", "[" * 100_000, r"the \.json of 1 cannot be read"),
            ("json", "{}", r"1 of 2 images have no label \(KEY\.cls\), the first: 1 of"),
            (
                "txt",
                "1",
                r"1 of 2 images have no label \(KEY\.cls\), the first: 1 of .*Either each has one or none has",
            ),
        ],
    )
    def test_refused(self, tmp_path, extension, label, message):
        members = [("0.png", picture(0)), ("0.cls", 0), ("1.png", picture(1)), (f"1.{extension}", label)]
        with pytest.raises(DataError, match=message):
            read(pack(tmp_path / "a.tar", members))

    def test_a_label_beyond_the_classes(self, tmp_path):
        with pytest.raises(DataError, match=r"1 labels lie outside 0\.\.1, the first at image 1: 2"):
            self.labelled(tmp_path, 0, 2, classes=("cat", "dog"))


class TestOpening:
    def test_splits_by_name(self, tmp_path):
        for part, first in (("train", 1), ("val", 50)):
            for number in range(2):
                start = first + 4 * number
                shard(tmp_path / f"imagenet-{part}-{number:06}.tar", range(start, start + 4))
        split = open_data("auto", str(tmp_path))
        assert values_of(split.train) == list(range(1, 9))
        assert values_of(split.val) == list(range(50, 58))
        assert split.note == "Validation is the data's own validation set: 8 images."

    def test_splits_by_folder_with_names_above_them(self, tmp_path):
        """As the sets of CLIP's benchmark lie."""
        shard(tmp_path / "train" / "0.tar")
        shard(tmp_path / "test" / "0.tar", (9,), (1,))
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
        split = open_data("auto", tmp_path)
        assert (split.train.classes, split.val.classes) == (("cat", "dog"), ("cat", "dog"))
        assert (split.val.labels.tolist(), values_of(split.val)) == ([1], [9])

    def test_one_shard(self, tmp_path):
        split = open_data("auto", shard(tmp_path / "val-0.tar"), val_fraction=0.5)
        assert split.train.source.name == str(tmp_path / "val-0.tar")
        assert sorted(split.val.labels.tolist()) == [0, 1]

    def test_braces_and_wildcards(self, tmp_path):
        for number in range(3):
            shard(tmp_path / f"train-{number:03}.tar", (number,) * 1 + (100 + number,), (0, 1))
        shard(tmp_path / "val-000.tar", (50, 51), (0, 1))
        braces = open_data("auto", f"{tmp_path}/train-{{001..002}}.tar", val_fraction=0)
        assert values_of(braces.train) == [1, 101, 2, 102]
        both = open_data("auto", f"{tmp_path}/{{train,val}}-*.tar")
        assert (len(both.train), values_of(both.val)) == (6, [50, 51])
        alone = open_data("tar", f"{tmp_path}/val-*.tar", val_fraction=0)
        assert values_of(alone.train) == [50, 51]

    def test_braces_that_name_a_shard_that_is_not_there(self, tmp_path):
        shard(tmp_path / "train-000.tar")
        with pytest.raises(DataError, match=r"names files that are not there: .*train-001\.tar, .* and 7 more"):
            open_data("auto", f"{tmp_path}/train-{{000..010}}.tar")
        with pytest.raises(DataError, match=r"There is no file .*x-"):
            open_data("auto", f"{tmp_path}/x-*.tar")

    @pytest.mark.parametrize(
        ("name", "content", "classes"),
        [
            ("classes.txt", "cat\ndog\nemu\n", ("cat", "dog", "emu")),
            ("classes.txt", "\ufeffcat\r\ndog\r\n\r\n", ("cat", "dog")),
            ("classes.json", '["cat", "dog"]', ("cat", "dog")),
            ("classes.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),
            ("classes.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ],
    )
    def test_class_names(self, tmp_path, name, content, classes):
        path = shard(tmp_path / "a.tar")
        (tmp_path / name).write_text(content)
        assert open_data("auto", path, val_fraction=0).train.classes == classes

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("classes.txt", "", "should hold the classes' names"),
            ("classes.txt", "cat\n\ndog\n", "should hold the classes' names"),
            ("classes.txt", b"\xff\xfe", "cannot be read as names of classes"),
            ("classes.json", "{", "cannot be read as names of classes"),
            ("classes.json", "[" * 100_000, "cannot be read as names of classes"),
            ("classes.json", "3", "should hold the classes' names"),
            ("classes.json", '["cat", 1]', "should hold the classes' names"),
            ("classes.json", '{"cat": 0, "dog": 2}', "should hold the classes' names"),
            ("classes.json", '{"cat": 0, "dog": 0}', "should hold the classes' names"),
            ("classes.json", '{"0": "cat", "00": "dog"}', "should hold the classes' names"),
            ("classes.json", '{"0": ["n01440764", "tench"]}', "should hold the classes' names"),
            ("classes.txt", "cat\n", r"2 labels lie outside 0\.\.0"),
        ],
    )
    def test_class_names_that_are_none(self, tmp_path, name, content, message):
        path = shard(tmp_path / "a.tar")
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message):
            open_data("auto", path)

    def test_two_files_of_class_names(self, tmp_path):
        path = shard(tmp_path / "a.tar")
        for name in ("classes.txt", "classnames.txt"):
            (tmp_path / name).write_text("cat\ndog")
        with pytest.raises(DataError, match=r"There are .*classes\.txt and .*classnames\.txt, both with names"):
            open_data("auto", path)

    def test_names_outside_of_what_was_given_are_not_looked_for(self, tmp_path):
        (tmp_path / "classes.txt").write_text("cat\ndog")
        shard(tmp_path / "set" / "a.tar")
        assert open_data("auto", tmp_path / "set").train.classes == ("0", "1")
        assert open_data("auto", tmp_path).train.classes == ("cat", "dog")

    def test_one_class(self, tmp_path):
        with pytest.raises(DataError, match="one class only"):
            open_data("auto", shard(tmp_path / "a.tar", labels=(0, 0, 0, 0)))

    def test_columns(self, tmp_path):
        path = pack(tmp_path / "a.tar", [("a.png", picture(1)), ("a.json", '{"kind": 0}'),
                                         ("b.png", picture(2)), ("b.json", '{"kind": 1}')])  # fmt: skip
        assert open_data("auto", path, label_column="kind", val_fraction=0).train.labels.tolist() == [0, 1]
        with pytest.raises(DataError, match=r"data\.image_column='x' is for Parquet files, but the data are tar"):
            open_data("auto", path, image_column="x")

    def test_no_shard_in_a_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"There is no tar file in .*Give a \.tar file or a folder that holds some"):
            open_data("tar", tmp_path)

    def test_a_pipe_is_no_shard(self, tmp_path):
        os.mkfifo(tmp_path / "a.tar")
        with pytest.raises(DataError, match="There is no tar file"):
            open_data("tar", tmp_path)
        with pytest.raises(DataError, match="is no regular file"):
            LocalFile(tmp_path / "a.tar")


class TestIdentity:
    def test_it_follows_what_it_looks_at(self, tmp_path):
        first = read(shard(tmp_path / "1" / "a.tar"))
        assert read(shard(tmp_path / "2" / "a.tar")).identity == first.identity
        others = [
            read(shard(tmp_path / "3" / "b.tar")),
            read(shard(tmp_path / "4" / "a.tar", labels=(1, 1, 0, 1))),
            read(shard(tmp_path / "5" / "a.tar", values=(1, 2, 3, 5))),
            read(shard(tmp_path / "6" / "a.tar"), classes=("cat", "dog")),
            read(shard(tmp_path / "7" / "a.tar", (1, 2, 3), (0, 1, 0))),
        ]
        assert len({first.identity, *(other.identity for other in others)}) == 6
        assert len(first.identity) == 16

    def test_it_does_not_see_pixels_of_the_same_size(self, tmp_path):
        """What the documentation says of it."""
        same = [pack(tmp_path / name / "a.tar", [("a.bmp", picture(len(name), "BMP"))]) for name in ("1", "22")]
        assert read(same[0]).identity == read(same[1]).identity


class TestReading:
    def big(self, tmp_path, count=60):
        return [shard(tmp_path / f"{n}.tar", range(n * 20, n * 20 + 20), [0, 1] * 10) for n in range(count // 20)]

    def test_any_order(self, tmp_path):
        source = read(*self.big(tmp_path))
        order = np.random.default_rng(0).permutation(60)
        assert [int(source.image(int(index))[0, 0, 0]) for index in order] == order.tolist()

    def test_many_threads_and_few_open_files(self, tmp_path, monkeypatch):
        """A file that a thread reads from stays open although the cache has dropped it."""
        small = stored.lru_cache(maxsize=1)(stored._descriptor.__wrapped__)
        monkeypatch.setattr(stored, "_descriptor", small)
        source = read(*self.big(tmp_path))
        order = np.random.default_rng(0).permutation(60).tolist() * 20
        before = len(os.listdir("/proc/self/fd"))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda index: int(source.image(index)[0, 0, 0]), order)) == order
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    def test_a_spawned_process_reads_the_same(self, tmp_path):
        source = read(*self.big(tmp_path))
        source.image(0)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            assert pool.submit(source.encoded, 45).result(timeout=60) == source.encoded(45)
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.identity, copy.describe(59)) == (source.identity, source.describe(59))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_load_it_and_a_run_goes_on_from_any_step(self, tmp_path, workers):
        source = read(*self.big(tmp_path))
        plan = Plan(60, 16, 0, True)

        def steps(start):
            loader = StreamingLoader(source, plan, None, mean=[0.0] * 3, std=[1.0] * 3, workers=workers)
            return [batch for step in loader.epoch(1, start=start) for batch in step]

        whole, resumed = steps(0), steps(2)
        for batch in whole:
            assert (batch.images[:, 0, 0, 0] * 255).round().long().tolist() == batch.index.tolist()
        assert [batch.index.tolist() for batch in resumed] == [batch.index.tolist() for batch in whole[2:]]

    def test_a_shard_that_changes_stops_the_run(self, tmp_path):
        """Not an image's damage, which a run may be told to skip."""
        path = shard(tmp_path / "a.tar")
        source = read(path)
        os.utime(path, (1, 1))
        stored._descriptor.cache_clear()  # as in another process
        with pytest.raises(RunError, match=r"a\.tar changed since the run began"):
            source.image(0)
        path.unlink()
        with pytest.raises(RunError, match=r"Cannot read .*a\.tar: No such file"):
            source.image(0)

    def test_a_shard_that_shrinks_stops_the_run(self, tmp_path):
        path = shard(tmp_path / "a.tar")
        source = read(path)
        source.image(0)
        os.truncate(path, 600)
        with pytest.raises(RunError, match="is shorter than it was when the run began"):
            source.image(3)
