"""What a run was made from, and the commands that make it again."""

import contextlib
import shlex
from typing import Any

import yaml

from potstill.config import Recipe, TeacherConfig
from potstill.report.blocks import Block, Code, Column, Fold, Note, Section, Table
from potstill.report.reading import RunRecord

__all__ = ["changed", "provenance"]

_WHOLE = ("objective", "students")  # shown as one value: their keys are the user's own


def provenance(run: RunRecord) -> Section:
    """The recipe, the versions, what data and teacher were, and the commands."""
    rows = [[key, _shown(value), _shown(default)] for key, value, default in changed(run.recipe)]
    said = [row for row in rows if row[2] not in ("auto", "none")]
    resolved = [row for row in rows if row[2] in ("auto", "none")]
    columns = [Column("Key"), Column("Value"), Column("Default")]
    blocks: list[Block] = [Table("What differs from the defaults", columns, said)] if said else []
    if resolved:
        blocks.append(
            Table(
                "What has no default of its own: said, or found out by the run", columns[:2], [r[:2] for r in resolved]
            )
        )
    blocks.append(Fold("The whole recipe", [Code(run.recipe_text, "recipe.yaml")]))
    blocks.append(Table("What it was made from", [Column("What"), Column("Which")], _identity(run)))
    if run.result is None:
        blocks.append(
            Note("Data identity, teacher fingerprint and versions are told in full when the run is finished.")
        )
    blocks += [Code(text, title) for title, text in _commands(run)]
    return Section("recipe", "How to repeat it", blocks)


def changed(recipe: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each key of a recipe that is not its default, with its value and the default; keys of other versions too.

    Example:
        >>> changed({"epochs": 8, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1}})
        [('epochs', 8, 240), ('optimizer.lr', 0.1, 0.05)]
    """
    defaults = Recipe().model_dump(mode="json")
    if isinstance(recipe.get("teacher"), dict):
        defaults["teacher"] = TeacherConfig().model_dump(mode="json")
    return _differences(recipe, defaults, "")


def _differences(recipe: dict[str, Any], defaults: Any, above: str) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name, value in recipe.items():
        default = defaults.get(name) if isinstance(defaults, dict) else None
        if isinstance(value, dict) and isinstance(default, dict) and name not in _WHOLE:
            found += _differences(value, default, f"{above}{name}.")
        elif value != default:
            found.append((f"{above}{name}", value, default))
    return found


def _shown(value: Any) -> str:
    """A value as a recipe has it, in one line."""
    if value is None or value == {} or value == []:
        return "none"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _identity(run: RunRecord) -> list[list[str]]:
    result = run.result or {}
    data = result.get("data") or {}
    counts = [f"{data[key]:,} {word}" for key, word in (("train", "to learn from"), ("val", "to validate on"))
              if isinstance(data.get(key), int)]  # fmt: skip
    skipped = sum(len(part) for part in (data.get("skipped") or {}).values() if isinstance(part, dict | list))
    rows: list[list[Any]] = [
        ["run", str(run.folder)],
        ["data", run.data],
        ["identity of the data", data.get("identity")],
        ["images", ", ".join(counts)],
    ]
    rows += [["damaged images left out", str(skipped)]] if skipped else []
    rows += [["teacher's fingerprint", result.get("teacher_fingerprint")]]
    versions = result.get("versions") or {}
    rows += [["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]]
    rows += [[key, result.get(key)] for key in ("begun", "finished")]
    return [[name, str(value)] for name, value in rows if value]


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    """As the run was started, and from the recipe that it left, in a form that a shell takes."""
    folder = str(run.folder)
    verb = "distill" if run.taught else "train"
    again = ["potstill", verb, f"{folder}/recipe.yaml", f"run={folder}-again"]
    lines = [shlex.join(again), *(shlex.join(["potstill", name, folder]) for name in ("evaluate", "analyze", "report"))]
    given = [(_started(run.command), run.command)] if run.command else []
    return [*given, ("From this folder: the same run again, then what to look at", "\n".join(lines))]


def _started(command: str) -> str:
    """What to call a command: older versions kept it without the quotes that a shell needs."""
    with contextlib.suppress(ValueError):  # a quote that is not closed
        if shlex.join(shlex.split(command)) == command:
            return "As it was started"
    return "As it was started; its quotes were not kept, so a shell may not take it as it stands"
