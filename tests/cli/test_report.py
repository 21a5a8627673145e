"""`potstill report` as people type it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result


def test_a_run_becomes_a_page_in_its_folder(potstill: Callable[..., Result], teacher_run: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    result = potstill("report", str(teacher_run), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.output == f"The report is {out}.\n"
    page = out.read_text(encoding="utf-8")
    assert "<title>resnet8, trained on labels</title>" in page
    assert "This run has no teacher: nothing is compared." in page


@pytest.mark.parametrize(("name", "begins"), [("md", "# resnet8, trained on labels"), ("csv", "run,network,model")])
def test_other_formats_have_their_own_ending(
    potstill: Callable[..., Result], teacher_run: Path, tmp_path: Path, name: str, begins: str
):
    out = tmp_path / f"a.{name}"
    assert potstill("report", str(teacher_run), "--format", name, "-o", str(out)).exit_code == 0
    assert out.read_text(encoding="utf-8").startswith(begins)


def test_the_page_is_opened_where_that_is_asked_for(
    potstill: Callable[..., Result], teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    out = tmp_path / "a b.html"
    assert potstill("report", str(teacher_run), "--out", str(out), "--open").exit_code == 0
    assert opened == [out.as_uri()]


def test_mistakes_are_one_line(potstill: Callable[..., Result], tmp_path: Path):
    result = potstill("report", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert f"error: There is no run {tmp_path / 'none'}." in result.output
    assert "Traceback" not in result.output
    assert potstill("report").exit_code == 2
