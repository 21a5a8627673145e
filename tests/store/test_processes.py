"""Several processes that write to one store, and processes that are killed while they do."""

import random
import subprocess
import sys
import time

import pytest
import torch

from potstill.store import Store, verify

SAMPLES, VIEWS = 200, 3


@pytest.fixture
def start(cheap):
    """Start a writing process, and wait until it begins to write."""
    running = []

    def begin(folder, part: int, parts: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, cheap.path, str(folder), str(SAMPLES), str(part), str(parts)],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture
def undisturbed(cheap, tmp_path, monkeypatch, contents):
    """A new store, and the bytes of one that a single process filled at once."""
    monkeypatch.setattr("potstill.store.shards.SHARD_BYTES", 110 * 28)
    stores = [Store.create(tmp_path / name, cheap.key(SAMPLES), cheap.layout(), VIEWS) for name in ("new", "whole")]
    for view in range(VIEWS):
        stores[1].write(torch.arange(SAMPLES), view, cheap.features(torch.arange(SAMPLES), view))
    stores[1].commit()
    assert len(list((tmp_path / "new").glob("rows-*.bin"))) == 6
    return tmp_path / "new", contents(tmp_path / "whole")


def test_processes_that_write_at_the_same_time_make_the_store_of_one(start, undisturbed, contents):
    folder, whole = undisturbed
    writers = [start(folder, part, 3) for part in range(3)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 3
    rows = [set(map(int, writer.stdout.read().split())) for writer in writers]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [len(own) for own in rows] == [200, 200, 200]
    assert set.union(*rows) == set(range(SAMPLES * VIEWS))
    assert contents(folder) == whole
    assert verify(folder).complete


@pytest.mark.slow
def test_a_store_whose_writers_are_killed_is_that_of_an_undisturbed_one(start, undisturbed, contents):
    folder, whole = undisturbed
    chance = random.Random()  # other instants each time
    for _ in range(5):
        marked = (folder / "done.bin").read_bytes()
        writer = start(folder, 0, 1)
        lines = [writer.stdout.readline() for _ in range(chance.randint(1, 9))]
        assert lines.pop(0) == "ready\n"
        time.sleep(chance.uniform(0.0, 0.01))
        writer.kill()
        assert writer.wait() == -9
        lines += [line for line in writer.stdout if line.endswith("\n")]
        written = [int(row) for line in lines for row in line.split()]
        assert not any(marked[row] for row in written)  # only what was missing
        report = verify(folder)
        assert report.sound  # nothing marked is damaged
        assert len(report.missing) > 0
    last = start(folder, 0, 1)
    last.communicate()
    assert last.returncode == 0
    assert contents(folder) == whole
