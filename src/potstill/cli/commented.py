"""A recipe that explains itself: every key with its default and its comment, made from the types of the recipe."""

import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from potstill.cli.arguments import as_yaml
from potstill.config import Recipe

__all__ = ["commented_recipe"]

_WIDTH = 110

_HEAD = """\
# A recipe of Potstill: every key with its default. Keep the lines that you change; the others may go.
# Sections that are off by default are commented out. Each key can also be set on the command line, like
#   potstill distill recipe.yaml student.model=resnet8x4 epochs=30
"""

_OBJECTIVE = """\
# For instance, PEFD's own (what no objective means where there is a teacher), and plain knowledge distillation:
#   objective: {ce: 1, pefd: {weight: 25, projectors: 3}}
#   objective: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}
# `potstill methods` lists the methods, `potstill methods pefd` what one takes.
"""


def commented_recipe() -> str:
    """The recipe's defaults as commented YAML.

    Example:
        >>> import yaml
        >>> from potstill.recipe import parse_recipe
        >>> parse_recipe(yaml.safe_load(commented_recipe())) == Recipe()
        True
    """
    return _HEAD + "\n" + "\n".join(_lines(Recipe, depth=0)) + "\n"


def _lines(section: type[BaseModel], depth: int) -> list[str]:
    lines: list[str] = []
    indent = "  " * depth
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            if name == "objective":
                lines += _OBJECTIVE.rstrip().splitlines()
            lines += [indent + line for line in _key(name, field)]
            continue
        if depth == 0:
            lines.append("")
        lines += [f"{indent}# {line}" for line in _wrapped(field.description or _first_line(inner), depth)]
        block = [f"{name}:", *_lines(inner, depth=1)]
        off = field.get_default(call_default_factory=True) is None
        lines += [f"{indent}{'# ' if off else ''}{line}" for line in block]
        if depth == 0:
            lines.append("")
    return _without_double_blanks(lines)


def _key(name: str, field: FieldInfo) -> list[str]:
    """``name: default  # comment``, the comment above where the line would be long."""
    default = field.get_default(call_default_factory=True)
    plain = list(default) if isinstance(default, tuple) else None if default is PydanticUndefined else default
    line = f"{name}: {as_yaml(plain)}"
    choices = _choices(field.annotation)
    comment = "; ".join(part for part in (" | ".join(choices), field.description) if part)
    if not comment:
        return [line]
    if len(line) + len(comment) + 4 <= _WIDTH:
        return [f"{line}  # {comment}"]
    return [*(f"# {part}" for part in _wrapped(comment, 0)), line]


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _wrapped(comment: str, depth: int) -> list[str]:
    return textwrap.wrap(comment, _WIDTH - 2 - 2 * depth)


def _without_double_blanks(lines: list[str]) -> list[str]:
    return [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
