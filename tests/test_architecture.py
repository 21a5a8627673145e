"""The house rules that no single file shows: which way imports run, what a module names, what no file may hold."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "potstill"

# Ground floor first. A room imports its own floor and the floors below; an import up is an error.
FLOORS = (
    {"batch", "errors", "files", "headline", "objects", "plain_json", "quantities"},
    {"projectors", "networks", "data"},
    {"methods", "analysis"},
    {"training", "tasks", "store", "tracking"},
    {"procedures", "config", "recipe", "section", "sentences"},
    {"export", "study", "race", "report"},
    {"__init__"},  # the public names: they may come from any room, and no room asks for them
    {"cli", "__main__"},
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}

# A recipe's values reach the rooms below as plain arguments, so only these know that there are recipes.
READERS_OF_RECIPES = {
    "__init__",
    "cli",
    "procedures",
    "config",
    "recipe",
    "section",
    "sentences",
    "study",
    "race",
    "report",
}

MOST_LINES = 320


def module_name(path: Path) -> str:
    """``src/potstill/methods/kd.py`` -> ``potstill.methods.kd``; a package's ``__init__.py`` -> the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The first name below the package; the package's own ``__init__`` is a room of its own."""
    return module.split(".")[1] if "." in module else "__init__"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, source: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """The full names of the modules that a source imports, wherever in it, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                # `from potstill import errors` takes a module, `from potstill.errors import nearest` a name of one
                name = f"{base}.{alias.name}"
                yield name if name in known else base


def imported(module: str) -> set[str]:
    path = MODULES[module]
    return set(imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py", set(MODULES)))


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "potstill"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("from potstill.errors import nearest", {"potstill.errors"}),
        ("from potstill import errors, __version__", {"potstill.errors", "potstill"}),
        ("def f():\n    from potstill.data import views", {"potstill.data"}),
        ("from . import base", {"potstill.methods.base"}),
        ("from .base import Method", {"potstill.methods.base"}),
        ("from ..errors import nearest", {"potstill.errors"}),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, expected: set[str]):
    known = {"potstill", "potstill.errors", "potstill.methods", "potstill.methods.base", "potstill.data"}
    assert set(imports("potstill.methods.kd", source, False, known)) == expected


def test_the_reader_of_imports_resolves_relative_names_in_a_package():
    known = {"potstill.methods", "potstill.methods.base"}
    assert set(imports("potstill.methods", "from .base import Method", True, known)) == {"potstill.methods.base"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_the_floors(module: str):
    here = room(module)
    assert here in FLOOR_OF, f"{module}: a new room; put {here!r} on its floor in FLOORS"
    up = sorted(name for name in own(imported(module)) if FLOOR_OF.get(room(name), len(FLOORS)) > FLOOR_OF[here])
    assert not up, f"{module} imports from a floor above its own: {', '.join(up)}"


def test_rooms_on_one_floor_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        graph.setdefault(room(module), set()).update({room(name) for name in own(imported(module))} - {room(module)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"rooms that import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_and_the_procedures_know_recipes(module: str):
    taken = {room(name) for name in own(imported(module))} & {"config", "recipe"}
    assert not taken or room(module) in READERS_OF_RECIPES, f"{module} imports {', '.join(sorted(taken))}"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "methods"])
def test_methods_know_nothing_of_where_batches_come_from(module: str):
    taken = {room(name) for name in own(imported(module))} & {"config", "recipe", "data", "training"}
    assert not taken, f"{module} imports {', '.join(sorted(taken))}"


ZOOS = ("potstill.networks.cifar", "potstill.networks.faces")


def zoo_of(module: str) -> str | None:
    """The zoo that a module is part of."""
    return next((zoo for zoo in ZOOS if f"{module}.".startswith(f"{zoo}.")), None)


@pytest.mark.parametrize("module", [name for name in MODULES if zoo_of(name)])
def test_a_zoo_stands_alone(module: str):
    """A run copies a family's file beside its weights, where there is no potstill."""
    outside = {
        name
        for name in imported(module)
        if not f"{name}.".startswith((f"{zoo_of(module)}.", "torch.", "timm."))
        and name.split(".")[0] not in sys.stdlib_module_names
    }
    assert not outside, f"{module} imports {', '.join(sorted(outside))}"


@pytest.mark.parametrize("module", [name for name in MODULES if not zoo_of(name)])
def test_imports_are_absolute(module: str):
    """Only the zoos' files, which move to other folders together, name each other by place."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{module}: relative imports on lines {relative}"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != "__main__"])
def test_every_module_says_what_it_shows(module: str):
    if not MODULES[module].read_text(encoding="utf-8").strip():
        return
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    assert names is not None, f"{module} has no __all__"
    assert len(set(names)) == len(names), f"{module}: a name stands twice in __all__"
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module}: __all__ names what is not there: {', '.join(missing)}"


def test_source_files_hold_one_idea():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()
    }
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long, f"over {MOST_LINES} lines; divide by ideas: {long}"


def tracked_text() -> dict[str, str]:
    """Every text file that git tracks in this checkout, by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout, so there is no list of tracked files: {listed.stderr.strip()}")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:
            texts[name] = content.decode("utf-8")
    return texts


# Written in pieces, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:" + "|".join(["home", "root", "work", "Users"]) + r")/\w")
PACKAGE_INDEX = re.compile(
    "|".join(["--(?:extra-)?" + "index-url", "--find" + "-links", r"pypi\." + "org/simple", "/wh" + "l/"])
)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (MACHINE_PATH, "data: /" + "home/ann/pictures", True),
        (MACHINE_PATH, "open('/" + "work/shared')", True),
        (MACHINE_PATH, "see https://example.org/" + "work/about and frame/" + "work/x and ~/pictures", False),
        (PACKAGE_INDEX, "--extra-" + "index-url https://example.org/simple", True),
        (PACKAGE_INDEX, "see https://pypi." + "org/project/timm", False),
    ],
)
def test_the_patterns_find_what_they_look_for(pattern: re.Pattern[str], text: str, found: bool):
    assert bool(pattern.search(text)) == found


def test_no_tracked_file_names_one_machine_or_a_package_index():
    texts = tracked_text()
    assert "pyproject.toml" in texts
    hits = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line) or PACKAGE_INDEX.search(line)
    ]
    assert not hits, "\n".join(hits)
