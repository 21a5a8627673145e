"""How large a store gets, told before it is built, and true."""

import shutil
from types import SimpleNamespace

import pytest

from potstill.errors import RunError
from potstill.store import Layout, Store, store_size

EMBEDDING_256 = (("logits", (100,)), ("embedding", (256,)))


def test_cifar_with_8_views_takes_less_than_300_mb():
    size = store_size(Layout(EMBEDDING_256, "fp16"), samples=50_000, views=8)
    assert (size.record_bytes, size.map_bytes) == (716, 0)
    assert size.total_bytes == 8 * 50_000 * 717
    assert size.total_bytes < 300e6


def test_a_store_is_as_large_as_was_said(cheap, filled):
    store = filled()
    files = {path.name: path.stat().st_size for path in store.folder.iterdir()}
    assert files.pop("store.json") < 3000
    assert sum(files.values()) == store_size(store.layout, 50, 3).total_bytes == 150 * 29


def test_what_feature_maps_cost_is_said():
    layout = Layout((*EMBEDDING_256, ("maps.0", (64, 8, 8)), ("blocks.0", (3, 1, 1))), "fp16")
    size = store_size(layout, samples=1000, views=2)
    assert size.map_bytes == 64 * 8 * 8 * 2 + 8
    assert size.sentence() == (
        "The store takes 8,916 bytes a record: 8.9 MB a view, 17.8 MB for 2 views of 1,000 images. Feature maps are "
        "92.0 % of it: without them it takes 1.4 MB."
    )
    only = store_size(Layout((("maps.0", (2, 1, 1)),), "fp16"), samples=10, views=1)
    assert only.map_bytes == 4
    assert "Feature maps are 50.0 % of it" in only.sentence()


def test_fewer_logits_make_it_smaller():
    layout = Layout((("logits", (1000,)),), "fp16", top_k=10)
    assert store_size(layout, 1_281_167, 1).record_bytes == 10 * 2 + 10 * 2 + 4 + 4


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(cheap, filled, monkeypatch, tmp_path):
    store = filled()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=40 * 29))
    with pytest.raises(RunError, match=r"needs 4.3 kB, and its disk has 1.2 kB free: keep fewer views"):
        Store.create(tmp_path / "new", cheap.key(50), cheap.layout(), 3)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(RunError, match=r"needs 1.4 kB"):  # one view more than there is
        Store.create(store.folder, store.key, store.layout, 4)
    assert Store.open(store.folder).views == 3
    assert len(Store.create(store.folder, store.key, store.layout, 3)) == 150  # what is there takes no more
