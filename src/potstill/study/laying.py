"""Values laid over others: how a study's base, recipe and levels become the recipe of one run."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from potstill.recipe import lay_over

__all__ = ["NAME", "laid", "overridden"]

NAME = "name"
"""The key, in a recipe that is not finished, of the study's teacher that ``teacher: NAME`` names."""

_WHICH = (NAME, "weights", "model", "pretrained", "args", "taps")  # of a teacher: which network it is
_NAMES_ONE = {NAME, "weights", "model", "pretrained"}


def laid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values of a recipe with others laid over them.

    A section is laid over key by key, a dotted key reaches into one, an objective is taken whole. ``teacher: NAME``
    becomes ``{name: NAME}``, with what is said there already of how that teacher shall run; ``teacher: null`` stays,
    whatever is said later of how a teacher shall run.

    Example:
        >>> laid({"student": {"model": "resnet8"}, "objective": {"ce": 1}}, {"student.size": 8, "objective": {"kd": 1}})
        {'student': {'model': 'resnet8', 'size': 8}, 'objective': {'kd': 1}}
        >>> laid({"teacher": {"weights": "runs/a", "fold": False}}, {"teacher": "large"})
        {'teacher': {'name': 'large', 'fold': False}}
        >>> laid(laid({}, {"teacher": None}), {"teacher.precision": "fp32"})
        {'teacher': None}
    """
    made = copy.deepcopy(dict(below))
    for key, value in above.items():
        first, _, rest = str(key).partition(".")
        if first == "teacher":
            made["teacher"] = _taught(made, {rest: value} if rest else value)
        elif key == "objective":
            made[key] = copy.deepcopy(value)
        elif first == "objective" and isinstance(terms := made.get(first) or {}, dict):
            made[first] = _over(terms, {rest: value}, weighed=terms)
        else:
            made = _over(made, {key: value})
    return made


def overridden(raw: Mapping[str, Any], override: str) -> dict[str, Any]:
    """The same with one ``key=value`` of the command line.

    Raises:
        RecipeError: for an override that is none.
    """
    made = copy.deepcopy(dict(raw))
    if override.partition("=")[0].strip().split(".")[0] != "teacher":
        lay_over(made, override)
        return made
    said: dict[str, Any] = {}
    lay_over(said, override)
    return laid(made, said)


def _taught(made: Mapping[str, Any], value: Any) -> Any:
    """The teacher of a recipe with a value laid over it."""
    below = made.get("teacher", {})
    if isinstance(value, str):
        how = {key: said for key, said in below.items() if key not in _WHICH} if isinstance(below, dict) else {}
        return {NAME: value, **how}
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    names_one = not _NAMES_ONE.isdisjoint(str(key).partition(".")[0] for key in value)
    if below is None and not names_one:
        return None
    below = below if isinstance(below, dict) else {}
    return _over({key: said for key, said in below.items() if key != NAME or not names_one}, value)


def _over(below: Mapping[str, Any], above: Mapping[str, Any], weighed: Collection[str] = ()) -> dict[str, Any]:
    made = copy.deepcopy(dict(below))
    for key, value in above.items():
        first, _, rest = str(key).partition(".")
        if rest:
            inner = made.get(first)
            if first in weighed and isinstance(inner, int | float):  # a method's bare number is its weight
                inner = {"weight": inner}
            if inner is None or isinstance(inner, dict):
                made[first] = _over(inner or {}, {rest: value})
            else:  # a mistake, which the recipe's check tells: there is no such key
                made[str(key)] = copy.deepcopy(value)
        elif isinstance(value, dict):
            inner = made.get(key)
            made[key] = _over(inner if isinstance(inner, dict) else {}, value)
        else:
            made[key] = copy.deepcopy(value)
    return made
