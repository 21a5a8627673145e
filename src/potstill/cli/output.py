"""What a machine reads: JSON on stdout, and nothing else there."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import typer

__all__ = ["only_json", "print_json"]


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keep stdout for the JSON: what libraries print meanwhile goes to stderr. Does nothing where none is wanted."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
