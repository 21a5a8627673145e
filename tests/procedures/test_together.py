"""What students share: steps made once, the teacher's pass once, and turns that keep them at the same step."""

from collections.abc import Iterator

import pytest
import torch

from potstill.batch import Batch
from potstill.networks.features import Features
from potstill.procedures.together import SharedLoader, SharedTeaching, side_by_side
from potstill.training.settings import Stopped


def batch(number: int) -> Batch:
    index = torch.tensor([number])
    return Batch(torch.full((1, 3, 2, 2), float(number)), None, index, torch.zeros_like(index))


class Counted:
    """A loader of three steps that counts what it makes."""

    steps = 3

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        for step in range(start, self.steps):
            self.made.append((epoch, step))
            yield [batch(10 * epoch + step)]


def test_a_step_is_made_once_for_all() -> None:
    loader = Counted()
    one, other = (SharedLoader(loader),) * 2
    a, b = one.epoch(0), other.epoch(0)
    for _ in range(3):
        assert next(a) is next(b)
    assert loader.made == [(0, 0), (0, 1), (0, 2)]
    assert next(one.epoch(1))[0].index.item() == 10


def test_who_is_behind_gets_its_own_step() -> None:
    loader = SharedLoader(Counted())
    ahead, behind = loader.epoch(0, start=2), loader.epoch(0)
    assert next(ahead)[0].index.item() == 2
    assert [next(behind)[0].index.item() for _ in range(3)] == [0, 1, 2]


class Teaching:
    def __init__(self) -> None:
        self.asked: list[dict[str, bool]] = []

    def features(self, batch: Batch, **reads: bool) -> Features:
        self.asked.append(reads)
        maps = (batch.images,) if reads.get("maps") else ()
        return Features(batch.images.flatten(1), batch.images.flatten(1), maps)


def test_the_teacher_is_asked_once_for_what_any_student_reads() -> None:
    teaching = Teaching()
    shared = SharedTeaching(teaching, {"maps": True})
    one, two = batch(1), batch(2)
    assert shared.features(one) is shared.features(one, maps=True)
    assert shared.features(two).logits[0, 0] == 2
    assert teaching.asked == [{"maps": True}, {"maps": True}]
    shared.features(two, blocks=True)
    assert teaching.asked[-1] == {"blocks": True}


def counting(name: str, steps: list[int], log: list[str], stops_at: int | None = None) -> Iterator[int]:
    for step in steps:
        if step == stops_at:
            log.append(f"{name} saved")
            raise Stopped(name)
        log.append(f"{name}{step}")
        yield step
    return name.upper()


def test_the_furthest_behind_goes_first() -> None:
    log: list[str] = []
    ended = side_by_side({"a": lambda: counting("a", [1, 2, 3], log), "b": lambda: counting("b", [2, 3], log)})
    assert log == ["a1", "b2", "a2", "a3", "b3"]
    assert ended == {"a": "A", "b": "B"}


def test_all_are_let_save_themselves_before_a_stop_is_told() -> None:
    log: list[str] = []
    with pytest.raises(Stopped):
        side_by_side(
            {
                "a": lambda: counting("a", [1, 2, 3], log, stops_at=2),
                "b": lambda: counting("b", [1, 2], log, stops_at=2),
            }
        )
    assert log == ["a1", "b1", "a saved", "b saved"]
