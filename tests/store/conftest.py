"""A teacher that costs nothing, and stores of its outputs."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from potstill.store import Store

WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture(scope="session")
def cheap() -> SimpleNamespace:
    """The functions of ``writer.py``: ``features(index, view)``, ``key(samples, **changes)``, ``layout(**changes)``."""
    return SimpleNamespace(**runpy.run_path(str(WRITER)), path=WRITER)


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Shards of 40 records of 28 bytes."""
    monkeypatch.setattr("potstill.store.shards.SHARD_BYTES", 40 * 28 + 7)


@pytest.fixture
def filled(cheap, small_shards, tmp_path) -> Callable[..., Store]:
    """Make a store of 50 samples and 3 views in 4 shards, all of it written, open for writing."""

    def fill(name: str = "store", samples: int = 50, views: int = 3, **changes) -> Store:
        key = cheap.key(samples, **changes)
        store = Store.create(tmp_path / name, key, cheap.layout(**changes), views)
        for view in range(views):
            index = torch.arange(samples)
            store.write(index, view, cheap.features(index, view))
        store.commit()
        return store

    return fill


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of each of a folder's files by name."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
