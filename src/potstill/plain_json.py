"""JSON that any reader takes: no NaN and no infinity, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any, indent: int | None = None) -> str:
    """A value of plain containers as JSON, with ``null`` for every number in it that is not finite.

    Args:
        value: mappings, lists, tuples, strings, numbers, None.
        indent: spaces a level; None writes one line.

    Raises:
        TypeError: for any other object.

    Example:
        >>> to_json({"top1": 10.0, "losses": [float("nan"), float("inf"), 1]})
        '{"top1": 10.0, "losses": [null, null, 1]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
