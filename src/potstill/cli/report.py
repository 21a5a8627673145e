"""The command that lays a run out on a page."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.console import open_console

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run's folder, or several to compare.", show_default=False)
    ],
    format: Annotated[str, typer.Option("--format", "-f", help="html, md or csv.")] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file; report.html in the first run's folder by default.", show_default=False
        ),
    ] = None,
    open: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one self-contained page about a run, or about several: the verdict first, then what explains it."""
    from potstill.report import write_report

    path = write_report(runs, out, format)
    open_console().print(f"The report is {path}.", soft_wrap=True)
    if open:
        webbrowser.open(path.resolve().as_uri())
