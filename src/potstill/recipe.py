"""Recipe files: YAML and ``key=value`` overrides to a checked :class:`Recipe`, every mistake reported at once."""

import copy
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from potstill.config import DataConfig, Recipe
from potstill.errors import RecipeError, nearest
from potstill.methods import check_hyper
from potstill.methods.objective import default_objective

__all__ = ["dump_recipe", "is_key", "load_recipe", "parse_recipe"]

# What a row of values must be, by its key's last name.
_ROWS = {
    "mean": "three numbers from 0 to 1, like [0.5, 0.5, 0.5]: values are of pixels in 0..1, not 0..255",
    "std": "three numbers above 0 and up to 1, like [0.25, 0.25, 0.25]: values are of pixels in 0..1, not 0..255",
    "scale": "two numbers from 0 to 1, like [0.08, 1]",
    "ratio": "two numbers, like [0.75, 1.33]",
    "betas": "two numbers from 0 to below 1, like [0.9, 0.999]",
    "drops": "parts of the run from 0 to 1, like [0.625, 0.75]: epoch 150 of 240 is 0.625",
    "stage_epochs": "a number of epochs, or one for each stage, like [20, 20, 20]",
    "maps": "a list of layers, like [layer1, layer2]",
    "keep": "a list out of logits, embedding, maps, preacts, blocks and peers, like [logits, embedding]",
    "students": "a list of what differs in each, like [{seed: 1}, {model: resnet20, name: larger}]",
    "others": "a list of runs' folders, like [runs/a, runs/b]",
    "peers": "a list of networks, like [resnet20, resnet8]",
    "assistants": "a list of networks, like [resnet56, resnet20]",
}

# What pydantic's kinds of errors expect.
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false"}
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
}


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
    raw = _read(Path(path)) if path is not None else {}
    of_file = copy.deepcopy(raw)
    # What an objective starts from depends on the teacher, so its overrides come last.
    for override in sorted(overrides, key=lambda text: text.startswith("objective.")):
        if override.startswith("objective.") and not raw.get("objective"):
            raw["objective"] = default_objective(_taught(raw))
        _lay_over(raw, override)
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
    return last in _fields_at(sections)


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
        problems += [line for item in error.errors() for line in _sentence(item, raw).splitlines()]
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
        raise RecipeError(f"The recipe file {path} is no valid YAML: {_yaml_problem(error)}.") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"The recipe file {path} holds a {type(raw).__name__}; expected `key: value` lines.")
    return raw


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without PyYAML's drawing of the place."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return re.sub(r'in "[^"]*", ', "", " ".join(str(error).split()))
    mark, begin = error.problem_mark, error.context_mark
    since = f" that begins in line {begin.line + 1}, column {begin.column + 1}" if begin is not None else ""
    context = f"{error.context}{since}: " if error.context else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"


def _lay_over(raw: dict[str, Any], override: str) -> None:
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
    return bool(_fields_at(place)) or (place[0] == "objective" and len(place) <= 2) or place[1:] == ["args"]


def _taught(raw: dict[str, Any]) -> bool:
    """Whether a teacher takes part in what the objective says; stage by stage, it is the stages that learn from it."""
    procedure = raw.get("procedure")
    return bool(raw.get("teacher")) and not (isinstance(procedure, dict) and procedure.get("name") == "stagewise")


def _sentence(item: Any, raw: dict[str, Any]) -> str:
    """One pydantic error with the key, what was got and what was expected; a validator may say several lines."""
    loc = [str(part) for part in item["loc"]]
    if len(loc) > 1 and (loc[-1] == "bool" or loc[-1].startswith("literal[")):  # either of two kinds: said once
        return f"{'.'.join(loc[:-1])} is {_shown(item['input'])}; expected auto, true or false."
    key, kind, shown = ".".join(loc), item["type"], _shown(item["input"])
    if kind == "extra_forbidden":
        siblings = _fields_at(loc[:-1])
        return f"unknown key {key!r}.{nearest(loc[-1], siblings) or ' Valid here: ' + ', '.join(siblings) + '.'}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    for end, name in enumerate(loc, start=1):
        if name in _ROWS:  # one sentence on the whole row, however many of its values are wrong
            value: Any = raw
            for part in loc[:end]:
                value = value[part]
            return f"{'.'.join(loc[:end])} is {_shown(value)}; expected {_ROWS[name]}."
    if kind.startswith(("model_", "dict_")):
        return f"{key} is {shown}; {_keys_instead(loc, item['input'])}."
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"{key} is {shown}; expected a number {words} {item['ctx'][limit]}."
    if kind == "string_type":
        in_quotes = f", in quotes like '\"{shown}\"'" if isinstance(item["input"], int | float) else ""
        return f"{key} is {shown}; expected text{in_quotes}."
    if kind == "literal_error":
        return f"{key} is {shown}; expected {item['ctx']['expected']}."
    expected = _KINDS.get(kind.split("_")[0])
    return f"{key} is {shown}; {f'expected {expected}' if expected else item['msg'][0].lower() + item['msg'][1:]}."


def _shown(value: Any) -> str:
    """A value as a recipe has it: true rather than True."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _keys_instead(loc: list[str], value: Any) -> str:
    """What to write where a single value stands in the place of keys and values."""
    key = ".".join(loc)
    name: str | None = None
    if key == "objective":
        methods = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        terms = ", ".join(f"{method}: 1" for method in methods) or "ce: 1"
        return f"write the methods with their weights, objective: {{{terms}}}, or objective={{{terms}}} as an override"
    fields = _fields_at(loc)
    if not fields:
        return f"expected names and values, like {key}: {{name: value}}"
    if isinstance(value, str) and "model" in fields:
        name = "weights" if Path(value).exists() else "model"
    elif isinstance(value, str) and key == "data":
        name = "source" if value in get_args(DataConfig.model_fields["source"].annotation) else "path"
    elif isinstance(value, str) and "name" in fields:
        name = "name"
    if name is None:
        return f"expected keys below it, like {key}.{fields[0]}; valid there: {', '.join(fields)}"
    return f"write {key}: {{{name}: {value}}}, or {key}.{name}={value} as an override"


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
