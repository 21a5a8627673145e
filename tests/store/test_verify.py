"""Whatever happens to a store's files, looking at them finds it, and mending clears the way to build it again."""

import random
import shutil

import numpy as np
import pytest
import torch

from potstill.errors import RunError
from potstill.store import Store, mend, verify

RECORD = 28


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def finish(cheap, store: Store) -> int:
    """Build what is missing; how many records that were."""
    index, view = store.missing()
    store.write(index, view, cheap.features(index, view))
    store.commit()
    return len(index)


def test_a_whole_store_is_whole(filled):
    seen = []
    report = verify(filled().folder, progress=lambda done, of: seen.append((done, of)))
    assert report.complete
    assert report.sound
    assert report.sentences() == ["all 150 records are there and whole"]
    assert seen == [(40, 150), (80, 150), (120, 150), (150, 150)]


def test_a_store_that_is_not_finished_is_sound(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(48), 1, cheap.features(torch.arange(48), 1))
    store.commit()
    report = verify(tmp_path)
    assert (report.sound, report.complete) == (True, False)
    assert report.missing.tolist() == [*range(50), *range(98, 150)]
    assert report.sentences() == [
        "102 of 150 records are not written yet: sample 0 view 0 in rows-00000.bin; sample 1 view 0 in rows-00000.bin; "
        "sample 2 view 0 in rows-00000.bin; sample 3 view 0 in rows-00000.bin; sample 4 view 0 in rows-00000.bin; "
        "sample 5 view 0 in rows-00000.bin; sample 6 view 0 in rows-00000.bin; sample 7 view 0 in rows-00000.bin; "
        "sample 8 view 0 in rows-00000.bin; sample 9 view 0 in rows-00000.bin; ..."
    ]


def test_any_flipped_bit_of_a_record_is_found_and_its_record_named(filled):
    """All the bits of one record: numbers, what fills up the logits (bytes 10 and 11), the CRC-32."""
    folder = filled().folder
    path, row = folder / "rows-00002.bin", 103
    for bit in range(RECORD * 8):
        at = (row - 80) * RECORD * 8 + bit
        flip(path, at)
        assert verify(folder).damaged.tolist() == [row], bit
        flip(path, at)
    assert verify(folder).complete


def test_flipped_bits_anywhere_are_found(filled):
    folder = filled().folder
    chance = random.Random(0)
    for _ in range(60):
        shard = chance.randrange(4)
        path = folder / f"rows-{shard:05d}.bin"
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        report = verify(folder)
        row = shard * 40 + bit // 8 // RECORD
        assert report.damaged.tolist() == [row]
        assert report.sentences() == [
            f"1 of 150 records are damaged: sample {row % 50} view {row // 50} in rows-{shard:05d}.bin"
        ]
        flip(path, bit)


def test_two_rows_that_changed_places_are_found(filled):
    folder = filled().folder
    path = folder / "rows-00001.bin"
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD)
    rows[[3, 17]] = rows[[17, 3]]
    rows.tofile(path)
    assert verify(folder).damaged.tolist() == [43, 57]


