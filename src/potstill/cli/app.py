"""The command's frame: its name, its version, its commands."""

from typing import Annotated

import typer

from potstill.cli.errors import Commands
from potstill.cli.profiling import profile
from potstill.cli.protocol import protocol
from potstill.cli.race import race
from potstill.cli.report import report
from potstill.cli.showing import config, methods, models, taps
from potstill.cli.store import store
from potstill.cli.study import study
from potstill.cli.training import demo, distill, train
from potstill.cli.using import analyze, evaluate, export
from potstill.cli.watch import watch

__all__ = ["app", "main"]


def _examples(*lines: str) -> str:
    """An epilog: a blank line keeps typer from running examples together."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


app = typer.Typer(
    name="potstill",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "potstill demo", "potstill train data.path=pictures student.model=resnet34",
        "potstill distill data.path=pictures teacher.weights=runs/large student.model=resnet18 control=true",
        "potstill COMMAND --help",
    ),
)  # fmt: skip


def _print_version(value: bool) -> None:
    if value:
        from potstill import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Turn a large vision network into a small one by knowledge distillation, and see how well it worked."""


app.command(epilog=_examples("potstill demo", "potstill demo seed=1 run=runs/demo-1", "potstill demo --fresh"))(demo)
app.command(
    epilog=_examples(
        "potstill train data.path=cifar100 student.model=resnet32x4",
        "potstill train data.path=pictures student.model=timm/convnext_tiny student.pretrained=true epochs=30",
        "potstill train recipe.yaml seed=1 --json", "torchrun --nproc-per-node 2 -m potstill train recipe.yaml",
    )
)(train)  # fmt: skip
app.command(
    epilog=_examples(
        "potstill distill data.path=cifar100 teacher.weights=runs/large student.model=resnet8x4 control=true",
        "potstill distill recipe.yaml student.model=resnet8x4 epochs=30",
        "potstill distill recipe.yaml objective='{ce: 0.1, kd: {weight: 0.9, temperature: 4}}'",
        "potstill distill recipe.yaml --resume",
    )
)(distill)  # fmt: skip
app.command(
    epilog=_examples(
        "potstill evaluate runs/small", "potstill evaluate runs/small data.path=other-pictures --json",
        "potstill evaluate student.model=resnet8x4 student.weights=small.safetensors data.path=cifar100",
    )
)(evaluate)  # fmt: skip
app.command(epilog=_examples("potstill analyze runs/small", "potstill analyze runs/small --json"))(analyze)
app.command(
    epilog=_examples(
        "potstill export runs/small", "potstill export runs/small --format onnx --format torch --out build",
    )
)(export)  # fmt: skip
app.command(epilog=_examples("potstill watch runs/small", "potstill watch runs/small --once"))(watch)
app.command(
    epilog=_examples(
        "potstill study studies/digits.yaml",
        "potstill study studies/pefd-table1-cpu.yaml data.path=cifar100 --dry-run",
        "potstill study study.yaml epochs=30 study.seeds=[10,20,30] study.workers=4 run=runs/compare",
    )
)(study)  # fmt: skip
app.command(epilog=_examples("potstill profile recipe.yaml", "potstill profile runs/small --steps 50 --json"))(profile)
app.command(
    epilog=_examples(
        "potstill report runs/small", "potstill report runs/a runs/b --out compared.html",
        "potstill report runs/small --format md",
    )
)(report)  # fmt: skip
app.command(
    epilog=_examples(
        "potstill race races/digits.yaml",
        "potstill race recipe.yaml students='[resnet8, resnet20]' methods='{alone: {ce: 1}, kd: {ce: 1, kd: 1}}'",
        "potstill race recipe.yaml candidates='[resnet8, {model: resnet14, optimizer: {lr: 0.1}}]' race.factor=2",
    )
)(race)  # fmt: skip
app.add_typer(store, name="store")
app.command(
    epilog=_examples(
        "potstill protocol people protocols/people", "potstill protocol people held-out --people 8 --seed 1"
    )
)(protocol)
app.command(epilog=_examples("potstill methods", "potstill methods pefd"))(methods)
app.command(epilog=_examples("potstill models", "potstill models 'cifar/*'", "potstill models '*convnext*' --json"))(
    models
)
app.command(
    epilog=_examples(
        "potstill taps student.model=resnet8x4 teacher.model=resnet32x4", "potstill taps recipe.yaml --json"
    )
)(taps)
app.command(
    epilog=_examples(
        "potstill config > recipe.yaml", "potstill config recipe.yaml epochs=30", "potstill config --schema"
    )
)(config)


def main() -> None:
    """Run the command line."""
    app()
