"""A store: every record at its place whatever the order, nothing read that is not there, nothing lost on the way."""

import os
import re
import resource
import time

import numpy as np
import pytest
import torch

from potstill.errors import RunError
from potstill.networks.features import Features
from potstill.store import Layout, Store


def check_records(cheap, store: Store, index: torch.Tensor, view: torch.Tensor | int) -> None:
    found, expected = store.read(index, view), cheap.features(index, view)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.embedding, expected.embedding)


def test_a_record_is_found_at_its_offset_whatever_the_order_it_was_written_in(cheap, filled, contents, tmp_path):
    in_order = filled("in_order")
    store = Store.create(tmp_path / "store", cheap.key(50), cheap.layout(), 3)
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    for rows in shuffled.split([1, 7, 64, 0, 78]):
        store.write(rows % 50, rows // 50, cheap.features(rows % 50, rows // 50))
    store.commit()
    assert contents(store.folder) == contents(in_order.folder)

    assert [path.name for path in sorted(store.folder.iterdir())] == [
        "done.bin", "rows-00000.bin", "rows-00001.bin", "rows-00002.bin", "rows-00003.bin", "store.json",
    ]  # fmt: skip
    view, index = 2, 17
    row = view * 50 + index  # the 37th of shard 2
    record = (store.folder / "rows-00002.bin").read_bytes()[(row - 80) * 28 :][:28]
    stored = np.frombuffer(record, dtype=np.float16)
    expected = cheap.features(torch.tensor([index]), view)
    assert stored[:5].tolist() == expected.logits[0].tolist()
    assert stored[6:12].tolist() == expected.embedding[0].tolist()


def test_any_batch_is_read_as_it_was_written(cheap, filled):
    store = Store.open(filled().folder)
    make = torch.Generator().manual_seed(1)
    for size in (0, 1, 2, 64, 333):
        index, view = (torch.randint(most, (size,), generator=make) for most in (50, 3))
        check_records(cheap, store, index, view)
        assert store.has(index, view).all()
    check_records(cheap, store, torch.arange(50), 1)  # one view for all
    found = store.read(torch.arange(50, dtype=torch.int32), torch.full((50,), 2, dtype=torch.uint8))
    assert torch.equal(found.logits, cheap.features(torch.arange(50), 2).logits)


def test_what_is_there_and_what_is_missing(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    assert len(store) == 0
    assert [tensor.tolist() for tensor in store.missing(1)] == [list(range(50)), [1] * 50]
    index, view = torch.tensor([3, 49, 0]), torch.tensor([0, 1, 2])
    store.write(index, view, cheap.features(index, view))
    store.commit()
    assert len(store) == 3
    assert store.has(torch.tensor([3, 3, 49, 49, 0]), torch.tensor([0, 1, 1, 2, 2])).tolist() == [
        True, False, True, False, True,
    ]  # fmt: skip
    missing_index, missing_view = store.missing()
    assert len(missing_index) == 147
    assert not store.has(missing_index, missing_view).any()
    assert [tensor.tolist() for tensor in store.missing(2)] == [list(range(1, 50)), [2] * 49]


def test_records_that_are_not_there_are_an_error_and_never_zeros(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(40), 1, cheap.features(torch.arange(40), 1))
    store.commit()
    reader = Store.open(tmp_path)
    check_records(cheap, reader, torch.arange(40), 1)
    said = r"10 of the 50 records asked for are not in .* \(the first: sample 40, view 1\): the store is not finished"
    with pytest.raises(RunError, match=said):
        reader.read(torch.arange(50), torch.tensor([1] * 48 + [0] * 2))
    with pytest.raises(RunError, match=r"1 of the 1 records .*Go on with building it; only what is missing is made"):
        reader.read(torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("index", "view", "said"),
    [
        ([50], [0], "sample 50 was asked for, and the store in .* has place for 50 samples, numbered from 0"),
        ([-1], [0], "sample -1 was asked for"),
        ([0], [3], "view 3 was asked for, and the store in .* has place for 3 views"),
        ([0, 1], [0, -1], "view -1 was asked for"),
        ([0, 1], [0], "2 samples and 1 views were given"),
        ([0.0], [0], r"whole numbers \(B,\); got \(1,\) of torch.float32"),
        ([[0]], [0], r"whole numbers \(B,\); got \(1, 1\)"),
    ],
)
def test_samples_and_views_beyond_the_store_are_refused(filled, index, view, said):
    store = filled()
    for call in (store.read, store.has, store.rows):
        with pytest.raises(RunError, match=said):
            call(torch.tensor(index), torch.tensor(view))
    with pytest.raises(RunError, match="view 3 was asked for"):
        store.missing(3)


def test_what_is_written_counts_once_it_is_committed(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 1)
    reader = Store.open(tmp_path)
    store.write(torch.arange(9), 0, cheap.features(torch.arange(9), 0))
    assert (len(store), len(reader)) == (0, 0)
    store.commit()
    assert (len(store), len(reader)) == (9, 9)  # a reader that is open sees it
    check_records(cheap, reader, torch.arange(9), 0)
    store.commit()  # nothing to do


def test_a_with_block_commits_unless_it_fails(cheap, tmp_path):
    with Store.create(tmp_path, cheap.key(50), cheap.layout(), 1) as store:
        store.write(torch.arange(9), 0, cheap.features(torch.arange(9), 0))
    assert len(store) == 9

    def breaks_off() -> None:
        with Store.open(tmp_path, write=True) as again:
            again.write(torch.arange(9, 20), 0, cheap.features(torch.arange(9, 20), 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks_off()
    assert len(store) == 9


def test_marks_are_written_after_the_data_lies_on_the_disk(cheap, small_shards, tmp_path, monkeypatch):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(50), 0, cheap.features(torch.arange(50), 0))
    flushed, whole = [], os.fsync

    def fsync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((name, sum((tmp_path / "done.bin").read_bytes())))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.commit()
    assert flushed == [("rows-00000.bin", 0), ("rows-00001.bin", 0), ("done.bin", 50)]


def test_what_a_disk_does_not_take_is_not_marked(cheap, small_shards, tmp_path, monkeypatch):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(50), 0, cheap.features(torch.arange(50), 0))

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(RunError, match=r"rows-00000.bin could not be written: Input/output error. What was comm"):
            store.commit()
    assert len(Store.open(tmp_path)) == 0


def test_a_full_disk_is_an_error_and_the_store_stays_whole(cheap, small_shards, tmp_path):
    """The system refuses what lies beyond a size, as it refuses what a full disk cannot take."""
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 28, limits[1]))
    try:
        store.write(torch.arange(20), 0, cheap.features(torch.arange(20), 0))
        store.commit()
        with pytest.raises(RunError, match=r"rows-00000.bin could not be written: File too large"):
            store.write(torch.arange(15, 30), 0, cheap.features(torch.arange(15, 30), 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reader = Store.open(tmp_path)
    assert len(reader) == 20
    check_records(cheap, reader, torch.arange(20), 0)
    store.write(torch.arange(15, 50), 0, cheap.features(torch.arange(15, 50), 0))
    store.commit()
    check_records(cheap, reader, torch.arange(50), 0)


def test_of_a_sample_that_comes_twice_the_last_record_counts(cheap, filled):
    store = filled()
    given = cheap.features(torch.tensor([4, 5, 6]), 0)
    store.write(torch.tensor([7, 8, 7]), 0, given)
    store.commit()
    assert torch.equal(store.read(torch.tensor([7, 8]), 0).logits, given.logits[[2, 1]])


def test_a_reader_writes_nothing(cheap, filled, contents):
    folder = filled().folder
    before = contents(folder)
    reader = Store.open(folder)
    with pytest.raises(RunError, match="is open for reading; open it with write=True to write to it"):
        reader.write(torch.arange(2), 0, cheap.features(torch.arange(2), 0))
    with pytest.raises(RunError, match="is open for reading"):
        reader.write_class_means(torch.zeros(5, 6), "clean")
    with reader:
        found = reader.read(torch.arange(50), 0)
        found.logits.zero_(), found.embedding.fill_(7)  # the caller's own memory
    check_records(cheap, reader, torch.arange(50), 0)
    for part in (reader._marks, reader._shards._file(0)):
        assert not part.span(0, 1).flags.writeable
    assert contents(folder) == before


def test_a_folder_that_may_only_be_read_can_be_read(cheap, filled):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = filled().folder
    for path in [*folder.iterdir(), folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    check_records(cheap, Store.open(folder), torch.arange(50), 2)


def test_a_batch_of_features_must_be_as_long_as_its_index(cheap, filled):
    with pytest.raises(RunError, match="features of 3 images were given for 4 samples"):
        filled().write(torch.arange(4), 0, cheap.features(torch.arange(3), 0))


def test_nothing_of_a_refused_batch_is_stored(cheap, filled, contents):
    store = filled()
    before = contents(store.folder)
    bad = cheap.features(torch.arange(4), 0)
    bad.embedding[3, 0] = 1e6
    with pytest.raises(RunError, match="beyond the largest of fp16"):
        store.write(torch.arange(4), 1, bad)
    store.commit()
    assert contents(store.folder) == before


def test_more_views_go_behind_those_that_are_there(cheap, filled, contents):
    store = filled(views=2)
    before = contents(store.folder)
    longer = Store.create(store.folder, store.key, store.layout, 6)
    assert (longer.views, len(longer)) == (6, 100)
    for number in range(2):
        assert (store.folder / f"rows-{number:05d}.bin").read_bytes() == before[f"rows-{number:05d}.bin"]
    check_records(cheap, longer, torch.arange(50), 1)
    check_records(cheap, store, torch.arange(50), 1)  # one that is open goes on
    index, view = longer.missing()
    assert (len(index), view.min().item()) == (200, 2)
    longer.write(index, view, cheap.features(index, view))
    longer.commit()
    assert contents(store.folder) == contents(filled("at_once", views=6).folder)
    assert Store.create(store.folder, store.key, store.layout, 2).views == 6  # fewer take nothing away


def test_an_extension_that_was_broken_off_is_gone_on_with(cheap, filled, contents, monkeypatch):
    store = filled(views=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.store.manifest.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            Store.create(store.folder, store.key, store.layout, 6)
    reader = Store.open(store.folder)
    assert (reader.views, len(reader)) == (2, 100)
    longer = Store.create(store.folder, store.key, store.layout, 6)
    index, view = longer.missing()
    longer.write(index, view, cheap.features(index, view))
    longer.commit()
    assert contents(store.folder) == contents(filled("at_once", views=6).folder)


def test_a_creation_that_was_broken_off_is_begun_again(cheap, filled, contents, monkeypatch, tmp_path):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.store.manifest.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            filled("broken")
    (tmp_path / "broken" / "store.json.part").write_bytes(b"{")
    with pytest.raises(RunError, match=r"is no store of teacher outputs: it has no store.json"):
        Store.open(tmp_path / "broken")
    filled("broken")
    assert contents(tmp_path / "broken") == contents(filled("at_once").folder)


def test_the_size_of_a_shard_is_that_of_the_store_not_of_the_reader(cheap, filled, monkeypatch):
    store = filled(views=2)
    monkeypatch.setattr("potstill.store.shards.SHARD_BYTES", 28 * 11)
    longer = Store.create(store.folder, store.key, store.layout, 3)
    check_records(cheap, longer, torch.arange(50), 1)
    assert len(list(store.folder.glob("rows-*.bin"))) == 4


def test_the_teacher_must_give_what_the_store_keeps(cheap, filled):
    store = filled()
    other = Layout.of(Features(torch.zeros(1, 5), torch.zeros(1, 8)))
    with pytest.raises(
        RunError, match=re.escape("keeps logits (5,), embedding (6,), and the teacher now gives logits")
    ):
        Store.create(store.folder, store.key, other, 3)
    with pytest.raises(RunError, match="a store's key and layout differ in taps, dtype or top_k"):
        Store.create(store.folder / "new", store.key, cheap.layout(dtype="bf16"), 3)
    with pytest.raises(RunError, match="a store's views must be a whole number, 1 or more; got 0"):
        Store.create(store.folder / "new", store.key, store.layout, 0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_defaults_change_nothing(cheap, filled, device):
    store = filled(top_k=2)
    index, view = torch.tensor([3, 4]), torch.tensor([0, 2])
    expected = store.read(index, view)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device(device):
            found = Store.open(store.folder, store.key).read(index, view)
            held = store.resident("cpu", [2, 0]).read(index, view)
            missing = store.missing(0)
    finally:
        torch.set_default_dtype(torch.float32)
    for features in (found, held):
        assert torch.equal(features.logits, expected.logits)
        assert torch.equal(features.embedding, expected.embedding)
    assert [tensor.device.type for tensor in missing] == ["cpu", "cpu"]


def test_reading_is_fast(cheap, tmp_path):
    """The floor is 200,000 records of 716 bytes a second; a core of 2024 reads 4 to 20 times as many."""
    features = Features(torch.randn(4000, 100), torch.randn(4000, 256))
    store = Store.create(tmp_path, cheap.key(4000), Layout.of(features), 4)
    for view in range(4):
        store.write(torch.arange(4000), view, features)
    store.commit()
    for size in (64, 1024):
        batches = [(torch.randint(4000, (size,)), torch.randint(4, (size,))) for _ in range(2048 // size)]
        rates = []
        for _ in range(20):
            start = time.perf_counter()
            for index, view in batches:
                store.read(index, view)
            rates.append(2048 / (time.perf_counter() - start))
        assert max(rates) > 200_000
