"""The commands that train: demo, train, distill."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.arguments import Arguments, Json, as_override, read_recipe, split_arguments
from potstill.cli.console import is_main_process, open_console
from potstill.cli.errors import say_error
from potstill.cli.output import only_json, print_json
from potstill.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import Console

    from potstill.config import NetworkConfig, Recipe
    from potstill.procedures.run import Outcome
    from potstill.training.distributed import Processes
    from potstill.training.folder import RunFolder
    from potstill.training.interrupts import Interrupt
    from potstill.training.reporting import Reporter

    MakeReporter = Callable[[str, RunFolder], Reporter]
    Training = Callable[[Processes, Interrupt, MakeReporter], Outcome]

__all__ = ["demo", "distill", "train"]

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Insist on going on: an error where there is nothing to go on with."),
]


def train(arguments: Arguments = None, json: Json = False, resume: Resume = False) -> None:
    """Train one network on images, without a teacher.

    An interrupted run goes on by itself when the same command is given again.
    """
    recipe = read_recipe(arguments)
    if recipe.teacher is not None:
        raise RecipeError(
            "`potstill train` learns without a teacher, and the recipe names one; use `potstill distill`, or take the "
            "teacher section out."
        )
    outcome, reports = _run(recipe, json, resume)
    _show(recipe, outcome, reports, json, then=_teaching(recipe, outcome.folder))


def distill(arguments: Arguments = None, json: Json = False, resume: Resume = False) -> None:
    """Train a small network (the student) with the help of a large, trained one (the teacher).

    With [cyan]control=true[/cyan] the same student is first trained without the teacher, so that the table at the end
    shows what the teacher brought. An interrupted run goes on by itself when the same command is given again.
    """
    recipe = read_recipe(arguments)
    if recipe.teacher is None:
        raise RecipeError(
            "`potstill distill` learns from a teacher, and the recipe names none: give teacher.weights=RUN (a trained "
            "run's folder), or teacher.model and teacher.weights; or use `potstill train`."
        )
    outcome, reports = _run(recipe, json, resume)
    _show(recipe, outcome, reports, json)


def demo(
    arguments: Arguments = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="The folder for its three runs, also as run=FOLDER; runs/demo by default.", show_default=False
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew, also where it is finished.")] = False,
    json: Json = False,
) -> None:
    """See it work, in a minute or two on a laptop, with nothing to download.

    On scikit-learn's handwritten digits it trains a teacher, then a small student twice: alone (the control) and
    taught by PEFD.
    """
    path, overrides = split_arguments(arguments)
    if path is not None:
        raise RecipeError(
            f"`potstill demo` brings its own recipe; {path!r} is no key=value. Use `potstill distill {path}`."
        )

    with only_json(json):
        console = open_console(json)
        from potstill.procedures.demo import clear_demo, demo_recipe, run_demo

        recipe = demo_recipe(run, overrides)
        folder = Path(str(recipe.run)).parent

        def training(processes: "Processes", interrupt: "Interrupt", reporter: "MakeReporter") -> "Outcome":
            if fresh and processes.main:
                clear_demo(folder)
            processes.wait()
            return run_demo(recipe, folder, processes, interrupt, reporter)

        outcome = _in_this_process(recipe, console, training)
        reports = _reported(recipe, outcome)
    if reports and not json:
        open_console().print(f"The report: {reports[0]}", soft_wrap=True)
    _show(recipe, outcome, reports, json)


def _run(recipe: "Recipe", json: bool, resume: bool) -> "tuple[Outcome, list[Path]]":
    with only_json(json):
        console = open_console(json)
        from potstill.procedures.run import distill as run_recipe

        def training(processes: "Processes", interrupt: "Interrupt", reporter: "MakeReporter") -> "Outcome":
            return run_recipe(recipe, processes, interrupt, reporter, must_resume=resume)

        outcome = _in_this_process(recipe, console, training)
        return outcome, _reported(recipe, outcome)


def _in_this_process(recipe: "Recipe", console: "Console", training: "Training") -> "Outcome":
    """Train with this process's group, its interrupt and its reporters; leave with a signal's code where one came."""
    from potstill.tracking import tracked
    from potstill.training.distributed import joined
    from potstill.training.interrupts import watching
    from potstill.training.progress import progress_on
    from potstill.training.settings import Stopped

    with joined(recipe.device) as processes, watching() as interrupt:
        asked = _tracked_by(recipe, processes)
        try:
            with (
                progress_on(console, recipe.batch_size, talks=processes.main) as reporter,
                tracked(reporter, asked, talks=processes.main) as reporter,
            ):
                return training(processes, interrupt, reporter)
        except Stopped as stopped:
            if processes.main:
                say_error(str(stopped), label="")
            raise typer.Exit(128 + (interrupt.signal or signal.SIGTERM)) from None


def _tracked_by(recipe: "Recipe", processes: "Processes") -> "Callable[[str], tuple[tuple[str, ...], str]]":
    """The trackers of a run and its project, by its title; one that is missing is found before anything trains."""
    from potstill.procedures.students import students_of
    from potstill.tracking import must_be_there

    parts = students_of(recipe, Path()) if recipe.students else {}
    logs = {title: part.log for title, part in parts.items()}  # students side by side may each have their own
    names = {name for log in (recipe.log, *logs.values()) for name in log.track}
    processes.on_main(lambda: must_be_there(sorted(names)))

    def asked(title: str) -> tuple[tuple[str, ...], str]:
        log = logs.get(title.partition(", ")[0], recipe.log)
        return log.track, log.project

    return asked


def _reported(recipe: "Recipe", outcome: "Outcome") -> "list[Path]":
    """The page about a run, or about each of several students; none where ``log.report`` is off."""
    if not (recipe.log.report and is_main_process()):
        return []
    from potstill.errors import RunError
    from potstill.report import write_report

    several = _titles(outcome) if recipe.students else ["."]
    try:
        return [write_report([outcome.folder / name]) for name in several]
    except RunError as error:  # the run itself is whole, and its result is worth more than its page
        say_error(f"The report could not be written: {error}", label="warning: ")
        return []


def _show(recipe: "Recipe", outcome: "Outcome", reports: "list[Path]", json: bool, then: str | None = None) -> None:
    """The result's table, and what to do next."""
    if not is_main_process():
        return
    from potstill.cli.tables import gain, results_table
    from potstill.headline import headline_of

    difference, headline = gain(outcome.rows), headline_of(outcome.rows)
    if json:
        paths = [str(path) for path in reports]
        print_json({"folder": str(outcome.folder), "rows": outcome.rows, "difference": difference, "reports": paths})
        return
    console = open_console()
    several = {name: _model_of(entry) for name, entry in zip(_titles(outcome), recipe.students, strict=False)}
    models = {name: several.get(name) or _called(recipe.student) for name in ("control", "student", *several)}
    if recipe.teacher is not None:
        models["teacher"] = _called(recipe.teacher)
    console.print(results_table(outcome.rows, models))
    if difference is not None:
        better = "better" if difference > 0 else "worse" if difference < 0 else "no better and no worse"
        amount = f"{abs(difference):.2f} points " if difference else ""
        than = f"the control: the same network trained alone ({headline.short})"
        console.print(f"The student is {amount}{better} than {than}.")
    judged = outcome.rows.get("student", {})
    if "val_total" in judged and not any(headline.key in row for row in outcome.rows.values()):
        console.print(
            "The images have no labels, so there are no accuracies. The student's objective on the validation images, "
            f"val_total, is {judged['val_total']:.4g}; less is better.",
            soft_wrap=True,
        )
    export = ["potstill", "export", str(outcome.folder / next(iter(several), "."))]
    if own := _own_code(recipe):
        export += ["--model", own]
    page = f"; the page about it is {reports[0]}" if len(reports) == 1 else ""
    console.print(f"Everything is in {outcome.folder}{page}. Next: {shlex.join(export)}", soft_wrap=True)
    if then:
        console.print(f"To teach a smaller one: {then}", soft_wrap=True)


