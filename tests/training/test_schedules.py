import itertools
import math

import pytest

from potstill.training.schedules import Schedule


def test_the_papers_drops_fall_on_the_papers_steps() -> None:
    schedule, steps, total = Schedule(), 782, 782 * 240
    for epoch, factor in ((150, 0.1), (180, 0.01), (210, 0.001)):
        assert schedule(epoch * steps - 1, total) == pytest.approx(factor * 10)
        assert schedule(epoch * steps, total) == pytest.approx(factor)


@pytest.mark.parametrize("epochs", [7, 90, 100, 240, 300])
def test_a_drop_given_as_a_rounded_part_falls_on_its_epoch(epochs: int) -> None:
    for epoch in range(1, epochs):
        schedule = Schedule(drops=(epoch / epochs,))
        assert schedule(epoch * 13 - 1, epochs * 13) == 1.0
        assert schedule(epoch * 13, epochs * 13) == pytest.approx(0.1)


def test_cosine_goes_from_the_peak_to_the_last_rate() -> None:
    schedule = Schedule("cosine", final=0.1)
    assert schedule(0, 100) == 1.0
    assert schedule(50, 100) == pytest.approx(0.55)
    assert schedule(100, 100) == pytest.approx(0.1)


def test_warmup_rises_in_equal_steps_and_never_starts_at_zero() -> None:
    rates = [Schedule("constant", warmup=0.1)(step, 100) for step in range(12)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10:] == [1.0, 1.0]
    rises = [b - a for a, b in itertools.pairwise(rates[:11])]
    assert rises == pytest.approx([1 / 11] * 10)


def test_onecycle_peaks_where_its_rise_ends() -> None:
    schedule = Schedule("onecycle", warmup=0.25)
    assert schedule(0, 1000) == pytest.approx(0.04)
    assert schedule(250, 1000) == pytest.approx(1.0)
    assert schedule(625, 1000) == pytest.approx(0.5)
    assert schedule(999, 1000) < 1e-5
    assert max(range(1000), key=lambda step: Schedule("onecycle")(step, 1000)) == 300


def test_constant_stays() -> None:
    assert {Schedule("constant")(step, 10) for step in range(10)} == {1.0}
    assert math.isclose(Schedule("step", drops=())(9, 10), 1.0)
