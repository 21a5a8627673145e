"""The command that follows a run from another terminal: watch."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.console import open_console
from potstill.errors import RunError
from potstill.training.interrupts import Interrupt, watching

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.training.following import Follower, RunView

__all__ = ["watch"]

_EVERY = 1.0  # seconds between two looks; a redraw takes milliseconds
_PIPE_WIDTH = 80
# A folder with several runs in it does not say how many there will be: after so many seconds without a new one it has
# ended.
_NEXT_RUN = 15.0


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run's folder, or one with several runs in it; need not be there yet.",
            show_default=False,
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and leave.")] = False,
) -> None:  # fmt: skip
    """Follow a run from another terminal: losses, accuracy, shares of the gradient, where the time goes, what is left.

    It reads the run's folder and nothing else, so that it may come and go; Ctrl-C leaves, and the run goes on. It ends
    when the run is finished.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file; give a run's folder.")
    console = open_console()
    from potstill.training.following import Follower

    follower = Follower(run)
    if once or not console.is_terminal:
        view = follower.look()
        if not view.begun:
            raise RunError(f"{run} holds no run that has begun; without --once, on a terminal, watch waits for it.")
        _print(view, console)
        return
    with watching() as told_to_stop:
        _follow(follower, console, told_to_stop)
    view = follower.look()
    if view.begun:
        _print(view, console)


def _follow(follower: "Follower", console: "Console", told_to_stop: Interrupt) -> None:
    """Draw until the run is finished, or the command is told to stop.

    A flag, for an exception may be raised where nobody passes it on, such as in a destructor.
    """
    from rich.live import Live

    from potstill.cli.dashboard import dashboard

    with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while not told_to_stop:
            view = follower.look()
            if _over(view):
                return
            drawn = dashboard(
                view, time.time(), console.width, console.height, _plain(console), "Ctrl-C leaves; the run goes on."
            )
            live.update(drawn, refresh=True)
            time.sleep(_EVERY)


def _over(view: "RunView") -> bool:
    return view.finished and (bool(view.recipe) or time.time() - view.newest > _NEXT_RUN)


def _print(view: "RunView", console: "Console") -> None:
    """A snapshot, and the table of results where there are any."""
    from potstill.cli.dashboard import dashboard
    from potstill.cli.tables import results_table

    width = console.width if console.is_terminal else _PIPE_WIDTH
    console.print(dashboard(view, time.time(), width, plain=_plain(console)))
    rows, models = _results(view)
    if rows:
        console.print(results_table(rows, models))


def _results(view: "RunView") -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    """The rows of all finished runs below the folder, and their networks; the teacher's once."""
    from potstill.cli.dashboard import network_name

    rows: dict[str, dict[str, object]] = {}
    models: dict[str, str] = {}
    for one in view.all_runs():
        inner = "/".join(one.folder.relative_to(view.folder).parts)
        for part, row in ((one.result or {}).get("rows") or {}).items():
            name = part if part == "teacher" or not inner else inner
            rows.setdefault(name, row)
            models.setdefault(name, network_name(one.recipe.get("teacher" if part == "teacher" else "student")))
    order = ["teacher", *sorted(name for name in rows if name not in ("teacher", "student")), "student"]
    return {name: rows[name] for name in order if name in rows}, models


def _plain(console: "Console") -> bool:
    return not console.encoding.lower().startswith("utf")
