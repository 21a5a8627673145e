"""What the tests of the documents share: the texts, their blocks of code, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from potstill.cli import app
from potstill.config import Recipe
from potstill.procedures.demo import demo_recipe
from potstill.recipe import load_recipe

__all__ = [
    "COMMAND",
    "FENCE",
    "NAMED",
    "ROOT",
    "TEXTS",
    "Block",
    "Line",
    "blocks",
    "commands",
    "lines",
    "prose",
    "recipe_of",
    "rows",
]

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# A block, and the comment before it that says why it is not run here.
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]*?) -->\n\n?)?```(?P<kind>\w*)\n(?P<body>.*?)^```", re.M | re.S)
NAMED = re.compile(r"# ([\w.-]+\.(?:py|yaml))\b")  # a block's first line that says which file it is
SHELLS = dict.fromkeys(("bash", "shell", "console"), "sh")
LOOP = re.compile(r"^for (\w+) in (\S+).*?; do\n(.*?)^done$", re.M | re.S)
COMMAND: Any = typer.main.get_command(app)
RECIPES = ("train", "distill", "evaluate", "profile", "taps", "config")  # and `store build`: what takes a recipe's keys


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        kind: the language.
        body: the code.
        why: the reason not to run it here; None for one that runs.
    """

    kind: str
    body: str
    why: str | None


@dataclass(frozen=True)
class Line:
    """A command of a shell block.

    Attributes:
        words: all of it.
        target: the file that its output goes to.
        why: as of its block.
    """

    words: tuple[str, ...]
    target: str | None
    why: str | None

    @property
    def potstill(self) -> list[str] | None:
        """What the command ``potstill`` is given; None for another command."""
        if self.words[:2] == ("make", "demo"):
            return ["demo"]
        return list(self.words[self.words.index("potstill") + 1 :]) if "potstill" in self.words else None


def blocks(text: str, kind: str) -> list[Block]:
    """The blocks of a language."""
    found = [Block(SHELLS.get(m["kind"], m["kind"]), m["body"], m["why"]) for m in FENCE.finditer(text)]
    return [block for block in found if block.kind == kind]


def prose(text: str) -> str:
    """The text without its blocks."""
    return FENCE.sub("", text)


def lines(text: str) -> Iterator[Line]:
    """Every command of the shell blocks; of a loop its first round."""
    for block in blocks(text, "sh"):
        body = LOOP.sub(lambda loop: loop[3].replace(f"${loop[1]}", loop[2]), block.body.replace("\\\n", " "))
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            end = words.index(">") if ">" in words else len(words)
            yield Line(tuple(words[:end]), words[end + 1] if words[end:] else None, block.why)


def commands(text: str) -> Iterator[tuple[list[str], str | None]]:
    """The words after ``potstill`` of each command in the shell blocks, and the file that its output goes to."""
    for line in lines(text):
        if line.potstill is not None:
            yield line.potstill, line.target


def recipe_of(words: list[str]) -> Recipe | None:
    """The checked recipe of a command that takes one; raises for a command, an option or a key that there is not."""
    name, *rest = words
    if name.startswith("-"):
        assert name == "--version"
        return None
    context = COMMAND.commands[name].make_context(name, rest)
    given = list(context.params.get("arguments") or [])
    path = given.pop(0) if given and "=" not in given[0] else None
    if name == "demo":
        return demo_recipe(context.params["run"], given)
    if name not in RECIPES:
        return None
    recipe = load_recipe(path if name != "evaluate" else None, given)
    assert name != "train" or recipe.teacher is None, "train with a teacher"
    assert name != "distill" or recipe.teacher is not None, "distill names no teacher"
    assert name not in ("train", "distill") or recipe.student.model, "no student is named"
    return recipe


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
