"""Reading a document as somebody would who does what it says."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.docs.documents import FENCE, NAMED, ROOT, TEXTS


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Read a document in a folder of its own, with the files that it shows; its modules are forgotten afterwards."""
    before = set(sys.modules)

    def read(name: str) -> Path:
        folder = tmp_path / name.replace("/", "-")
        if not folder.exists():
            folder.mkdir()
            for part in ("recipes", "studies", "races"):
                (folder / part).symlink_to(ROOT / part)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        for found in FENCE.finditer(TEXTS[name]):
            if found["kind"] in ("python", "yaml") and (match := NAMED.match(found["body"])):
                (folder / match[1]).write_text(found["body"], encoding="utf-8")
        return folder

    yield read
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
