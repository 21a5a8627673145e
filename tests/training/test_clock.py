"""The clock: every moment belongs to one part, on a host and, by marks in its queue, on a device."""

import itertools
from typing import Any

import pytest
import torch

from potstill.training import clock as clocks
from potstill.training.clock import PARTS, Clock

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Watch:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(clocks.time, "perf_counter", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Device:
    """A device beside the host: what is queued takes its own time, and a mark is passed when all before it is done."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.busy_until, self.waits = watch, watch.now, 0

    def run(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, self.watch.now) + seconds

    def mark(self) -> "Event":
        self.busy_until = max(self.busy_until, self.watch.now)
        return Event(self, self.busy_until)


class Event:
    def __init__(self, device: Device, at: float) -> None:
        self.device, self.at = device, at

    def synchronize(self) -> None:
        self.device.waits += 1
        self.device.watch.now = max(self.device.watch.now, self.at)

    def elapsed_time(self, end_event: Any) -> float:
        assert end_event.at <= self.device.watch.now, "read before it was passed"
        return 1000 * (end_event.at - self.at)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def nonzero(parts: dict[str, float]) -> dict[str, float]:
    return {part: round(seconds, 9) for part, seconds in parts.items() if seconds}


def test_each_lap_gets_what_has_passed_and_together_they_are_the_whole(watch: Watch) -> None:
    clock = Clock(CPU)
    watch.wait(7)  # before it starts, nobody's
    clock.start()
    for part, seconds in zip(PARTS, itertools.count(1), strict=False):
        watch.wait(seconds)
        clock.lap(part)
    watch.wait(5)  # after the last lap, not yet anybody's
    assert nonzero(clock.read()) == dict(zip(PARTS, range(1, len(PARTS) + 1), strict=True))
    assert clock.wall == sum(clock.totals().values()) == len(PARTS) * (len(PARTS) + 1) / 2
    assert clock.launching == 0


def test_what_is_not_the_runs_time_is_left_out(watch: Watch) -> None:
    clock = Clock(CPU)
    clock.start()
    watch.wait(1)
    clock.lap("host")
    watch.wait(50)  # another run's step
    clock.start()
    watch.wait(2)
    clock.lap("data")
    assert nonzero(clock.totals()) == {"host": 1, "data": 2}
    assert clock.wall == 3


def test_reading_gives_what_came_since_and_totals_give_all(watch: Watch) -> None:
    clock = Clock(CPU)
    clock.start()
    watch.wait(1)
    clock.lap("data")
    assert nonzero(clock.read()) == {"data": 1}
    watch.wait(2)
    clock.lap("data")
    assert nonzero(clock.totals()) == {"data": 3}
    assert nonzero(clock.read()) == {"data": 2}
    assert nonzero(clock.read()) == {}


def test_a_resumed_run_counts_on(watch: Watch) -> None:
    first = Clock(CPU)
    first.start()
    watch.wait(4)
    first.lap("forward")
    second = Clock(CPU)
    second.restore(first.totals())
    second.start()
    watch.wait(1)
    second.lap("backward")
    assert nonzero(second.totals()) == {"forward": 4, "backward": 1}
    assert nonzero(second.read()) == {"backward": 1}
    with pytest.raises(KeyError, match="graph"):
        second.restore({part: 0.0 for part in PARTS if part != "graph"})


def test_a_whole_is_one_part_whatever_laps_it_takes(watch: Watch) -> None:
    clock = Clock(CPU)
    clock.start()
    with clock.whole("graph"):
        for part in ("forward", "backward"):
            watch.wait(1)
            clock.lap(part)
    watch.wait(1)
    clock.lap("forward")
    assert nonzero(clock.totals()) == {"graph": 2, "forward": 1}
    with pytest.raises(ZeroDivisionError), clock.whole("graph"):
        1 / 0  # noqa: B018
    watch.wait(1)
    clock.lap("host")
    assert nonzero(clock.totals()) == {"graph": 2, "forward": 1, "host": 1}


def test_an_unknown_part_is_no_part(watch: Watch) -> None:
    clock = Clock(CPU)
    clock.start()
    with pytest.raises(KeyError):
        clock.lap("lunch")


def test_on_a_device_a_part_is_what_the_device_took_and_a_lap_never_waits(watch: Watch) -> None:
    device = Device(watch)
    clock = Clock(CUDA, device.mark)
    clock.start()
    watch.wait(0.5)  # the host makes a batch while the device has nothing to do
    clock.lap("data")
    for part, work in (("forward", 3.0), ("backward", 6.0), ("optimizer", 1.0)):
        watch.wait(0.1)  # launching is quick, and the device works on
        device.run(work)
        clock.lap(part)
    assert (device.waits, clock.wall) == (0, pytest.approx(0.8))
    found = clock.read()
    assert device.waits == 1
    assert nonzero(found) == {"data": 0.5, "forward": pytest.approx(3.1), "backward": 6.0, "optimizer": 1.0}
    assert clock.wall == pytest.approx(sum(found.values()))  # the wait belongs to the run, and to no one's work
    assert clock.launching == pytest.approx(0.8)


def test_on_a_device_the_hosts_own_work_is_the_devices_gap(watch: Watch) -> None:
    device = Device(watch)
    clock = Clock(CUDA, device.mark)
    clock.start()
    device.run(1.0)
    clock.lap("graph")
    clock.read()
    watch.wait(2.0)  # a row is written; the queue is empty
    clock.lap("host")
    watch.wait(30.0)  # evaluation: the host waits for accuracies
    clock.lap("evaluation")
    watch.wait(9.0)
    clock.start()
    device.run(1.0)
    clock.lap("graph")
    assert nonzero(clock.read()) == {"host": 2.0, "evaluation": 30.0, "graph": 1.0}
    assert nonzero(clock.totals()) == {"graph": 2.0, "host": 2.0, "evaluation": 30.0}
    assert clock.launching == pytest.approx(2.0)
    assert clock.wall == pytest.approx(34.0)


def test_marks_that_were_read_are_let_go(watch: Watch) -> None:
    device = Device(watch)
    clock = Clock(CUDA, device.mark)
    clock.start()
    for _ in range(50):
        device.run(0.1)
        clock.lap("graph")
    clock.read()
    assert len(clock._marks) == 1
    assert nonzero(clock.totals()) == {"graph": pytest.approx(5.0)}


def test_a_recorded_step_puts_no_mark_into_the_queue(watch: Watch) -> None:
    marks: list[Event] = []
    device = Device(watch)
    clock = Clock(CUDA, lambda: marks.append(device.mark()) or marks[-1])
    clock.start()
    with clock.whole("graph"):
        for part in ("teacher", "forward", "backward", "optimizer"):
            clock.lap(part)
        assert len(marks) == 1
    assert len(marks) == 2


def test_it_is_the_hosts_watch_where_there_are_no_marks(watch: Watch) -> None:
    clock = Clock(torch.device("mps"))
    clock.start()
    watch.wait(1)
    clock.lap("forward")
    assert nonzero(clock.totals()) == {"forward": 1}
