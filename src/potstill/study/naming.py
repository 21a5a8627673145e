"""What a study's runs and stores are called: by what they are made of, so that the same thing is found again."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from potstill.config import Recipe

__all__ = ["digest", "made_of", "slug", "store_of"]

_FREE = ("run", "log", "checkpoint", "device")  # change no weight, so two runs that differ in them are one
_OF_THE_RUN = ("views", "order_seed", "order", "workers")  # of data: which views a run sees when, not what they show
_LONGEST = 120  # characters: a file system takes 255 bytes


def made_of(recipe: Recipe, pool: Path) -> dict[str, Any]:
    """What makes a run the run that it is: what differs from the defaults, wherever the pool lies.

    Args:
        recipe: of the run.
        pool: of the study; a teacher's run in it is named from there, and its stores are one as good as another.
    """
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    teacher = plain.get("teacher") or {}
    for key, instead in (("store", True), ("weights", None)):
        if key in teacher and (found := Path(teacher[key])).is_relative_to(pool):
            teacher[key] = instead or f"/{found.relative_to(pool)}"
    return {key: value for key, value in plain.items() if key not in _FREE}


def store_of(recipe: Recipe, pool: Path, views: int) -> list[Any]:
    """What a teacher's store is made of, for a recipe that reads it.

    A run in bfloat16 and one that leaves its precision to the machine share a store: it is bfloat16's where the
    processor computes in it, and where it does not the store's key refuses the other one.
    """
    whole = made_of(recipe, pool)
    data = {key: value for key, value in whole.get("data", {}).items() if key not in _OF_THE_RUN}
    teacher = {key: value for key, value in (whole.get("teacher") or {}).items() if key != "store"}
    precisions = [recipe.precision] if "precision" not in teacher and recipe.precision in ("fp32", "fp16") else []
    return [data, teacher, whole.get("store"), views, *precisions]


def digest(value: Any) -> str:
    """Eight digits for a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def slug(label: str) -> str:
    """A label as a part of a folder's name.

    Example:
        >>> slug("a/../b, 3 projectors"), slug("..")
        ('a-..-b-3-projectors', 'run')
    """
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", label).strip("-.")[:_LONGEST] or "run"
