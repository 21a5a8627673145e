import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch

from potstill.errors import RunError
from potstill.files import write_atomically
from potstill.training.checkpoints import Checkpoints


def test_keeps_the_newest_and_loads_what_was_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for step in (5, 10, 100):
        checkpoints.save(step, {"step": step, "weights": torch.arange(3) * step, "rows": [{"top1": 1.5}]})
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000010.pt", "step-00000100.pt"]
    state = checkpoints.load(checkpoints.newest())
    assert state["step"] == 100
    assert state["weights"].tolist() == [0, 100, 200]
    assert state["rows"] == [{"top1": 1.5}]


def test_a_damaged_checkpoint_is_named_with_the_one_before_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": torch.ones(100)})
    newest = checkpoints.save(2, {"a": torch.ones(100)})
    newest.write_bytes(newest.read_bytes()[:200])
    with pytest.raises(RunError, match=r"step-00000002\.pt cannot be read .*delete it to go on from step-00000001\.pt"):
        checkpoints.load(newest)


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(RunError, match=r"is refused: to load it would run code \(posix\.mkdir\)"):
        Checkpoints(tmp_path).load(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(_Evil()))  # the payload does work where it is let
    assert (tmp_path / "executed").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, {"a": torch.zeros(10)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match=r"could not be written: .* What was there before is whole"):
            Checkpoints(tmp_path).save(1, {"a": torch.zeros(100_000)})
        with pytest.raises(RunError, match="could not be written"):
            write_atomically(tmp_path / "metrics.csv", lambda part: part.write_bytes(b"x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parts_of_a_killed_write_are_cleared(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    whole = checkpoints.save(3, {"a": 1})
    (tmp_path / "step-00000004.pt.part").write_bytes(b"half")
    assert checkpoints.newest() == whole
    checkpoints.clear_parts()
    assert [p.name for p in tmp_path.iterdir()] == [whole.name]
