"""The commands that only look: methods, models, taps, config."""

import inspect
import json as json_module
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.arguments import Arguments, Json, read_recipe
from potstill.cli.console import open_console
from potstill.cli.output import only_json, print_json
from potstill.cli.tables import plain_table
from potstill.errors import NetworkError, RecipeError, nearest

if TYPE_CHECKING:
    from potstill.config import NetworkConfig, Recipe
    from potstill.networks.tap import Tapped

__all__ = ["config", "methods", "models", "taps"]


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to read all about it.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """The distillation methods that an objective can name, and what each one needs."""
    from potstill.methods import hyper_parameters
    from potstill.methods import methods as all_methods
    from potstill.methods.registry import find_method

    classes = all_methods() if name is None else {name: find_method(name)}
    cards = {key: _method_card(cls, hyper_parameters(key)) for key, cls in classes.items()}
    if json:
        print_json(cards)
        return
    console = open_console()
    if name is None:
        rows = [(key, _needs(card["needs"]), card["summary"]) for key, card in cards.items()]
        console.print(plain_table(["method", "needs", "what it is"], rows))
        console.print("`potstill methods NAME` tells all of one; a class of your own is named package.module:Class.")
        return
    console.print(_documentation(name, classes[name]), soft_wrap=True)
    hyper = [(key, _default(value)) for key, value in hyper_parameters(name).items()]
    console.print(f"\nNeeds: {_needs(cards[name]['needs'])}.")
    console.print(plain_table(["hyper-parameter", "default"], hyper) if hyper else "It takes no hyper-parameters.")


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern with * and ?.")] = "*",
    json: Json = False,
) -> None:
    """The networks by name: the CIFAR zoo of the distillation papers (with parameters), then timm's.

    Also valid as student.model and teacher.model: torchvision/NAME, and package.module:factory for your own.
    """
    from potstill.networks.build import list_models

    names = list_models(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")
    if not names:
        raise NetworkError(f"No network's name matches {pattern!r}.{nearest(pattern, list_models())}")
    counts = {name: _parameters(name) if name.startswith(("cifar/", "faces/")) else None for name in names}
    if json:
        print_json([{"name": name, "parameters": count} for name, count in counts.items()])
        return
    console = open_console()
    zoo = [(name, f"{count:,}") for name, count in counts.items() if count is not None]
    if zoo:
        console.print(plain_table(["Potstill's own", ">parameters (100 classes)"], zoo))
    for name, count in counts.items():
        if count is None:
            console.print(name)


def taps(arguments: Arguments = None, json: Json = False) -> None:
    """The layers of the student and the teacher that methods can read, and the pairs that belong together.

    Weights are not needed for this, nor is a teacher.
    """
    recipe: Recipe = read_recipe(arguments)
    sections = {"student": recipe.student, "teacher": recipe.teacher}
    named = {name: part for name, part in sections.items() if part is not None and (part.model or part.weights)}
    if not named:
        raise RecipeError("Name a network to look at, like student.model=resnet8x4; and teacher.model for pairs.")
    with only_json(json):
        console = open_console(json)
        from potstill.networks.inspect import describe_taps, propose_pairs

        networks = {name: _network(part, recipe) for name, part in named.items()}
        rows = {name: describe_taps(network) for name, network in networks.items()}
        pairs = propose_pairs(networks["student"].spec, networks["teacher"].spec) if len(networks) == 2 else []
    if json:
        shown = [{"student": pair.student.name, "teacher": pair.teacher.name, "note": pair.note} for pair in pairs]
        print_json({**{name: [asdict(row) for row in rows[name]] for name in rows}, "pairs": shown})
        return
    for name, layers in rows.items():
        cells = [
            (
                row.name, row.kind, str(row.channels), "-" if row.stride is None else str(row.stride),
                "-" if row.size is None else f"{row.size[0]} x {row.size[1]}", "yes" if row.used else "",
            )
            for row in layers
        ]  # fmt: skip
        title = f"{name}: {named[name].model or named[name].weights}"
        console.print(plain_table(["layer", "kind", ">channels", ">stride", ">size", "tapped"], cells, title))
    if pairs:
        proposed = [(pair.student.name, pair.teacher.name, str(pair.student.stride), pair.note) for pair in pairs]
        console.print(plain_table(["student", "teacher", ">stride", ""], proposed, "pairs of one stride"))
    elif len(networks) == 2:
        console.print("No two maps of the networks have one stride, so there are no pairs to propose.")


def config(
    arguments: Arguments = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors.")] = False,
) -> None:
    """A commented recipe with every key to start from; given a recipe or values, that recipe fully resolved."""
    if schema:
        if arguments:
            raise RecipeError(
                f"`potstill config --schema` prints the schema of all recipes, and reads no {' '.join(arguments)}; "
                "leave one of the two out."
            )
        from potstill.config import Recipe

        typer.echo(json_module.dumps(Recipe.model_json_schema(), indent=2))
    elif not arguments:
        from potstill.cli.commented import commented_recipe

        typer.echo(commented_recipe(), nl=False)
    else:
        recipe = read_recipe(arguments)
        open_console(json=True)
        from potstill.procedures.run import resolve
        from potstill.recipe import dump_recipe

        typer.echo(dump_recipe(resolve(recipe)), nl=False)


def _network(part: "NetworkConfig", recipe: "Recipe") -> "Tapped":
    """A network as the recipe means it, at the data's size where the recipe says which data."""
    from potstill.procedures.networks import network_of

    untrained = part.model_copy(update={"pretrained": False})  # layers are looked at: no need to download weights
    return network_of(untrained, None, getattr(part, "size", None) or recipe.data.size)


def _method_card(cls: type[Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    needs = cls.needs
    return {
        "summary": (inspect.getdoc(cls) or "").splitlines()[0].rstrip(".").replace("``", ""),
        "needs": {
            "student": sorted(needs.student),
            "teacher": sorted(needs.teacher),
            "labels": needs.labels,
            "class_means": needs.class_means,
        },
        "hyper_parameters": {key: "required" if value is ... else value for key, value in hyper.items()},
    }


def _needs(needs: Mapping[str, Any]) -> str:
    parts = [f"{who}'s {' and '.join(needs[who])}" for who in ("student", "teacher") if needs[who]]
    more = {"labels": "labels", "class_means": "the teacher's class means"}
    return ", ".join([*parts, *(words for key, words in more.items() if needs[key])])


def _documentation(name: str, cls: type[Any]) -> str:
    """The method's documentation, and that of its loss on tensors where it stands under the method's name."""
    loss = getattr(sys.modules[cls.__module__], name, None)
    texts = [inspect.getdoc(cls), inspect.getdoc(loss) if inspect.isfunction(loss) else None]
    heads = [f"{name}: {cls.__module__}.{cls.__name__}", f"{cls.__module__}.{name}"]
    whole = "\n\n".join(f"{head}\n\n{text}" for head, text in zip(heads, texts, strict=True) if text)
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", whole)  # :class:`~potstill.projectors.ProjectorEnsemble`


def _default(value: Any) -> str:
    return "(must be given)" if value is ... else str(value)


def _parameters(name: str) -> int | None:
    """The trainable parameters of a network of the zoos for 100 classes, counted without allocating them."""
    import timm
    import torch

    from potstill.networks.zoo import ZOOS

    origin, _, known = name.partition("/")
    if known == "face_backbone":  # what it has depends on the backbone
        return None
    with torch.device("meta"):
        network = timm.create_model(ZOOS[origin][known], num_classes=100)
    return sum(parameter.numel() for parameter in network.parameters())
