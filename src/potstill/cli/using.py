"""The commands that use a finished student: evaluate, analyze, export."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.arguments import Json, overridden, read_recipe, split_arguments
from potstill.cli.console import is_main_process, open_console
from potstill.cli.output import only_json, print_json
from potstill.cli.tables import plain_table
from potstill.errors import RecipeError, RunError
from potstill.headline import headline_of

__all__ = ["analyze", "evaluate", "export"]

# What judging a network reads of a recipe.
_JUDGES_BY = ("task", "data", "student", "batch_size", "device", "precision")


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [KEY=VALUE]...", help="A run's folder, and values laid over its recipe.", show_default=False
        ),
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
        counts = {"images": found.images, "skipped": found.skipped}
        print_json({**counts, "data": found.data, "note": found.note, **found.accuracies})
        return
    console.print(found.note, soft_wrap=True)
    headline = headline_of(found.accuracies)
    cells = {">images": f"{found.images:,}"}
    cells |= {f">{headline.name(k)} {headline.unit}": f"{value:.2f}" for k, value in headline.values(found.accuracies)}
    if "val_loss" in found.accuracies:
        cells[">cross entropy"] = f"{found.accuracies['val_loss']:.4f}"
    console.print(plain_table(cells, [cells.values()], found.data))


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values laid over its recipe.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="For a student of your own code: its package.module:factory.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Measure what explains a run: its features' lengths and directions, and how far its projectors are apart."""
    if not (run / "recipe.yaml").is_file():
        raise RunError(f"{run} is no run's folder: it has no recipe.yaml. Give the folder that a run ended with.")
    recipe = read_recipe([str(run), "objective={}", *(overrides or [])])
    with only_json(json):
        console = open_console(json)
        from potstill.procedures.analysis import analyze_run
        from potstill.training.distributed import joined

        with joined(recipe.device) as processes:
            found = analyze_run(recipe, run, processes, model)
    if not is_main_process():
        return
    if json:
        print_json(asdict(found))
        return
    rows = [(name, f"{row['norm']:.3f}", f"{row['m_bc']:.4f}") for name, row in found.networks.items()]
    title = f"{found.images:,} images of {found.data}"
    console.print(plain_table(["", ">mean norm", ">M_BC, between classes"], rows, title))
    names = {"m_da": "M_DA, direction to the teacher", "cka": "CKA with the teacher"}
    pairs = [(names[name], f"{value:.4f}") for name, value in found.pair.items()]
    for name, distance in found.projectors.items():
        pairs += [(f"distance of two projectors of {name}", f"{distance['distance']:.2f}")]
        pairs += [(f"the same, squared (table 4 of PEFD), of {name}", f"{distance['squared']:.2f}")]
    if pairs:
        console.print(plain_table(["student and teacher", ">value"], pairs))


def _judged(arguments: list[str] | None) -> Any:
    """The recipe of what is to be judged: a run's with its own student, on its own data unless others are given."""
    run, overrides = split_arguments(arguments)
    from potstill.recipe import is_key

    keys = [override.partition("=")[0].strip() for override in overrides]
    sections = {key: key.split(".")[0] for key in keys}
    unread = [key for key, section in sections.items() if is_key(section) and section not in _JUDGES_BY]
    if unread:
        raise RecipeError(
            f"`potstill evaluate` does not read {', '.join(unread)}; it reads data.*, student.*, batch_size, device "
            "and precision. Leave out what it does not read."
        )
    if run is None:
        return read_recipe(arguments)
    if "task" in keys:
        raise RecipeError(f"task= is said by the run in {run}; leave it out.")
    if not (Path(run) / "recipe.yaml").is_file():
        raise RunError(f"{run} is no run's folder: it has no recipe.yaml. Give the folder that a run ended with.")
    if overridden(overrides, "data.path"):
        # What the run's recipe says of its own data's layout does not hold for others; nor is a part of them unseen.
        fresh = {"source": "auto", "image_column": "null", "label_column": "null", "val_fraction": "0"}
        fresh["protocol"] = "null"
        overrides = [*(f"data.{key}={value}" for key, value in fresh.items()), *overrides]
    weights = json_module.dumps(run)  # quoted, so that YAML leaves a folder named 2026 a text
    # Nothing is trained, so the objective goes unread: to check it is to import what it names, and a folder may not
    # choose by itself which code runs.
    own = ["student={}", "teacher=null", "store={}", "objective={}"]
    return read_recipe([run, *own, *overrides, f"student.weights={weights}"])


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.", show_default=False)],
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format", "-f", help="safetensors, onnx or torch; once for each. All, where none is named.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; RUN/export by default.", show_default=False)
    ] = None,
    head: Annotated[
        bool, typer.Option("--head", help="A face network's graph ends with the identities' cosines.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="onnx and torch take pixels in 0..1 and normalise them themselves.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="For a student of your own code: its package.module:factory.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Write the student alone, as files that need no Potstill, each checked against the student's own outputs."""
    with only_json(json):
        console = open_console(json)
        from potstill.export import FORMATS
        from potstill.export import export as export_student

        files = export_student(run, format or tuple(FORMATS), out, raw=raw, head=head, model=model)
    if json:
        print_json(
            [{"path": str(one.path), "format": one.format, "max_difference": one.max_difference} for one in files]
        )
        return
    cells = [(str(one.path), one.format, f"{one.path.stat().st_size:,}", f"{one.max_difference:.1e}") for one in files]
    console.print(plain_table(["file", "format", ">bytes", ">largest difference"], cells))
    console.print("Each file was read back and run: its outputs are the student's, up to that part of the largest one.")
