"""Which runs of a study learn from a store of their teacher's outputs, and which of them from the same one."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import Recipe, TeacherConfig
from potstill.methods.objective import default_objective
from potstill.methods.registry import find_method
from potstill.procedures.scenes import SCENE_TASKS
from potstill.procedures.store_key import views_of
from potstill.store.fields import TAPS
from potstill.study.naming import digest, store_of

__all__ = ["Drawn", "Shared", "building", "grouped", "reading"]

_STORED = frozenset({"logits", "embedding"})  # what a store keeps for everybody; maps are larger than images

Parse = Callable[[dict[str, Any], str], Recipe | None]


@dataclass(slots=True)
class Drawn:
    """A cell on the way: its recipe is sound, its store and its folder are not known yet.

    Attributes:
        levels: the level of each axis.
        label: what it is called where something is wrong with it.
        raw: its recipe as plain values.
        store: what the recipe says of the stores that the study makes.
        recipe: its recipe.
        after: the jobs that come first.
        teacher: what its teacher is called.
    """

    levels: Mapping[str, str]
    label: str
    raw: dict[str, Any]
    store: dict[str, Any]
    recipe: Recipe
    after: tuple[str, ...]
    teacher: str | None


@dataclass(frozen=True, slots=True)
class Shared:
    """A store and who reads it.

    Attributes:
        cells: the readers.
        first: the one that sees the most views, which are those of all the others too.
        of: digits of what the store is made of.
    """

    cells: tuple[Drawn, ...]
    first: Drawn
    of: str


def grouped(drawn: Iterable[Drawn], pool: Path, parse: Parse) -> list[Shared]:
    """The stores that some cells can learn from: of one teacher, and of one view of the data, there is one.

    Args:
        drawn: the cells.
        pool: the study's.
        parse: makes a recipe of plain values and a label, or notes what is wrong with them.
    """
    readers: dict[str, list[tuple[Drawn, Recipe]]] = {}
    read_by = functools.cache(lambda name: find_method(name).needs.teacher)  # looking a method up takes a while
    for cell in drawn:
        teacher = cell.recipe.teacher
        if teacher is not None and teacher.store is None and _storable(cell.recipe, read_by):
            recipe = reading(cell, pool / "stores", parse)
            if recipe is not None:
                readers.setdefault(json.dumps(store_of(recipe, pool, 0), sort_keys=True), []).append((cell, recipe))
    found = []
    for group in readers.values():
        first, recipe = max(group, key=lambda one: views_of(one[1]))
        of = digest(store_of(recipe, pool, views_of(recipe)))
        found.append(Shared(tuple(cell for cell, _ in group), first, of))
    return found


def reading(cell: Drawn, folder: Path, parse: Parse) -> Recipe | None:
    """A cell's recipe when it learns from the store in a folder; None where what it says of the store is wrong."""
    if cell.store:
        return parse(
            cell.raw | {"teacher": cell.raw["teacher"] | {"store": str(folder)}, "store": cell.store}, cell.label
        )
    teacher = (cell.recipe.teacher or TeacherConfig()).model_copy(update={"store": str(folder)})
    return cell.recipe.model_copy(update={"teacher": teacher})


def building(recipe: Recipe) -> Recipe:
    """A reader's recipe as the recipe of a store that serves all readers, whatever this one's objective reads."""
    keep = recipe.store.keep or ("logits", "embedding")
    store = recipe.store.model_copy(update={"keep": keep})
    return recipe.model_copy(update={"seed": 0, "store": store, "objective": {"ce": 1.0}})


def _storable(recipe: Recipe, read_by: Callable[[str], frozenset[str]]) -> bool:
    """Whether a store of logits and embeddings holds all that the recipe's methods ask of the teacher."""
    if recipe.procedure.name != "joint" or recipe.data.mixup or recipe.data.cutmix or recipe.task in SCENE_TASKS:
        return False
    read = frozenset[str]().union(*map(read_by, recipe.objective or default_objective(True)))
    return bool(read & frozenset(TAPS)) and read <= _STORED
