"""The candidates of a race, from the ways in which they can be written, each with a name."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Needs
from potstill.methods.objective import default_objective
from potstill.methods.registry import find_method

__all__ = ["STORE", "Entry", "make_entries"]

STORE = "store"
"""The folder of the teacher's outputs, beside the candidates' own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A candidate as it was written.

    Attributes:
        name: its folder's.
        place: where it was written, for errors.
        differs: what differs in it from the recipe around it, as an entry of a recipe's ``students``.
        methods: names of its objective's terms.
        reads: what these read of the teacher.
    """

    name: str
    place: str
    differs: dict[str, Any]
    methods: tuple[str, ...]
    reads: frozenset[str]


def make_entries(
    recipe: Recipe, candidates: Sequence[Any], students: Sequence[Any], methods: Mapping[str, Mapping[str, Any]]
) -> tuple[Entry, ...]:
    """All candidates: every student with every method, then those that are written one by one.

    Without a name a candidate is called after its model and its methods. One that learns from no teacher, by its
    objective, gets none.

    Args:
        recipe: what they have in common.
        candidates: each a model, or what differs from the recipe.
        students: likewise.
        methods: name -> an objective, or, where it has the key ``objective``, several keys of a candidate.

    Raises:
        RecipeError: for fewer than two, for two of one name, or a name that is taken.
    """
    written = [*_crossed(students, methods), *((f"candidates[{n}]", _keys(e)) for n, e in enumerate(candidates, 1))]
    if len(written) < 2:
        raise RecipeError(
            f"A race needs two candidates or more, and {'one is' if written else 'none is'} given: name them in "
            "candidates, like candidates=[{model: resnet8}, {model: resnet14}], or give students and methods, of which "
            "every pair is a candidate."
        )
    _check_names(own["name"] for _, own in written if "name" in own)
    taken = {str(own["name"]).lower() for _, own in written if "name" in own} | {STORE}
    entries = []
    for place, own in written:
        objective = _objective(recipe, own)
        name = str(own.get("name") or _unused(_described(recipe, own), taken))
        taken.add(name.lower())
        needs = [found for method in objective if (found := _needs(method)) is not None]
        untaught = len(needs) == len(objective) > 0 and not any(one.taught for one in needs)
        teacher = {"teacher": None} if untaught and _procedure(recipe, own) == "joint" else {}
        reads = frozenset[str]().union(*(one.teacher for one in needs))
        entries.append(Entry(name, place, {**own, **teacher, "name": name}, tuple(objective), reads))
    return tuple(entries)


def _keys(entry: Any) -> dict[str, Any]:
    return {"model": entry} if isinstance(entry, str) else dict(entry)


def _crossed(students: Sequence[Any], methods: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, dict[str, Any]]]:
    if not students and not methods:
        return
    ours = [(f"students[{number}]", _keys(one)) for number, one in enumerate(students, 1)] or [("", {})]
    theirs = [
        (f"methods.{name}", {**(one if "objective" in one else {"objective": dict(one)}), "name": name})
        for name, one in methods.items()
    ] or [("", {})]
    for (place, student), (with_place, method) in itertools.product(ours, theirs):
        if both := student.keys() & method.keys() - {"name"}:
            raise RecipeError(f"{place} and {with_place} both say {' and '.join(sorted(both))}; say it in one of them.")
        named = [str(student.get("name") or _slug(_model(student) or "")), str(method.get("name") or "")]
        name = {"name": "-".join(filter(None, named))} if any(named) else {}
        yield " with ".join(filter(None, (place, with_place))), {**student, **method, **name}


def _check_names(names: Iterable[Any]) -> None:
    seen: set[str] = set()
    for name in map(str, names):
        if name.lower() == STORE:
            raise RecipeError(f"A candidate cannot be called {name!r}: the teacher's outputs lie in that folder.")
        if name.lower() in seen:
            raise RecipeError(f"Two candidates are called {name!r}; give one another name.")
        seen.add(name.lower())


def _model(own: Mapping[str, Any]) -> str | None:
    student = own.get("student")
    model = own.get("model") or (student.get("model") or student.get("weights") if isinstance(student, dict) else None)
    return None if model is None else str(model)


def _described(recipe: Recipe, own: Mapping[str, Any]) -> str:
    """A candidate's model, and its methods where it has its own."""
    model = _model(own) or recipe.student.model or Path(recipe.student.weights or "student").stem
    terms = own.get("objective")
    methods = [str(name) for name in terms if name != "ce"] or ["ce"] if isinstance(terms, dict) and terms else []
    return "-".join([_slug(model), *map(_slug, methods), *([f"seed{own['seed']}"] if "seed" in own else [])])


def _slug(text: str) -> str:
    """What of a text can be a folder's name.

    Example:
        >>> _slug("timm/convnext_tiny"), _slug("nets:small")
        ('timm-convnext_tiny', 'nets-small')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")


def _unused(name: str, taken: set[str]) -> str:
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in names if one.lower() not in taken)


def _objective(recipe: Recipe, own: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate's objective; what is wrong with it is told where its recipe is made."""
    if "objective" in own:
        return dict(own["objective"]) if isinstance(own["objective"], dict) else {}
    return dict(recipe.objective) or default_objective("teacher" not in own)


def _needs(method: str) -> Needs | None:
    """What a method reads; None for one that nobody knows, which is told where the candidate's recipe is made."""
    try:
        return find_method(method).needs
    except RecipeError:
        return None


def _procedure(recipe: Recipe, own: Mapping[str, Any]) -> str:
    procedure = own.get("procedure")
    return str((procedure.get("name") if isinstance(procedure, dict) else None) or recipe.procedure.name)
