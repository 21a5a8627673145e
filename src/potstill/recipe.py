"""Recipe files: YAML and ``key=value`` overrides to a checked :class:`Recipe`, every mistake reported at once."""

import copy
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods import check_hyper
from potstill.methods.objective import default_objective
from potstill.sentences import fields_at, sentence

__all__ = ["dump_recipe", "is_key", "lay_over", "load_recipe", "parse_recipe", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of the last one winning, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", key_node.start_mark
                )
            keys.append(key)
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
    raw = read_yaml(Path(path)) if path is not None else {}
    of_file = copy.deepcopy(raw)
    # What an objective starts from depends on the teacher, so its overrides come last.
    for override in sorted(overrides, key=lambda text: text.startswith("objective.")):
        if override.startswith("objective.") and not raw.get("objective"):
            raw["objective"] = default_objective(_taught(raw))
        lay_over(raw, override)
    recipe, problems = _checked({**defaults, **raw})
    if recipe is not None:
        return recipe
    # What is wrong without the overrides too is the file's; of its objective only terms that are still there are
    # looked at, because to check a term may be to import it.
    terms, left = of_file.get("objective"), raw.get("objective")
    if isinstance(terms, dict) and isinstance(left, dict):
        of_file["objective"] = {name: value for name, value in terms.items() if name in left}
    before = set(_checked(of_file)[1]) if path is not None else set()
    raise _mistakes(
        {
            f"in {path}": [problem for problem in problems if problem in before],
            "on the command line": [problem for problem in problems if problem not in before],
        }
    )


def parse_recipe(raw: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A checked recipe from plain values; see :func:`load_recipe` for what is raised."""
    recipe, problems = _checked(raw)
    if recipe is None:
        raise _mistakes({f"in {where}": problems})
    return recipe


def is_key(key: str) -> bool:
    """Whether a recipe knows a key by this name.

    Example:
        >>> is_key("data.path"), is_key("run"), is_key("data.pth")
        (True, True, False)
    """
    *sections, last = key.split(".")
    return last in fields_at(Recipe, sections)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, fully resolved; reading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)


def _checked(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe that plain values make, or None and a sentence for each thing that is wrong with them."""
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += [line for item in error.errors() for line in sentence(Recipe, item, raw).splitlines()]
    objective = raw.get("objective")
    for name, value in (objective if isinstance(objective, dict) else {}).items():
        hyper = {k: v for k, v in value.items() if k not in ("weight", "warmup")} if isinstance(value, dict) else {}
        problems += [f"objective.{name}: {problem}" for problem in check_hyper(str(name), hyper)]
        problems += _weight_problems(str(name), value)
    return (None if problems else recipe), list(dict.fromkeys(problems))


def _mistakes(places: Mapping[str, list[str]]) -> RecipeError:
    """All mistakes in one error, below the place where each was made."""
    blocks = []
    for place, problems in places.items():
        if len(problems) == 1:
            blocks.append(f"1 mistake {place}: {problems[0]}")
        elif problems:
            blocks.append("\n  ".join([f"{len(problems)} mistakes {place}:", *problems]))
    return RecipeError("\n".join(blocks))


def read_yaml(
    path: Path, what: str = "recipe", hint: str = " `potstill config` prints one to start from."
) -> dict[str, Any]:
    """The plain keys and values of a YAML file; nothing in it can run code.

    Args:
        path: the file.
        what: what it is, for the errors.
        hint: what to do where there is none.

    Raises:
        RecipeError: for a file that is not there, that is no YAML, or that holds no keys and values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no {what} file {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The {what} file {path} cannot be read: {error}.") from None
    try:
        raw = yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise RecipeError(f"The {what} file {path} is no valid YAML: {_yaml_problem(error)}.") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"The {what} file {path} holds a {type(raw).__name__}; expected `key: value` lines.")
    return raw


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without PyYAML's drawing of the place."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return re.sub(r'in "[^"]*", ', "", " ".join(str(error).split()))
    mark, begin = error.problem_mark, error.context_mark
    since = f" that begins in line {begin.line + 1}, column {begin.column + 1}" if begin is not None else ""
    context = f"{error.context}{since}: " if error.context else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"


def lay_over(raw: dict[str, Any], override: str) -> None:
    """Lay one ``key=value`` over plain values, in place; dots go down a level.

    Raises:
        RecipeError: for an override that is none, or one that sets a key of what has no keys.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        file = override.endswith((".yaml", ".yml")) or Path(override).is_file()
        more = "; a recipe file comes first, and there can be one" if file else ", like epochs=30"
        raise RecipeError(f"The override {override!r} is not of the form key=value{more}.")
    if not text.strip():  # mostly a shell's variable that is not set
        raise RecipeError(f"The override {override!r} has no value; leave it out, or write {key.strip()}=null.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of {override!r} is no valid YAML: {_yaml_problem(error)}.") from None
    *parents, last = key.strip().split(".")
    level = raw
    for depth, parent in enumerate(parents):
        found, place = level.get(parent), parents[: depth + 1]
        if found is None:
            level[parent] = {}
        elif parents[0] == "objective" and depth == 1 and isinstance(found, int | float):
            level[parent] = {"weight": found}  # `objective.pefd.projectors=1` after `pefd: 25`: the method's weight
        elif not isinstance(found, dict):
            if not _has_keys(place):
                raise RecipeError(f"{override!r} sets a key of {'.'.join(place)}, which is {found!r} and has no keys.")
            return  # a mistake of its own: what the recipe's check says of it holds with the override as without
        level = level[parent]
    level[last] = value


def _has_keys(place: list[str]) -> bool:
    """Whether what stands there should be keys and values: a section, the objective, a term of it, ``args``."""
    return bool(fields_at(Recipe, place)) or (place[0] == "objective" and len(place) <= 2) or place[1:] == ["args"]


def _taught(raw: dict[str, Any]) -> bool:
    """Whether a teacher takes part in what the objective says; stage by stage, it is the stages that learn from it."""
    procedure = raw.get("procedure")
    return bool(raw.get("teacher")) and not (isinstance(procedure, dict) and procedure.get("name") == "stagewise")


def _weight_problems(name: str, value: Any) -> list[str]:
    """What is wrong with a term's weight where it is a number or missing; pydantic tells of the rest."""
    if isinstance(value, dict) and "weight" not in value:
        return [f"objective.{name} has no weight; write it as {name}: {{weight: 1, ...}}."]
    if isinstance(value, dict) and (type(value.get("warmup", 0)) is not int or value.get("warmup", 0) < 0):
        return [f"objective.{name}.warmup is {value['warmup']!r}; expected a number of epochs, like 20."]
    weight = value["weight"] if isinstance(value, dict) else value
    if isinstance(weight, int | float) and not isinstance(weight, bool) and weight <= 0:
        return [f"objective.{name} has the weight {weight}; expected a positive number, or leave {name} out."]
    return []
