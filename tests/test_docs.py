"""What the documents say is so: their Python runs, their commands exist, their links, tables and defaults hold."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from potstill.cli import app
from potstill.config import Recipe, TeacherConfig
from potstill.methods import hyper_parameters, methods
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.cifar import CIFAR_MODELS
from potstill.networks.ship import ship_student
from potstill.procedures.demo import demo_recipe
from potstill.projectors import ProjectorEnsemble
from potstill.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w.-]+\.(?:py|yaml))\b")  # a block's first line that says which file it is
CHEAP = ("--version", "config", "methods", "models", "taps")
COMMAND: Any = typer.main.get_command(app)


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def commands(text: str) -> Iterator[tuple[list[str], str | None]]:
    """The words after ``potstill`` of each command in the shell blocks, and the file that its output goes to."""
    for block in blocks(text, "sh"):
        for line in re.sub(r"\$\w+", "1", block.replace("\\\n", " ")).splitlines():  # a loop's variable: any value
            words = shlex.split(line, comments=True)
            if words[:2] == ["make", "demo"]:
                yield ["demo"], None
            if "potstill" not in words:
                continue
            words = words[words.index("potstill") + 1 :]  # after torchrun and the like
            target = words[words.index(">") + 1] if ">" in words else None
            yield (words[: words.index(">")] if target else words), target


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
    if "arguments" not in context.params:
        return None
    recipe = load_recipe(path if name != "evaluate" else None, given)
    assert name != "train" or recipe.teacher is None, "train with a teacher"
    assert name != "distill" or recipe.teacher is not None, "distill names no teacher"
    assert name not in ("train", "distill") or recipe.student.model, "no student is named"
    return recipe


def leave_student(folder: Path, model: str, classes: int, side: int) -> None:
    """What a run leaves, untrained."""
    size = (3, side, side)
    card = NetworkCard(model, classes, (0.5,) * 3, (0.25,) * 3, size, classes=tuple(map(str, range(classes))))
    ship_student(folder, build_network(model, classes=classes, input_size=size), card)


def leave_runs(text: str, folder: Path) -> None:
    """For each run that a document's commands make and its Python reads: its student."""
    read = "".join(blocks(text, "python"))
    for words, _ in commands(text):
        recipe = recipe_of(words) if words[0] in ("train", "distill", "demo") else None
        if recipe is not None and recipe.run and f'"{recipe.run}' in read:
            classes = 2 if recipe.data.path == "photos" else 10
            leave_student(folder / recipe.run, str(recipe.student.model), classes, 64 if recipe.data.path else 16)


