"""The method of the guide, a file outside the package, trains by the command exactly as it is written there."""

import json

import pytest
from tests.docs.documents import NAMED, TEXTS, blocks, commands
from tests.docs.test_python import leave_student
from typer.testing import CliRunner

from potstill.cli import app

PAGE = "docs/own-method.md"


def test_the_method_of_the_guide_has_thirty_lines():
    (file,) = [block.body for block in blocks(TEXTS[PAGE], "python") if NAMED.match(block.body)]
    assert len(file.splitlines()) <= 30
    assert "in 30 lines" in TEXTS[PAGE]


def test_the_method_of_the_guide_trains_by_the_command(reader):
    folder = reader(PAGE)
    (words,) = [words for words, _ in commands(TEXTS[PAGE]) if words[0] == "distill"]
    leave_student(folder / "runs/demo/teacher", "wrn_16_2", 10, 16)
    tiny = ["epochs=1", "data.val_fraction=0.95", "device=cpu", "log.every=1", "log.shares=1", "log.report=false"]
    result = CliRunner().invoke(app, [*words, *tiny], prog_name="potstill")
    assert result.exit_code == 0, result.output
    first = json.loads((folder / "runs/hint/steps.jsonl").read_text().splitlines()[0])
    assert first["total"] == pytest.approx(first["ce"] + 2 * first["hint:Hint"], rel=1e-5)
    assert 0 < first["share_hint:Hint"] < 1
    assert first["share_ce"] + first["share_hint:Hint"] == pytest.approx(1)
