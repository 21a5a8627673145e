"""What every command that takes a recipe understands: a file first, or none, then ``key=value``."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Arguments", "Json", "as_override", "as_yaml", "overridden", "read_recipe", "split_arguments"]

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
        RecipeError: for a folder that is no run's, and for whatever is wrong with the recipe, all at once.
    """
    from potstill.errors import RecipeError
    from potstill.recipe import load_recipe

    path, overrides = split_arguments(arguments)
    if path is not None and Path(path).is_dir():
        file = Path(path) / "recipe.yaml"
        if not file.is_file():
            raise RecipeError(
                f"{path} is a folder without a recipe.yaml. Give a recipe file or a run's folder; a folder of images "
                f"is given as {as_override('data.path', path)}."
            )
        path = str(file)
    return load_recipe(path, overrides, **defaults)


def overridden(overrides: list[str], key: str) -> bool:
    """Whether ``key`` or something below it is among the overrides."""
    return any(override.split("=")[0] == key or override.startswith(f"{key}.") for override in overrides)


def as_yaml(value: Any) -> str:
    """A plain value in YAML's one-line form.

    Example:
        >>> as_yaml([0.5, None]), as_yaml("photos"), as_yaml("2026")
        ('[0.5, null]', 'photos', "'2026'")
    """
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()


def as_override(key: str, value: Any) -> str:
    """``key=value`` as a shell takes it, for commands that are shown.

    Example:
        >>> as_override("data.path", "my photos"), as_override("data.size", 32)
        ("'data.path=my photos'", 'data.size=32')
    """
    return shlex.quote(f"{key}={as_yaml(value)}")