def test_shards_that_changed_places_are_found(filled):
    folder = filled().folder
    one, other = (folder / f"rows-0000{number}.bin" for number in (0, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert verify(folder).damaged.tolist() == [*range(40), *range(80, 120)]


def test_the_shard_of_another_teachers_store_is_found(filled):
    """Of the same size, its sums right for the same rows."""
    store, other = filled(), filled("other", teacher="0" * 64)
    shutil.copy(other.folder / "rows-00001.bin", store.folder / "rows-00001.bin")
    assert verify(store.folder).damaged.tolist() == list(range(40, 80))


@pytest.mark.parametrize("size", [0, 1, 27, 28, 5 * 28 + 3, 40 * 28 - 1])
def test_a_shard_that_was_cut_short_is_found_refused_and_mended(cheap, filled, contents, size):
    store = filled()
    whole = contents(store.folder)
    path = store.folder / "rows-00001.bin"
    path.write_bytes(path.read_bytes()[:size])
    report = verify(store.folder)
    assert report.damaged.tolist() == list(range(40 + size // RECORD, 80))
    assert report.files == (f"rows-00001.bin has {size:,} bytes of 1,120",)
    said = rf"rows-00001.bin was cut short: it has {size} bytes of 1120. Put the whole file back; or mend the store"
    for call in (Store.open, lambda folder: Store.create(folder, store.key, store.layout, 4)):
        with pytest.raises(RunError, match=said):
            call(store.folder)
    assert path.stat().st_size == size  # a refused extension makes nothing longer
    mend(report)
    assert verify(store.folder).sound
    assert finish(cheap, Store.open(store.folder, write=True)) == 40 - size // RECORD
    assert contents(store.folder) == whole


def test_a_shard_that_is_gone_is_found_refused_and_mended(cheap, filled, contents):
    store = filled()
    whole = contents(store.folder)
    (store.folder / "rows-00003.bin").unlink()
    report = verify(store.folder)
    assert report.damaged.tolist() == list(range(120, 150))
    assert report.files == ("rows-00003.bin is missing",)
    with pytest.raises(RunError, match=r"rows-00003.bin is missing. Put the whole file back"):
        Store.open(store.folder)
    mend(report)
    assert finish(cheap, Store.open(store.folder, write=True)) == 30
    assert contents(store.folder) == whole


def test_damaged_records_are_mended_and_no_others(cheap, filled, contents):
    store = filled()
    whole = contents(store.folder)
    flip(store.folder / "rows-00000.bin", 12345 % (40 * RECORD * 8))
    flip(store.folder / "rows-00003.bin", 7)
    report = verify(store.folder)
    assert len(report.damaged) == 2
    mend(report)
    assert verify(store.folder).missing.tolist() == report.damaged.tolist()
    assert finish(cheap, Store.open(store.folder, write=True)) == 2
    assert contents(store.folder) == whole


def test_marks_that_were_cut_short_are_missing_rows(cheap, filled, contents):
    store = filled()
    whole = contents(store.folder)
    (store.folder / "done.bin").write_bytes(whole["done.bin"][:100])
    report = verify(store.folder)
    assert report.files == ("done.bin has 100 bytes of 150",)
    assert report.missing.tolist() == list(range(100, 150))
    with pytest.raises(RunError, match=r"done.bin was cut short"):
        Store.open(store.folder)
    mend(report)
    assert finish(cheap, Store.open(store.folder, write=True)) == 50
    assert contents(store.folder) == whole


def test_a_mark_where_nothing_was_written_is_found(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(50), 0, cheap.features(torch.arange(50), 0))
    store.commit()
    flip(tmp_path / "done.bin", 77 * 8)
    assert verify(tmp_path).damaged.tolist() == [77]


def test_a_mark_that_is_no_mark_is_found_and_its_row_not_read(filled):
    store = filled()
    flip(store.folder / "done.bin", 10 * 8 + 3)
    assert verify(store.folder).damaged.tolist() == [10]
    with pytest.raises(RunError, match="1 of the 1 records"):
        store.read(torch.tensor([10]), 0)


def test_a_file_that_is_too_long_is_found_unless_by_zeros(filled):
    store = filled()
    for name in ("rows-00003.bin", "done.bin"):
        path = store.folder / name
        path.write_bytes(path.read_bytes() + bytes(100))  # as of an extension that was broken off
        assert verify(store.folder).complete
    for name in ("rows-00003.bin", "done.bin"):
        path = store.folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    report = verify(store.folder)
    assert report.files == (
        "done.bin has 250 bytes, and 150 are the store's",
        "rows-00003.bin has 940 bytes, and 840 are the store's",
    )
    assert not report.sound
    with pytest.raises(RunError, match=r"done.bin is damaged: it marks records of views that the store does not have"):
        Store.create(store.folder, store.key, store.layout, 5)
    mend(report)
    assert verify(store.folder).complete
    assert Store.create(store.folder, store.key, store.layout, 5).missing()[1].unique().tolist() == [3, 4]


def test_records_that_are_not_marked_may_hold_anything(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 3)
    store.write(torch.arange(50), 0, cheap.features(torch.arange(50), 0))
    store.commit()
    flip(tmp_path / "rows-00003.bin", 5)  # as a process leaves it that was killed before it committed
    assert verify(tmp_path).sound


def test_damaged_class_means_are_found(filled):
    store = filled()
    store.write_class_means(torch.randn(5, 6), "clean")
    assert verify(store.folder).complete
    path = store.folder / "class_means.safetensors"
    flip(path, (path.stat().st_size - 3) * 8)
    (sentence,) = verify(store.folder).files
    assert sentence == "class_means.safetensors is damaged, or another store's"
    mend(verify(store.folder))
    assert verify(store.folder).complete
    assert store.class_means("clean") is None
