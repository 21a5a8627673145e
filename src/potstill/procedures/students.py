"""A recipe's students: one, or several of one teacher that train side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.config import Recipe
from potstill.errors import RecipeError, nearest
from potstill.recipe import is_key, parse_recipe

__all__ = ["students_of"]

# What students of one teacher may differ in. All else decides over the batches or over the teacher's outputs.
OWN = ("student", "objective", "optimizer", "schedule", "clip", "ema", "seed", "procedure", "precision", "log", "name")


def students_of(recipe: Recipe, folder: Path, places: Sequence[str] = ()) -> dict[str, Recipe]:
    """Each student's own recipe by its title, for a recipe with ``students``.

    An entry names what differs from the recipe around it: ``{student: {model: resnet20}, seed: 1}``; ``model`` alone is
    short for ``student.model``, and ``teacher: null`` makes the entry a control. Every student sees the very images
    that it would see alone in a run with the same ``data.order_seed`` and ``data.view_seed``; its own ``seed`` is that
    of its weights.

    Args:
        recipe: resolved.
        folder: the run's; the students' folders lie in it, by their names.
        places: where each entry was written, for the errors; ``students[1]`` and so on where that is not said.

    Raises:
        RecipeError: for an entry with a key that all students share, two entries of one name, or no teacher.
    """
    if recipe.teacher is None:
        raise RecipeError("students=[...] share a teacher's pass, and the recipe names no teacher.")
    if recipe.control:
        raise RecipeError(
            "control=true and students=[...] do not go together: add the control to the students, as "
            "{teacher: null, objective: {ce: 1}, name: control}."
        )
    if recipe.procedure.name == "assistants":
        raise RecipeError("procedure.name=assistants and students=[...] do not go together; take one of them.")
    base = recipe.model_dump(mode="json") | {"students": ()}
    made: dict[str, Recipe] = {}
    for number, entry in enumerate(recipe.students, start=1):
        name, own = _read(entry, number, places[number - 1] if places else f"students[{number}]")
        if name.lower() in map(str.lower, made):
            raise RecipeError(f"students: two of them are called {name!r}; give one another name.")
        alone: dict[str, Any] = {"store": {}} if own.get("teacher", recipe.teacher) is None else {}
        raw = base | alone | {key: _over(base.get(key), value, key) for key, value in own.items()}
        if raw["teacher"]:  # the one that they share computes as the recipe around them says
            precision = raw["teacher"]["precision"]
            raw["teacher"] = {
                **raw["teacher"], "precision": recipe.precision if precision == "auto" else precision
            }  # fmt: skip
        made[name] = parse_recipe(raw | {"run": str(folder / name)}, f"the student {name!r}")
    return made


def _read(entry: dict[str, Any], number: int, place: str) -> tuple[str, dict[str, Any]]:
    """An entry's name, and what differs in it."""
    own = dict(entry)
    if "model" in own:
        own["student"] = {**own.get("student", {}), "model": own.pop("model")}
    for key, value in own.items():
        if not is_key(key) and key != "name":
            raise RecipeError(f"{place}: unknown key {key!r}.{nearest(key, (*OWN, 'model'))}")
        if key not in OWN and not (key == "teacher" and value is None):
            raise RecipeError(
                f"{place} has the key {key!r}, which the students share: they see the same images and the "
                f"same teacher. It may have {', '.join((*OWN, 'model'))}, or teacher: null.{nearest(key, OWN)}"
            )
    name = str(own.pop("name", f"student-{number}"))
    if not name or not all(sign.isalnum() or sign in "._-" for sign in name) or name.startswith("."):
        raise RecipeError(
            f"{place}.name is {name!r}; it becomes a folder's name: use letters, digits, '.', '-' and '_'."
        )
    return name, own


def _over(base: Any, own: Any, key: str) -> Any:
    """A section's values with the student's own laid over them; an objective is taken whole."""
    return {**base, **own} if isinstance(base, dict) and isinstance(own, dict) and key != "objective" else own
