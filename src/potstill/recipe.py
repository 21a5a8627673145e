"""Recipe files: YAML and ``key=value`` overrides to a checked :class:`Recipe`, every mistake reported at once."""

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from potstill.config import Recipe
from potstill.errors import RecipeError, nearest
from potstill.methods import check_hyper
from potstill.methods.objective import default_objective

__all__ = ["dump_recipe", "load_recipe", "parse_recipe"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of the last one winning, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {', '.join(twice)} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants 1.0e-3; everybody writes 1e-3, and means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: str | Path | None = None, overrides: Iterable[str] = (), **defaults: Any) -> Recipe:
    """A recipe from a file (or none) with overrides like ``student.model=resnet8x4`` or ``epochs=30`` laid over it.

    Args:
        path: a YAML file; None starts from the defaults.
        overrides: ``key=value`` strings; the value is read as YAML, dots go down a level.
        defaults: top-level values for keys that neither the file nor an override gives (a command's own defaults).

    Raises:
        RecipeError: for a file that is no YAML mapping and, all of them in one message, for every unknown key, wrong
            type, value out of range, unknown method and unknown hyper-parameter.

    Example:
        >>> load_recipe(None, ["epochs=30", "objective={ce: 1, pefd: 25}"]).epochs
        30
        >>> load_recipe(None, ["teacher.weights=runs/large", "objective.pefd.projectors=1"]).objective
        {'ce': 1.0, 'pefd': {'weight': 25.0, 'projectors': 1}}
    """
    raw = _read(Path(path)) if path is not None else {}
    # What an objective starts from depends on the teacher, so its overrides come last.
    for override in sorted(overrides, key=lambda text: text.startswith("objective.")):
        if override.startswith("objective.") and not raw.get("objective"):
            raw["objective"] = default_objective(taught=bool(raw.get("teacher")))
        _lay_over(raw, override)
    return parse_recipe({**defaults, **raw}, where=str(path) if path is not None else "the command line")


def parse_recipe(raw: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A checked recipe from plain values; see :func:`load_recipe` for what is raised."""
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += [line for item in error.errors() for line in _sentence(item).splitlines()]
    objective = raw.get("objective")
    for name, value in (objective if isinstance(objective, dict) else {}).items():
        hyper = {k: v for k, v in value.items() if k != "weight"} if isinstance(value, dict) else {}
        problems += [f"objective.{name}: {problem}" for problem in check_hyper(str(name), hyper)]
        problems += _weight_problems(str(name), value)
    if problems or recipe is None:
        problems = list(dict.fromkeys(problems))
        if len(problems) == 1:
            raise RecipeError(f"1 mistake in {where}: {problems[0]}")
        raise RecipeError("\n  ".join([f"{len(problems)} mistakes in {where}:", *problems]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, fully resolved; reading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe file {path}. `potstill config` prints one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe file {path} cannot be read: {error}.") from None
    try:
        raw = yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe file {path} is no valid YAML: {' '.join(str(error).split())}.") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"The recipe file {path} holds a {type(raw).__name__}; expected `key: value` lines.")
    return raw


def _lay_over(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"The override {override!r} is not of the form key=value, like epochs=30.")
    if not text.strip():  # mostly a shell's variable that is not set
        raise RecipeError(f"The override {override!r} has no value; leave it out, or write {key.strip()}=null.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of {override!r} is no valid YAML: {' '.join(str(error).split())}.") from None
    *parents, last = key.strip().split(".")
    level = raw
    for parent in parents:
        if not isinstance(level.get(parent), dict):
            # `objective.pefd.projectors=1` after `pefd: 25`: the number is the method's weight
            number = level.get(parent)
            level[parent] = {"weight": number} if parents[0] == "objective" and isinstance(number, int | float) else {}
        level = level[parent]
    level[last] = value


def _sentence(item: Any) -> str:
    """One pydantic error with the key, what was got and what was expected; a validator may say several lines."""
    loc = [str(part) for part in item["loc"]]
    key = ".".join(loc)
    if item["type"] == "missing":  # the recipe's fields have defaults: only a place in a row of values can be missing
        return f"{'.'.join(loc[:-1])} is {item['input']!r}: too few values."
    if item["type"] == "extra_forbidden":
        siblings = _fields_at(loc[:-1])
        return f"unknown key {key!r}.{nearest(loc[-1], siblings) or ' Valid here: ' + ', '.join(siblings) + '.'}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{key} is {item['input']!r}: {message}."


def _weight_problems(name: str, value: Any) -> list[str]:
    """What is wrong with a term's weight where it is a number or missing; pydantic tells of the rest."""
    if isinstance(value, dict) and "weight" not in value:
        return [f"objective.{name} has no weight; write it as {name}: {{weight: 1, ...}}."]
    weight = value["weight"] if isinstance(value, dict) else value
    if isinstance(weight, int | float) and not isinstance(weight, bool) and weight <= 0:
        return [f"objective.{name} has the weight {weight}; expected a positive number, or leave {name} out."]
    return []


def _fields_at(loc: list[str]) -> list[str]:
    """The names that a section of the recipe knows."""
    model: type[BaseModel] = Recipe
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