# Runs in a process of its own: a reader's imports and registrations are not those of the other tests.
READER = """
import contextlib, io, json, os, sys, traceback
import torch

torch.set_num_threads(1)
said = {}
for name, folder, sources in json.load(sys.stdin):
    os.chdir(folder)
    path, space, output = list(sys.path), {"__name__": "document"}, io.StringIO()
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(output):
            for source in sources:
                exec(compile(source, name, "exec"), space)
    except BaseException:
        output.write(traceback.format_exc())
        said[name] = [False, output.getvalue()]
    else:
        said[name] = [True, output.getvalue()]
    sys.path[:] = path
print(json.dumps(said))
"""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Read a document in a folder of its own, with the files that it shows; its modules are forgotten afterwards."""
    before = set(sys.modules)

    def read(name: str) -> Path:
        folder = tmp_path / name.replace("/", "-")
        if not folder.exists():
            folder.mkdir()
            (folder / "recipes").symlink_to(ROOT / "recipes")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        for kind, body in FENCE.findall(TEXTS[name]):
            if kind in ("python", "yaml") and (match := NAMED.match(body)):
                (folder / match[1]).write_text(body, encoding="utf-8")
        return folder

    yield read
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def test_the_python_of_the_documents_runs_and_so_do_their_cheap_commands(reader):
    """One test, because the commands look at what the Python makes, and a process to read in takes seconds to start."""
    work = []
    for name, text in TEXTS.items():
        folder = reader(name)
        leave_runs(text, folder)
        if sources := blocks(text, "python"):
            work.append((name, str(folder), sources))
    command = [sys.executable, "-c", READER]
    done = subprocess.run(command, input=json.dumps(work), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    failed = [output for works, output in said.values() if not works]
    assert not failed, "\n".join(failed)
    assert len(said) >= 8

    prints = re.compile(r"^prints\n\n```text\n(.*?)```", flags=re.MULTILINE | re.DOTALL)
    shown = [(name, output) for name, text in TEXTS.items() for output in prints.findall(text)]
    assert shown
    assert not [(name, output) for name, output in shown if output not in said[name][1]]

    ran = 0
    for name, text in TEXTS.items():
        folder = reader(name)
        for words, target in commands(text):
            if words[0] in CHEAP:
                result = CliRunner().invoke(app, words, prog_name="potstill")
                assert result.exit_code == 0, f"{name}: potstill {shlex.join(words)}\n{result.output}"
                ran += 1
                if target:
                    (folder / target).write_text(result.stdout, encoding="utf-8")
    assert ran >= 10


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if any(commands(text))])
def test_every_command_line_names_commands_options_and_keys_that_there_are(name: str, reader):
    folder = reader(name)
    for words, target in commands(TEXTS[name]):
        try:
            recipe_of(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name}: potstill {shlex.join(words)}\n{type(error).__name__}: {error}")
        if target:
            (folder / target).write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train student.model=resnet8 epoch=3", "unknown key 'epoch'"),
        ("distil epochs=3", "distil"),
        ("export runs/a --formats onnx", "No such option"),
        ("distill student.model=resnet8", "names no teacher"),
    ],
)
def test_a_wrong_command_line_would_be_found(line: str, message: str):
    with pytest.raises(Exception, match=message):
        recipe_of(shlex.split(line))


@pytest.mark.parametrize("name", TEXTS)
def test_commands_in_the_prose_exist(name: str):
    named = re.findall(r"`potstill ([a-z]+)", prose(TEXTS[name]))
    assert not set(named) - set(COMMAND.commands)


def slugs(text: str) -> set[str]:
    """The anchors of a Markdown text's headings."""
    heads = re.findall(r"^#+ (.*)", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", TEXTS)
def test_every_relative_link_leads_somewhere(name: str):
    broken = []
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(TEXTS[name])):
        if re.match(r"\w+:", path):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_the_index_leads_to_every_document():
    named = set(re.findall(r"\]\(([^)#\s]*)\)", TEXTS["docs/index.md"]))
    documents = {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")} - {"index.md"}
    assert not documents - named


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_the_zoo_is_what_the_networks_are():
    found = {}
    for name, known in CIFAR_MODELS.items():
        with torch.device("meta"):
            network = timm.create_model(known, num_classes=100).eval()
            ends = network.forward_intermediates(torch.zeros(2, 3, 32, 32), intermediates_only=True)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        taps = ", ".join(f"{end.shape[1]}@{end.shape[2]}" for end in ends)
        found[f"`{name}`"] = [f"`{known}`", f"{parameters:,}", taps, str(network.num_features)]
    table = {first: rest for first, *rest in rows(TEXTS["docs/zoo.md"]) if first.startswith("`")}
    assert table == found
    assert f"the {len(CIFAR_MODELS)} CIFAR networks" in TEXTS["README.md"]


def test_the_counts_of_projectors_parameters_are_right():
    found = re.findall(r"^\| (\d+) -> (\d+) \|[^|]*\| ([\d,]+) \|", TEXTS["docs/methods/pefd.md"], flags=re.MULTILINE)
    counts = [
        sum(parameter.numel() for parameter in ProjectorEnsemble(int(d), int(m)).parameters()) for d, m, _ in found
    ]
    assert [int(count.replace(",", "")) for _, _, count in found] == counts
    assert len(counts) == 4


def values_of(cell: str) -> list[Any]:
    """The values in a table's cell: ``0.9, false`` is ``[0.9, False]``."""
    values = yaml.safe_load(f"[{cell.replace('`', '')}]")
    numbers = [float(value) if re.fullmatch(r"\de-\d", str(value)) else value for value in values]
    return [None if value == "none" else value for value in numbers]


@pytest.mark.parametrize("name", [name for name, cls in methods().items() if cls.__module__.startswith("potstill.")])
def test_a_method_has_a_card_with_all_it_takes(name: str):
    table = {row[0].strip("`"): row[1] for row in rows(TEXTS[f"docs/methods/{name}.md"]) if row[0].startswith("`")}
    assert {key: values_of(cell)[0] for key, cell in table.items()} == hyper_parameters(name)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its default."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inner = {"teacher": TeacherConfig}.get(name, type(default))
        if name == "taps":
            yield from ((f"{prefix}taps.{key}", None) for key in ("classifier", "embedding", "maps"))
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, default


def test_every_key_of_the_recipe_is_in_the_documents_and_no_other():
    known = dict(keys(Recipe))
    spans = set(re.findall(r"`([a-z][\w.]*)(?:=[^`]*)?`", "".join(map(prose, TEXTS.values()))))
    as_the_student = {key for key in known if key.startswith("teacher.") and key.replace("teacher", "student") in known}
    assert not set(known) - spans - as_the_student
    sections = {key.split(".")[0] for key in known if "." in key}
    others = {"student.json", "student.safetensors", "student.taps", "teacher.taps"}  # files; whole sections
    dotted = {span for span in spans if span.split(".")[0] in sections and "." in span}
    assert (
        not {span for span in dotted if not span.startswith(("student.args.", "teacher.args."))} - set(known) - others
    )


def test_the_defaults_in_the_table_are_the_recipes():
    known, checked = dict(keys(Recipe)), 0
    for row in rows(TEXTS["docs/training.md"]):
        names = re.findall(r"`([\w.]+)`", row[0])
        if not names or not set(names) <= set(known) or names[0] in ("objective", "run"):
            continue
        defaults = [list(known[name]) if isinstance(known[name], tuple) else known[name] for name in names]
        assert values_of(row[1]) == defaults, row
        checked += len(names)
    assert checked >= 25


def test_the_method_of_the_guide_trains_by_the_command(reader):
    folder = reader("docs/own-method.md")
    (words,) = [words for words, _ in commands(TEXTS["docs/own-method.md"]) if words[0] == "distill"]
    leave_student(folder / "runs/demo/teacher", "wrn_16_2", 10, 16)
    tiny = ["epochs=1", "data.val_fraction=0.95", "device=cpu", "log.every=1", "log.shares=1"]
    result = CliRunner().invoke(app, [*words, *tiny], prog_name="potstill")
    assert result.exit_code == 0, result.output
    first = json.loads((folder / "runs/hint/steps.jsonl").read_text().splitlines()[0])
    assert first["total"] == pytest.approx(first["ce"] + 2 * first["hint:Hint"], rel=1e-5)
    assert 0 < first["share_hint:Hint"] < 1
    assert first["share_ce"] + first["share_hint:Hint"] == pytest.approx(1)
