"""Names in docstrings: they lead to where a thing is shown, by whichever of its names it was called."""

import builtins
from importlib import import_module
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

__all__ = ["FOREIGN", "setup", "thing"]

# Of other projects: their documents are elsewhere, and nothing is fetched while building.
FOREIGN = [
    (r"py:.*", r"(torch|torchvision|nn|np|numpy|timm|pydantic|rich|typer|sklearn)\..*"),
    (r"py:.*", r"(collections|pathlib|fsspec|abc|xml)\..*"),
    (r"py:.*", r"(Tensor|Path|Any|Console|BaseModel|Generator|Module)"),
]


def setup(app: Sphinx) -> None:
    """Look again where Sphinx did not find a name."""
    app.connect("autodoc-process-signature", _short)
    app.connect("autodoc-process-docstring", _untyped, priority=400)  # before napoleon's, which is 500
    app.connect("autodoc-skip-member", _told_already)
    app.connect("doctree-read", _plain_builtins)
    app.connect("missing-reference", _found)


def thing(name: str) -> Any:
    """What a dotted name of Potstill stands for; None where there is none."""
    parts = name.split(".")
    for cut in range(len(parts) if parts[0] == "potstill" else 0, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


def _short(
    _app: Sphinx, what: str, _name: str, value: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """A section of a recipe takes its keys by name, and has a signature of a page; no name stands for a factory."""
    if what == "class" and issubclass(value, BaseModel):
        return "(**keys)", None
    return (signature.replace("<factory>", "..."), returned) if what == "class" and signature else None


def _untyped(_app: Sphinx, what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Napoleon would take what a property's sentence has before a colon for a type; here no docstring says types."""
    if what in ("property", "attribute", "data") and lines and ":" in lines[0]:
        lines.insert(0, "\\ ")  # an escaped blank, which is shown as nothing


def _told_already(_app: Sphinx, _what: str, _name: str, value: Any, _skip: bool, _options: Any) -> bool | None:
    """The fields of a named tuple stand in its docstring."""
    return True if type(value).__name__ == "_tuplegetter" else None


def _plain_builtins(_app: Sphinx, doctree: nodes.document) -> None:
    """No links from ``bytes`` in a signature: they would lead to any attribute of that name."""
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node.get("refdomain") == "py" and hasattr(builtins, node["reftarget"]):
            node.replace_self(node.children)


def _found(app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Element) -> nodes.Element | None:
    """The place of a name that is short for something in its own module or class, or is another name of it."""
    if node.get("refdomain") != "py":
        return None
    objects, target = env.domains.python_domain.objects, node["reftarget"]
    inside = [part for part in (node.get("py:module"), node.get("py:class")) if part]
    known = False
    for depth in range(len(inside), -1, -1):
        name = ".".join([*inside[:depth], target])
        value = thing(name)
        home = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        for shown in (name, home):
            if shown in objects:
                return _link(app, env, node, text, shown)
        known = known or value is not None
    ends = [name for name in objects if name.endswith(f".{target}")]
    if len(ends) == 1:
        return _link(app, env, node, text, ends[0])
    return text if known else None  # there is such a thing, and it is on no page


def _link(app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Element, name: str) -> Any:
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)  # type: ignore[arg-type]
