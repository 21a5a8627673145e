"""Records held on a device give what the files give, and only whole ones are held."""

import re

import pytest
import torch

from potstill.errors import RunError
from potstill.store import Store


@pytest.mark.parametrize("views", [None, [2], [2, 0]])
@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"dtype": "fp32"}])
def test_held_records_are_those_of_the_files(filled, views, changes):
    store = filled(**changes)
    held = store.resident("cpu", views)
    assert held.views == tuple(views or range(3))
    assert held.bytes == len(held.views) * 50 * store.layout.record_bytes
    make = torch.Generator().manual_seed(0)
    for size in (0, 1, 64):
        index = torch.randint(50, (size,), generator=make)
        view = torch.tensor(held.views)[torch.randint(len(held.views), (size,), generator=make)]
        found, expected = held.read(index, view), store.read(index, view)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(held.read(torch.arange(50), 2).logits, store.read(torch.arange(50), 2).logits)


def test_views_are_loaded_in_parts(filled, monkeypatch):
    store = filled()
    monkeypatch.setattr("potstill.store.resident._CHUNK_BYTES", 7 * 28)
    held = store.resident("cpu")
    for view in range(3):
        assert torch.equal(held.read(torch.arange(50), view).embedding, store.read(torch.arange(50), view).embedding)


def test_held_records_outlive_the_files(filled):
    store = filled()
    held = store.resident("cpu", [1])
    expected = store.read(torch.arange(50), 1).logits
    for path in store.folder.iterdir():
        path.unlink()
    found = held.read(torch.arange(50), 1)
    assert torch.equal(found.logits, expected)
    found.logits.zero_()
    assert torch.equal(held.read(torch.arange(50), 1).logits, expected)


@pytest.mark.parametrize(
    ("index", "view", "count"),
    [([0, 50], [1, 1], 1), ([-1], [1], 1), ([0], [0], 1), ([0, 1], [3, -1], 2), ([49, 50], [0, 0], 2)],
)
def test_what_is_not_held_is_an_error_and_never_another_row(filled, index, view, count):
    held = filled().resident("cpu", [1, 2])
    said = re.escape(f"{count} of the {len(index)} records asked for are not held: held are the views 1, 2 of 50 sam")
    with pytest.raises(RunError, match=said):
        held.read(torch.tensor(index), torch.tensor(view))


def test_a_sample_beyond_one_view_is_not_the_next_views(filled):
    held = filled().resident("cpu")
    for index, view in ((50, 0), (-1, 1), (0, 3), (0, -1)):
        with pytest.raises(RunError, match="1 of the 1 records asked for are not held: held are the views 0, 1, 2"):
            held.read(torch.tensor([index]), view)


def test_samples_and_views_are_whole_numbers_one_a_record(filled):
    store = filled()
    held = store.resident("cpu")
    small = torch.arange(50, dtype=torch.uint8)
    assert torch.equal(held.read(small, small % 3).logits, store.read(small, small % 3).logits)
    for index, view, said in (
        (torch.zeros(2), 0, r"whole numbers \(B,\); got \(2,\) of torch.float32"),
        (torch.arange(2), torch.tensor([1]), "2 samples and 1 views were given; one view a sample is needed"),
        (torch.tensor(2), 0, r"whole numbers \(B,\); got \(\)"),
    ):
        for reader in (held, store):
            with pytest.raises(RunError, match=said):
                reader.read(index, view)


def test_a_view_that_is_not_finished_is_not_held(cheap, small_shards, tmp_path):
    store = Store.create(tmp_path, cheap.key(50), cheap.layout(), 2)
    store.write(torch.arange(50), 1, cheap.features(torch.arange(50), 1))
    store.write(torch.arange(20), 0, cheap.features(torch.arange(20), 0))
    store.commit()
    assert store.resident("cpu", [1]).read(torch.tensor([7]), 1).logits.shape == (1, 5)
    with pytest.raises(RunError, match=r"30 of the 50 records of view 0 are not in .*: the store is not finished"):
        store.resident("cpu")
    with pytest.raises(RunError, match=r"view 2 cannot be held: the store in .* has 2 views"):
        store.resident("cpu", [2])


def test_damaged_records_are_not_held(filled):
    store = filled()
    path = store.folder / "rows-00001.bin"  # rows 40 to 79
    content = bytearray(path.read_bytes())
    content[13 * 28 + 5] ^= 4
    path.write_bytes(content)
    store.resident("cpu", [0, 2])
    with pytest.raises(
        RunError, match=r"1 records of view 1 in .* are damaged \(the first: sample 3\). Mend the store"
    ):
        Store.open(store.folder).resident("cpu", [1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_for_it(filled):
    store = filled()
    held = store.resident("cuda", [2, 0])
    index, view = torch.tensor([3, 49, 3], device="cuda"), torch.tensor([0, 2, 2], device="cuda")
    held.read(index, view)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = held.read(index, view)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = store.read(index, view)
    for ours, theirs in ((found.logits, expected.logits), (found.embedding, expected.embedding)):
        assert ours.device == theirs.device == index.device
        assert torch.equal(ours, theirs)
