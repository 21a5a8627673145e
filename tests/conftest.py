"""Fixtures that every test may use."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread a test process: the suite runs one worker a core, and more threads than cores slow it many times."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_after() -> Iterator[None]:
    """Take away where a command called in this process sent the library's sentences: no other test expects them."""
    yield
    logging.getLogger("potstill").handlers.clear()


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test wrote and imported: another test's may have the same name."""
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A folder of the real data by name; a test that asks for one that is not there is skipped, with the reason."""
    base = Path(os.environ.get("POTSTILL_TEST_DATA") or ROOT.parent / "shared" / "data")

    def folder(name: str) -> Path:
        path = base / name
        if not path.exists():
            pytest.skip(f"real data {name!r} not found at {path}; set POTSTILL_TEST_DATA to the folder that holds it")
        return path

    return folder
