"""What makes two runs the same: the recipe without what changes no weight; and what a run is called."""

import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from potstill.config import Recipe, TeacherConfig
from potstill.errors import RunError
from potstill.recipe import dump_recipe
from potstill.training.folder import RunFolder

__all__ = ["begun_with", "command", "must_be_the_same", "recipe_with_head", "run_name", "versions"]

# What may differ between a run and its continuation: it changes no weight. Paths may be spelled in another way, as what
# lies there is compared by the hashes of the data and of the teacher. A damaged image stops a run before it changes a
# weight, so the run may go on without it.
_FREE = (
    "run", "log", "checkpoint", "device", "control", "data.workers", "data.on_error", "data.path", "teacher.weights",
)  # fmt: skip
# Made from the data where the recipe does not say them.
_DERIVED = ("data.crop", "data.flip", "data.loader", "data.mean", "data.std")
# Made from the run's seed where the recipe does not say them.
_SEEDS = ("data.order_seed", "data.view_seed")
# What is compared by its hash: what to say where it changed, and the section whose fields say it where they changed.
_HASHED = {
    "data": ("the training images have changed", "data."),
    "teacher": ("the teacher has changed", "teacher."),
    "data in use": ("other training images than before can be read", "data."),
}
_NO_TEACHER = TeacherConfig().model_dump(mode="json")


def must_be_the_same(recipe: Recipe, folder: RunFolder, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds another run, or something else.

    A run that stopped before its first checkpoint has nothing to lose, so another may take its folder.

    Args:
        recipe: resolved.
        folder: where the run shall go, or go on.
        identity: hashes of the ``data``, of the ``teacher`` and, once they are decoded, of the ``data in use``.

    Raises:
        RunError: names each field that differs, a file that is damaged or missing, or why nothing can be written.
    """
    folder.check_place()
    if not folder.begun or not folder.recipe.exists():
        if foreign := folder.foreign():
            raise RunError(
                f"{folder.path} holds files that are no run of Potstill ({', '.join(foreign[:3])}); give another run=."
            )
        return
    folder.result()  # a damaged one is told now, not after the runs that come before this one
    was = folder.identity()
    changed = [name for name, value in identity.items() if was.get(name) != value]
    fields = _differing_fields(_recipe_of(folder), yaml.safe_load(dump_recipe(recipe)), "teacher" in changed)
    hashes = []
    for name in changed:
        sentence, section = _HASHED[name]
        if not any(key.startswith(section) for key in fields) and not (name == "data in use" and "data" in changed):
            hashes.append(f"{sentence}: the hash was {_digits(was.get(name))}, now {_digits(identity[name])}")
    if fields or hashes:
        what = "belongs to another recipe" if fields else "cannot go on"
        back = "the values that it was started with" if fields else "what it was started with"
        raise RunError(f"{folder.path} {what}: {'; '.join([*fields.values(), *hashes])}. Give another run=, or {back}.")


def begun_with(folder: RunFolder) -> dict[str, Any] | None:
    """The recipe that a run in this folder began with, as plain values; None where none has begun."""
    if not folder.begun or not folder.recipe.exists():
        return None
    return _recipe_of(folder)


def _recipe_of(folder: RunFolder) -> dict[str, Any]:
    """The recipe that a run began with, as plain values."""
    advice = "Put it back as it was, or give another run=."
    try:
        recipe = yaml.safe_load(folder.recipe.read_bytes())
    except OSError as error:
        raise RunError(f"{folder.recipe} cannot be read: {error.strerror}. {advice}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(
            f"{folder.recipe} is damaged: it is no valid YAML ({' '.join(str(error).split())}). {advice}"
        ) from None
    if not isinstance(recipe, dict):
        raise RunError(f"{folder.recipe} is damaged: it holds no recipe. {advice}")
    return recipe


def _differing_fields(before: dict[str, Any], now: dict[str, Any], other_teacher: bool) -> dict[str, str]:
    """A phrase for each field that differs and may not, by its name; where another teacher lies is one of them."""
    if (before.get("teacher") is None) != (now.get("teacher") is None):
        before, now = ({**one, "teacher": one.get("teacher") or _NO_TEACHER} for one in (before, now))
    free = tuple(name for name in _FREE if not (name == "teacher.weights" and other_teacher))
    found = {key: (old, new) for key, old, new in _differences(before, now) if not _within(key, free)}
    if "seed" in found:
        found = {key: values for key, values in found.items() if key not in _SEEDS}
    if any(key.startswith("data.") and key not in _DERIVED for key in found):
        found = {key: values for key, values in found.items() if key not in _DERIVED}
    return {key: f"{key} was {_short(old)}, now {_short(new)}" for key, (old, new) in found.items()}


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _digits(value: Any) -> str:
    return "none" if value is None else str(value)[:12]


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Each place where two nested dictionaries differ, with both values; a missing section counts as empty."""
    if key.startswith("objective.") and key.count(".") == 1:  # a method's bare number is its weight
        before, now = ({"weight": one} if isinstance(one, int | float) else one for one in (before, now))
    if isinstance(before, dict | None) and isinstance(now, dict | None) and (before or now):
        before, now = before or {}, now or {}
        return [
            found
            for name in {**before, **now}
            for found in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if before == now else [(key, before, now)]


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()  # as a recipe writes it
    text = repr(value)
    return text if isinstance(value, str) or len(text) <= 60 else text[:57] + "..."


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
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"# {made_with}\n# {command()}\n{dump_recipe(recipe)}"


def command() -> str:
    """The command that this process was started with, in one line that a shell takes."""
    return " ".join(shlex.join(["potstill", *sys.argv[1:]]).splitlines())
