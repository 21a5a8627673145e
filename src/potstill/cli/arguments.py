"""What every command that takes a recipe understands: a file first, or none, then ``key=value``."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Arguments", "Json", "overridden", "read_recipe", "split_arguments"]

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe file (YAML), and values laid over it; [cyan]potstill config[/cyan] prints all keys.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout; everything else goes to stderr.")]


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The first argument where it is no ``key=value``, and the overrides.

    Example:
        >>> split_arguments(["recipe.yaml", "epochs=3"]), split_arguments(["epochs=3"])
        (('recipe.yaml', ['epochs=3']), (None, ['epochs=3']))
    """
    given = list(arguments or [])
    return (given[0], given[1:]) if given and "=" not in given[0] else (None, given)


def read_recipe(arguments: list[str] | None, **defaults: Any) -> Any:
    """The recipe that a command's arguments make; a run's folder stands for its ``recipe.yaml``.

    Raises:
        RecipeError: for whatever is wrong with it, all at once.
    """
    from potstill.recipe import load_recipe

    path, overrides = split_arguments(arguments)
    if path is not None and (Path(path) / "recipe.yaml").is_file():
        path = str(Path(path) / "recipe.yaml")
    return load_recipe(path, overrides, **defaults)


def overridden(overrides: list[str], key: str) -> bool:
    """Whether ``key`` or something below it is among the overrides."""
    return any(override.split("=")[0] == key or override.startswith(f"{key}.") for override in overrides)
