"""What a machine reads: JSON on stdout, and nothing else there."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import typer

from potstill.plain_json import to_json

__all__ = ["only_json", "print_json"]


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keep stdout for the JSON: what libraries print meanwhile goes to stderr. Does nothing where none is wanted."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """One JSON value on stdout; a loss that is NaN or infinite is null there, as JSON has no such numbers."""
    typer.echo(to_json(value, indent=2))
