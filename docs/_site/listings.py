"""Tables that are read from the package itself: its public names, and the keys of a recipe."""

import inspect
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from _site.references import thing

__all__ = ["setup"]


def setup(app: Sphinx) -> None:
    """Add the two directives."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("recipe-keys", RecipeKeys)


class PublicNames(SphinxDirective):
    """``.. public-names:: potstill``: a table of what a package shows in ``__all__``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, each name a link."""
        package = self.arguments[0]
        rows = []
        for name in sorted(thing(package).__all__, key=str.lower):
            value = thing(f"{package}.{name}")
            if name.startswith("__"):
                rows.append(f"   * - ``{name}``\n     - the version, {value}")
                continue
            about = _first(inspect.getdoc(value) or "") if callable(value) else f"``{value}``"
            rows.append(f"   * - :py:obj:`~{_home(package, name)}`\n     - {about}")
        return self.parse_text_to_nodes(_table(("name", "what it is"), rows))


class RecipeKeys(SphinxDirective):
    """``.. recipe-keys::``: every key of a recipe with its default, its meaning and what it takes."""

    def run(self) -> list[nodes.Node]:
        """A list of definitions, which a phone shows as well as a wide screen."""
        found = [
            f"``{key}={default}``\n   {meaning} *({kind})*\n"
            for key, kind, default, meaning in _keys(thing("potstill.Recipe"))
        ]
        return self.parse_text_to_nodes("\n".join(found))


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    first = "   * - " + "\n     - ".join(head)
    return "\n".join(
        [".. list-table::", "   :header-rows: 1", "   :class: keys", "   :widths: auto", "", first, *rows, ""]
    )


def _first(doc: str) -> str:
    return doc.split("\n\n")[0].replace("\n", " ")


def _home(package: str, name: str) -> str:
    """Where the pages show a public name: the module that defines it."""
    value = thing(f"{package}.{name}")
    if getattr(value, "__module__", "").startswith("potstill.") and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    homes = thing("potstill._HOME_OF")
    return f"{homes.get(name, package)}.{name}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if inspect.isclass(kind)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        if sections:
            yield from _keys(sections[0], f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "must be given" if default is PydanticUndefined else json.dumps(default, default=str)
        yield (
            f"{prefix}{name}",
            _kind(field.annotation),
            shown.strip('"'),
            (field.description or "").replace("*", r"\*"),
        )


def _kind(annotation: Any) -> str:
    """A type in the words of a recipe."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(arg) for arg in args)
    if origin is Literal:
        return ", ".join(json.dumps(arg).strip('"') for arg in args)
    if origin in (tuple, list):
        return f"[{', '.join('..' if arg is Ellipsis else _kind(arg) for arg in args)}]"
    if origin is not None:
        return "names and values"
    words = {int: "a whole number", float: "a number", bool: "true, false", str: "a text", type(None): "null"}
    return words.get(annotation, getattr(annotation, "__name__", "a value"))
