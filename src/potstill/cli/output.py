"""What a machine reads: JSON on stdout, and nothing else there."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer

__all__ = ["only_json", "print_json"]


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keep stdout for the JSON: what libraries print meanwhile goes to stderr. Does nothing where none is wanted."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """One JSON value on stdout; a loss that is NaN or infinite is null there, as JSON has no such numbers."""
    typer.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite.

    Example:
        >>> finite({"top1": 10.0, "rows": [float("nan"), float("inf"), 1]})
        {'top1': 10.0, 'rows': [None, None, 1]}
    """
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
