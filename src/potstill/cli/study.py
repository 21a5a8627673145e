"""The command that runs a study: many runs, one table."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.arguments import Json
from potstill.cli.console import open_console
from potstill.cli.errors import say_error
from potstill.cli.output import only_json, print_json
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.study import Plan, Status, Table, Workers
    from potstill.training.interrupts import Interrupt

__all__ = ["study"]


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML); some are in studies/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Values laid over the recipe of every run, below what the grid says; "
            "[cyan]study.KEY=VALUE[/cyan] over the study's own keys.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and where; run nothing.")] = False,
) -> None:
    """Run a grid of recipes, methods by pairs by seeds, and compare them in one table.

    Runs go side by side, a core or a GPU each, or on a Ray cluster (study.on=ray). A stopped or killed study goes on
    when the same command is given again; what is finished is not run twice. A run that fails is one failed cell.
    """
    with only_json(json):
        console = open_console(json)
        from potstill.cli.study_board import board_on, plan_table, result_tables
        from potstill.study import read_table, run_study
        from potstill.training.interrupts import watching

        plan = _planned(file, overrides or [])
        if not dry_run:
            with watching() as interrupt, board_on(console, plan, lambda table: _record(plan, table)) as watch:
                status = run_study(plan, lambda: _workers(plan), interrupt, watch)
            table = read_table(plan, status)
            _record(plan, table)
            if interrupt:
                _say_stopped(status, interrupt)
            report = _report(plan)
    if dry_run:
        if json:
            print_json(_plain(plan))
        else:
            console.print(plan_table(plan))
        return
    if json:
        print_json({"folder": str(plan.folder), **table.plain()})
    else:
        for shown in result_tables(table, console.width):
            console.print(shown)
        for entry, run in table.failed:
            console.print(f"Failed: {', '.join(entry.levels.values())}, seed {run.seed}: {run.reason}", soft_wrap=True)
        if table.paper:
            said = [f"Paper: {table.paper['source']}.", table.paper["note"]]
            console.print(" ".join(filter(None, said)), soft_wrap=True)
        if table.incomparable:
            console.print(_incomparable(table), soft_wrap=True)
        page = f"; the page to pass round is {report}" if report else ""
        console.print(f"Everything is in {plan.folder}{page}.", soft_wrap=True)
    if table.failed:
        raise typer.Exit(1)


def _planned(file: Path, overrides: list[str]) -> "Plan":
    """The plan of a file with the command line's values; ``study.`` goes to the study, the rest to its runs."""
    from potstill.study import load_study, plan_study

    own = [text.removeprefix("study.") for text in overrides if text.startswith(("study.", "run="))]
    of_runs = [text for text in overrides if not text.startswith(("study.", "run="))]
    return plan_study(file, load_study(file, overrides=own), of_runs)


def _workers(plan: "Plan") -> "Workers":
    if plan.file.on == "ray":
        from potstill.study.on_ray import RayWorkers

        return RayWorkers(plan.file.address, plan.file.workers, plan.file.retries)
    from potstill.study import LocalWorkers, local_places

    return LocalWorkers(local_places(plan.file.workers))


def _record(plan: "Plan", table: "Table") -> None:
    from potstill.procedures.identity import command
    from potstill.study import write_record

    write_record(plan.folder, table, plan.file.model_dump(mode="json"), command())


def _report(plan: "Plan") -> Path | None:
    """The study's page; what it lacks is said, and takes no result along."""
    from potstill.report import write_report

    try:
        page = write_report([plan.folder])
        if plan.file.report:
            for job in plan.jobs.values():
                if job.kind == "run" and (job.folder / "result.json").exists():
                    write_report([job.folder])
        return page
    except PotstillError as error:
        say_error(f"There is no report: {error}", label="")
        return None


def _plain(plan: "Plan") -> dict[str, Any]:
    jobs = [
        {"name": job.name, "kind": job.kind, "after": list(job.after), "folder": str(job.folder)}
        for job in plan.jobs.values()
    ]
    cells = [{"levels": dict(cell.levels), "seed": cell.seed, "job": cell.job} for cell in plan.cells]
    return {"folder": str(plan.folder), "jobs": jobs, "cells": cells}


def _incomparable(table: "Table") -> str:
    headline = table.headline
    if headline.proportion:
        return "The data have no labels, so there is no accuracy to compare by."
    return f"No run has an evaluation that gives {headline.short}, so there is nothing to compare by."


def _say_stopped(status: "Status", interrupt: "Interrupt") -> None:
    say_error(
        f"Stopped: {status.count('done')} of {len(status.states)} jobs are done. The same command goes on.", label=""
    )
    raise typer.Exit(128 + (interrupt.signal or signal.SIGTERM))
