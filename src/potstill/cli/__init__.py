"""The command ``potstill``: parse, call the library, print."""

from potstill.cli.app import app, main

__all__ = ["app", "main"]
