"""What makes two runs the same: the recipe without what changes no weight; and what a run is called."""

import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from potstill.config import Recipe
from potstill.errors import RunError
from potstill.recipe import dump_recipe
from potstill.training.folder import RunFolder

__all__ = ["must_be_the_same", "recipe_with_head", "run_name", "versions"]

# Fields that may differ between a run and its continuation: they change no weight.
_FREE = ("run", "log", "checkpoint", "device", "control")
# Paths may be spelled in another way; what lies there is compared by the hashes of the data and of the teacher.
# A damaged image stops a run before it changes a weight, so the run may go on without it.
_FREE_WITHIN = ("data.workers", "data.on_error", "data.path", "teacher.weights")


def must_be_the_same(recipe: Recipe, folder: RunFolder, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds another run, or something else.

    A run that stopped before its first checkpoint has nothing to lose, so another may take its folder.

    Args:
        recipe: resolved.
        folder: where the run shall go, or go on.
        identity: hashes of the ``data``, of the ``teacher`` and, once they are decoded, of the ``data in use``.

    Raises:
        RunError: names each field that differs.
    """
    if not folder.begun or not folder.recipe.exists():
        if foreign := folder.foreign():
            raise RunError(
                f"{folder.path} holds files that are no run of Potstill ({', '.join(foreign[:3])}); give another run=."
            )
        return
    before = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    now = yaml.safe_load(dump_recipe(recipe))
    differing = [
        f"{key} was {_short(old)}, now {_short(new)}"
        for key, old, new in _differences(before, now)
        if key.split(".")[0] not in _FREE and key not in _FREE_WITHIN
    ]
    was = folder.identity()
    differing += [
        f"the {name} was {was.get(name)}, now {now_}" for name, now_ in identity.items() if was.get(name) != now_
    ]
    if differing:
        raise RunError(
            f"{folder.path} belongs to another recipe: {'; '.join(differing)}. "
            "Give another run=, or the values that it was started with."
        )


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in {**before, **now}
            for found in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if before == now else [(key, before, now)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def run_name(recipe: Recipe) -> str:
    """A folder's name that says what the run is: student, teacher, methods, data, seed."""
    parts = [recipe.student.model or "student"]
    if recipe.teacher is not None:
        parts += ["from", recipe.teacher.model or Path(str(recipe.teacher.weights)).stem]
    parts += [*recipe.objective, Path(recipe.data.path).name if recipe.data.path else "digits", f"seed{recipe.seed}"]
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts))


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "potstill": version("potstill"), "torch": torch.__version__, "timm": version("timm"),
        "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def recipe_with_head(recipe: Recipe) -> str:
    """``recipe.yaml``: the versions and the command as comments, then everything resolved."""
    command = " ".join(["potstill", *sys.argv[1:]]).replace("\n", " ")
    return (
        f"# {', '.join(f'{name} {number}' for name, number in versions().items())}\n# {command}\n{dump_recipe(recipe)}"
    )
