import os

import pytest

from potstill.data.workers import decoding_workers


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, "1", 1), (6, "1", 6), (64, "1", 8), (64, "16", 4), (16, "8", 2), (2, "4", 1)],
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert decoding_workers() == workers
