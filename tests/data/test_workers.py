import os

import pytest

from potstill.data.workers import decoding_workers, turns


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, "1", 1), (6, "1", 6), (64, "1", 8), (64, "16", 4), (16, "8", 2), (2, "4", 1)],
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert decoding_workers() == workers


def test_processes_of_one_machine_begin_at_different_places(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    seen = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        seen.append(turns(7))
    assert seen == [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 0, 1], [4, 5, 6, 0, 1, 2, 3]]
    assert turns(0) == []
