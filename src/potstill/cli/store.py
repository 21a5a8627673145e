"""The commands of a teacher's store: build, info, verify."""

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.arguments import Arguments, Json, read_recipe
from potstill.cli.console import is_main_process, open_console
from potstill.cli.errors import Commands, say_error
from potstill.cli.output import only_json, print_json
from potstill.cli.tables import plain_table
from potstill.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.config import Recipe
    from potstill.procedures.store_build import Built

__all__ = ["store"]

store = typer.Typer(
    cls=Commands, no_args_is_help=True, help="A teacher's outputs on disk, computed once for as many runs as want them."
)

Folder = Annotated[Path, typer.Argument(metavar="STORE", help="The store's folder.", show_default=False)]


@store.command()
def build(arguments: Arguments = None, json: Json = False) -> None:
    """Compute what the recipe's teacher says of every view of every image, into the folder teacher.store.

    The recipe is that of the runs that will use it; data.views=8 makes eight views of each image, and a recipe without
    it one for each epoch. The same command goes on where it was stopped; torchrun divides the work.
    """
    recipe = read_recipe(arguments)
    with only_json(json):
        console = open_console(json)
        built = _build(recipe, console)
    if not is_main_process():
        return
    if json:
        print_json({**asdict(built), "folder": str(built.folder)})
        return
    console.print(
        f"{built.folder} holds {built.records:,} records ({_size(built.bytes)}); {built.computed:,} of them were "
        f"computed now, in {built.seconds:,.1f} s. Use it: potstill distill ... teacher.store={built.folder}"
    )


def _build(recipe: "Recipe", console: "Console") -> "Built":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from potstill.procedures.store_build import build_store
    from potstill.training.distributed import joined
    from potstill.training.interrupts import watching
    from potstill.training.settings import Stopped

    columns = TextColumn("records"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
    with joined(recipe.device) as processes, watching() as interrupt:
        shown = Progress(*columns, console=console, disable=not (processes.main and console.is_terminal), expand=True)
        try:
            with shown as progress:
                bar = progress.add_task("", total=None)
                return build_store(
                    recipe, processes, interrupt, lambda done, of: progress.update(bar, completed=done, total=of)
                )
        except Stopped as stopped:
            if processes.main:
                say_error(str(stopped), label="")
            raise typer.Exit(128 + (interrupt.signal or signal.SIGTERM)) from None


@store.command()
def info(folder: Folder, json: Json = False) -> None:
    """Say what a store holds and what it was made of."""
    from potstill.store import Store, store_size

    opened = Store.open(folder)
    known, size = opened.key.plain(), store_size(opened.layout, opened.samples, opened.views)
    records, total = len(opened), opened.samples * opened.views
    if json:
        print_json(
            {"folder": str(folder), "key": known, "views": opened.views, "records": records, "of": total,
             "record_bytes": size.record_bytes, "bytes": size.total_bytes,
             "outputs": {name: list(shape) for name, shape in opened.layout.outputs}}
        )  # fmt: skip
        return
    console = open_console()
    augmentation = ", ".join(f"{key} {value}" for key, value in known["augmentation"].items())
    classes = known["classes"]
    rows = [
        ("holds", ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in opened.layout.outputs)),
        ("as", known["dtype"] + (f", the {known['top_k']} largest logits" if known["top_k"] else "")),
        ("records", f"{records:,} of {total:,}: {opened.views} views of {opened.samples:,} images"),
        ("size", f"{size.record_bytes:,} bytes a record, {_size(size.total_bytes)} in all"),
        ("teacher", f"{known['teacher'][:16]}, computed in {known['precision']}"),
        ("images", f"{known['data']}, {len(classes)} classes" if classes else f"{known['data']}, without labels"),
        ("augmentation", f"{augmentation}; version {known['augmentation_version']}"),
    ]
    console.print(plain_table(["", str(folder)], rows))


@store.command()
def verify(
    folder: Folder,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", show_default=False,
            help="Also compare with what this recipe would make: its key, and some rows computed anew.",
        ),
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Forget the damaged records, so that building makes them anew.")
    ] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Look at every byte of a store; with a recipe, also at whether it is the recipe's."""
    from potstill.store import mend as forget
    from potstill.store import verify as look

    report = look(folder)
    compared = None
    if arguments:
        from potstill.procedures.store_build import check_store
        from potstill.training.distributed import joined

        recipe = read_recipe(arguments)
        if recipe.teacher is None:
            raise RecipeError("The recipe names no teacher to compare the store with.")
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"store": str(folder)})})
        with only_json(json), joined(recipe.device) as processes:
            compared = check_store(recipe, processes)
    mended = mend and not report.sound
    if mended:
        forget(report)
    if json:
        print_json(
            {"sound": report.sound, "complete": report.complete, "damaged": report.damaged.tolist(),
             "missing": len(report.missing), "files": list(report.files), "compared": compared,
             "mended": mended}
        )  # fmt: skip
    else:
        console = open_console()
        for sentence in report.sentences():
            console.print(sentence, soft_wrap=True)
        if compared is not None:
            console.print(f"It is this recipe's: the key is the same, and {compared} rows computed anew are the same.")
        if mended:
            console.print("The damaged records are forgotten; `potstill store build` makes them anew.")
    if not report.sound and not mended:
        raise typer.Exit(1)


def _size(count: int) -> str:
    from potstill.store.size import in_units

    return in_units(count)
