"""The command that races: many candidates, few epochs, a ranked table."""

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.arguments import Json, split_arguments
from potstill.cli.console import is_main_process, open_console
from potstill.cli.errors import say_error
from potstill.cli.output import only_json, print_json
from potstill.errors import RunError
from potstill.headline import HEADLINES

if TYPE_CHECKING:
    from potstill.race.file import Race

__all__ = ["race"]


def race(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RACE] [KEY=VALUE]...",
            help="A race file (YAML) or a race's folder, and values laid over it: a recipe's keys, candidates, "
            "students, methods, race.factor and race.min_epochs.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Find the best of many students and methods without training each of them to the end.

    All candidates train to the first rung, the best third of them to the next, and so on (successive halving); the best
    one trains to the end. An interrupted race goes on by itself when the same command is given again.
    """
    path, overrides = split_arguments(arguments)
    with only_json(json):
        console = open_console(json)
        from potstill.cli.race_board import Board, standings_table
        from potstill.race.file import load_race
        from potstill.race.run import run_race
        from potstill.training.distributed import joined
        from potstill.training.interrupts import watching
        from potstill.training.settings import Stopped

        found = load_race(_file(path), overrides)
        folder = _folder(found, path)
        with joined(found.recipe.device) as processes, watching() as interrupt:
            try:
                with Board(console, found.recipe.epochs, HEADLINES[found.recipe.task], processes.main) as board:
                    record = run_race(found, folder, processes, interrupt, board)
            except Stopped as stopped:
                if processes.main:
                    say_error(str(stopped), label="")
                raise typer.Exit(128 + (interrupt.signal or signal.SIGTERM)) from None
    if not is_main_process():
        return
    if json:
        print_json({"folder": str(folder), **{key: record[key] for key in record if key not in ("costs", "machine")}})
        return
    console.print(standings_table(board.standings, board.rungs, found.recipe.epochs, board.headline))
    _explain(console, folder, record, found)


def _explain(console: Any, folder: Path, record: dict[str, Any], race: "Race") -> None:
    """What the table does not say by itself, and what to do next."""
    spent, full = record["epochs"]["spent"], record["epochs"]["full"]
    console.print(f"{spent} epochs were trained, {spent / full:.0%} of the {full} of all candidates to the end.")
    teacher = record["teacher"]
    headline = HEADLINES[race.recipe.task]
    if teacher and headline.key in teacher:
        accuracy = f"{headline.short} {teacher[headline.key]:.2f} {headline.unit}"
        console.print(f"The teacher: {accuracy}, {teacher['latency_ms']:.2f} ms.")
    for call in record["close"]:
        console.print(
            f"Close: at epoch {call['epoch']} {call['kept']} was {call['points']:.2f} points ahead of {call['left']}, "
            f"where {record['images']} images have a standard error of {call['error']:.2f}.",
            soft_wrap=True,
        )
    if record["close"]:
        console.print("A larger race.min_epochs compares later; candidates that are paused keep what they learned.")
    console.print(record["note"], soft_wrap=True)
    paused = [one for one in record["candidates"] if one["front"] and not one["finished"]]
    if paused:
        alone = {entry.name for entry in race.entries if entry.differs.get("teacher", race.recipe.teacher) is None}
        command = "train" if paused[0]["name"] in alone else "distill"
        go_on = shlex.join(["potstill", command, paused[0]["folder"]])
        console.print(
            "On a front no other candidate was better for less, at the last epoch that both reached. A paused one goes "
            f"on to epoch {race.recipe.epochs} with: {go_on}",
            soft_wrap=True,
        )
    winner = record["candidates"][0]
    export = ["potstill", "export", winner["folder"]]
    if ":" in winner["network"]:  # a network of one's own: no run's folder chooses which code runs
        export += ["--model", winner["network"]]
    console.print(f"Everything is in {folder}. Next: {shlex.join(export)}", soft_wrap=True)


def _file(path: str | None) -> Path | None:
    """The race's file; a race's folder stands for the one in it."""
    if path is None or not Path(path).is_dir():
        return None if path is None else Path(path)
    from potstill.race.run import RACE_FILE

    file = Path(path) / RACE_FILE
    if not file.is_file():
        raise RunError(f"{path} is no race's folder: it has no {RACE_FILE}. Give a race file, or a race's folder.")
    return file


def _folder(race: "Race", path: str | None) -> Path:
    stem = Path(path).stem if path is not None else "race"
    return Path(race.recipe.run or f"runs/{stem}")