def _titles(outcome: "Outcome") -> list[str]:
    return [name for name in outcome.rows if name != "teacher"]


def _model_of(entry: "Mapping[str, Any]") -> str | None:
    """The network that a student's entry names, where it is another than the recipe's."""
    model: str | None = entry.get("model") or (entry.get("student") or {}).get("model")
    return model


def _teaching(recipe: "Recipe", folder: Path) -> str:
    """The command that teaches a smaller network by a trained one, on the same data."""
    data = recipe.data.model_dump(mode="json", exclude_defaults=True)
    values = {f"data.{key}": value for key, value in data.items()} | {"teacher.weights": str(folder)}
    if recipe.task != "classification":
        values = {"task": recipe.task, **values}
    if own := _own_code(recipe):
        values["teacher.model"] = own
    words = [as_override(key, value) for key, value in values.items()]
    return " ".join(["potstill distill", *words, "student.model=..."])


def _own_code(recipe: "Recipe") -> str | None:
    """The student's ``package.module:factory``: a command must name it, as no run's folder chooses which code runs."""
    model = recipe.student.model
    return model if model is not None and ":" in model else None


def _called(network: "NetworkConfig") -> str:
    """A network's name for people: its model, or that of the run that it comes from."""
    if network.model is not None or network.weights is None:
        return network.model or ""
    from potstill.networks.build import read_card

    return read_card(network.weights).model
