import math

import pytest
from scipy import stats

from potstill.study import Difference, Spread, difference, spread


@pytest.mark.parametrize(
    ("ours", "control"),
    [
        ([53.4, 53.2, 53.9], [46.6, 46.3, 46.2]),
        ([50.0, 50.0, 50.0], [49.0, 48.0, 50.5]),  # one group without spread
        ([70.1, 70.2], [69.0, 71.0, 70.0, 68.5, 72.0]),
        ([1e-9, 2e-9, 3e-9], [0.0, 1e-9, 5e-9]),
    ],
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_interval_is_welchs(ours: list[float], control: list[float], confidence: float):
    found = difference(ours, control, confidence)
    expected = stats.ttest_ind(ours, control, equal_var=False).confidence_interval(confidence)
    assert found.low == pytest.approx(expected.low, rel=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-9)


def test_the_interval_is_told_as_clear_where_it_leaves_out_zero():
    assert difference([10.0, 10.1, 9.9], [1.0, 1.1, 0.9]).clear is True
    assert difference([1.0, 3.0], [1.1, 2.9]).clear is False
    assert Difference(1.0, 0.0, 2.0).clear is False


@pytest.mark.parametrize(
    ("ours", "control", "mean"),
    [([3.0], [1.0, 2.0], 1.5), ([3.0, 4.0], [1.0], 2.5), ([3.0, 3.0], [1.0, 1.0], 2.0), ([3.0], [1.0], 2.0)],
)
def test_without_a_spread_there_is_a_difference_but_no_interval(ours: list[float], control: list[float], mean: float):
    found = difference(ours, control)
    assert found == Difference(mean, None, None)
    assert found.clear is None


def test_a_spread_of_equal_values_is_zero_and_of_one_value_unknown():
    assert spread([71.3, 71.3, 71.3]) == Spread(71.3, 0.0, 3)
    assert spread([71.3]) == Spread(71.3, None, 1)
    assert spread([1.0, 2.0, 4.0]).deviation == pytest.approx(math.sqrt(7 / 3))


def test_no_value_has_no_mean():
    with pytest.raises(ValueError, match="at least one"):
        spread([])
    with pytest.raises(ValueError, match="at least one"):
        difference([], [1.0, 2.0])
