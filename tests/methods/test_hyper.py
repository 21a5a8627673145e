"""Which values of a recipe fit which annotation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Optional

import pytest
import torch

from potstill.methods.hyper import describe, fits


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [3, -1], [3.0, True, "3", None, [3]]),
        (float, [3, 0.5], [True, "0.5", None]),
        (bool, [True, False], [0, 1, "true"]),
        (str, ["relu", ""], [3, None, True]),
        (int | None, [3, None], ["none", 1.5]),
        (Optional[float], [3, None], ["x"]),  # noqa: UP045
        (Literal["relu", 2], ["relu", 2], ["gelu", 2.0, None]),
        (Literal[1], [1], [True]),
        (tuple[int, ...], [[1, 2], (), (3,)], [[1.5], 3, "12"]),
        (tuple[int, str], [[1, "a"]], [["a", 1], [1], [1, "a", 2]]),
        (list[float], [[1, 0.5]], [["x"], 1.0]),
        (dict[str, int], [{"a": 1}], [[1], "a"]),
        (Mapping[str, int], [{}], [1]),
        (Annotated[int, "positive"], [3], ["3"]),
        (Any, [3, "x", None, [1]], []),
        (torch.dtype, [3, "float32"], []),  # no type of a recipe: taken on trust
    ],
)
def test_fits(annotation: Any, good: list, bad: list):
    assert [value for value in good if not fits(value, annotation)] == []
    assert [value for value in bad if fits(value, annotation)] == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"),
        (tuple[int, ...], "a list, each a whole number"),
        (tuple[int, str], "a list of a whole number and a text"),
        (list[float], "a list, each a number"),
        (dict[str, int], "a mapping"),
        (Annotated[bool, "?"], "true or false"),
        (torch.dtype, "dtype"),
        (Any, "anything"),
    ],
)
def test_describe(annotation: Any, words: str):
    assert describe(annotation) == words
