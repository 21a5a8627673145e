"""The commands that use a finished student: evaluate, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.arguments import Arguments, Json, overridden, read_recipe, split_arguments
from potstill.cli.console import is_main_process, open_console
from potstill.cli.output import only_json, print_json
from potstill.cli.tables import plain_table
from potstill.errors import RunError

__all__ = ["evaluate", "export"]


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] [KEY=VALUE]...", help="A run's folder, and values laid over its recipe.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a finished student's accuracy on the run's validation images, or on others (data.path=...)."""
    recipe = _judged(arguments)
    with only_json(json):
        console = open_console(json)
        from potstill.procedures.evaluation import evaluate_network
        from potstill.training.distributed import joined

        with joined(recipe.device) as processes:
            found = evaluate_network(recipe, processes)
    if not is_main_process():
        return
    if json:
        print_json({"images": found.images, "data": found.data, "note": found.note, **found.accuracies})
        return
    console.print(found.note, soft_wrap=True)
    cells = [f"{found.images:,}", *(f"{found.accuracies[key]:.2f}" for key in ("top1", "top5"))]
    cells.append(f"{found.accuracies['val_loss']:.4f}")
    console.print(plain_table([">images", ">top-1 %", ">top-5 %", ">cross entropy"], [cells], found.data))


def _judged(arguments: list[str] | None) -> Any:
    """The recipe of what is to be judged: a run's with its own student, on its own data unless others are given."""
    run, overrides = split_arguments(arguments)
    if run is None:
        return read_recipe(arguments)
    if not (Path(run) / "recipe.yaml").is_file():
        raise RunError(f"{run} is no run's folder: it has no recipe.yaml. Give the folder that a run ended with.")
    if not (Path(run) / "student.json").is_file():
        raise RunError(f"The run in {run} is not finished: it has no student yet. Give its command again to go on.")
    if overridden(overrides, "data.path"):
        # What the run's recipe says of its own data's layout does not hold for others; nor is a part of them unseen.
        fresh = {"source": "auto", "image_column": "null", "label_column": "null", "val_fraction": "0"}
        overrides = [*(f"data.{key}={value}" for key, value in fresh.items()), *overrides]
    return read_recipe([run, *overrides, "student={}", f"student.weights={run}", "teacher=null"])


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.", show_default=False)],
    format: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="safetensors, onnx or torch; once for each. All, where none is named."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; RUN/export by default.")] = None,
    json: Json = False,
) -> None:
    """Write the student alone, as files that need no Potstill, each checked against the student's own outputs."""
    raise RunError(f"{run} {format} {out} {json}")
