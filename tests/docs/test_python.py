"""The Python of the documents runs as it stands, and prints what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.docs.documents import TEXTS, blocks, commands, recipe_of

from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.ship import ship_student

__all__ = ["leave_student"]


def leave_student(folder: Path, model: str, classes: int, side: int, **args: Any) -> None:
    """What a run leaves, untrained."""
    size, names = (3, side, side), tuple(map(str, range(classes)))
    card = NetworkCard(model, classes, (0.5,) * 3, (0.25,) * 3, size, classes=names, args=args)
    ship_student(folder, build_network(model, classes=classes, input_size=size, args=args), card)


def leave_runs(text: str, folder: Path) -> None:
    """For each run that a document's commands make and its Python reads: its student."""
    read = "".join(block.body for block in blocks(text, "python"))
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


@pytest.mark.long
def test_the_python_of_the_documents_runs_and_prints_what_they_say(reader):
    """One test, because a process to read in takes seconds to start."""
    work = []
    for name, text in TEXTS.items():
        folder = reader(name)
        leave_runs(text, folder)
        if sources := [block.body for block in blocks(text, "python") if block.why is None]:
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
