"""The report as files: HTML that runs nothing of what it shows, Markdown, CSV; and a size to be passed round."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from potstill.errors import RunError
from potstill.report import write_report
from potstill.report.blocks import Figure, Page, Section, Table, Text
from potstill.report.figures import shown, thinned
from potstill.report.html import render_html
from potstill.report.markdown import render_markdown
from potstill.report.statistics import wilson


def test_the_report_lies_in_the_runs_folder_and_is_written_anew(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", predictions=False)
    path = write_report([folder])
    assert path == folder / "report.html"
    before = path.read_bytes()
    assert write_report([folder]).read_bytes() == before  # nothing in it depends on when it is made
    assert not list(folder.glob("*.part"))


def test_no_text_from_outside_is_markup(run: Path, tmp_path: Path, hostile: Sequence[str]):
    page = write_report([run], tmp_path / "a.html").read_text(encoding="utf-8")
    ours = page[: page.index("<script>")]  # then come plotly and the page's own script
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in ours
    assert "my &lt;i&gt;cats" in ours
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert figures is not None
    assert not set("<>&\u2028\u2029") & set(figures[1])


def test_the_policy_lets_nothing_in_and_nothing_out(run: Path, tmp_path: Path):
    page = write_report([run], tmp_path / "a.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "connect-src &#39;none&#39;" in policy[1]
    scripts = policy[1].split("script-src")[1].split(";")[0]
    assert "unsafe" not in scripts
    head = page[: page.index("<script>")]
    assert not re.search(r'(?:src|href)="(?!#)', head)
    assert "@import" not in head
    assert "url(" not in head


def test_a_tables_cells_and_a_figures_words_are_escaped_wherever_they_stand():
    bad = "</script><svg onload=alert(1)>"
    figure = Figure(bad, bad, [{"type": "scatter", "name": bad}], reading=bad, classes=[bad])
    page = render_html(Page(bad, bad, [Section("a", bad, [Text(bad), Table(bad, [], [[bad]]), figure])], banner=bad))
    assert "<svg onload" not in page


@pytest.mark.parametrize(("text", "plain"), [("a<b>&c", "a&lt;b&gt;&amp;c"), ("a\u202eb\nc\x00", "a b c "), (3, "3")])
def test_plotly_is_given_no_tags_and_no_hidden_characters(text: object, plain: str):
    assert shown(text) == plain


def test_a_thinned_curve_keeps_its_spikes():
    ys = [0.0] * 5000
    ys[1234], ys[4321] = 99.0, -99.0
    xs, kept = thinned(list(range(5000)), ys)
    assert len(xs) <= 1000
    assert (max(kept), min(kept)) == (99.0, -99.0)
    assert (xs[0], xs[-1]) == (0, 4999)
    assert xs == sorted(xs)


def test_a_long_run_stays_below_six_megabytes(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(
        tmp_path / "run", epochs=240, rows=16, images=10_000, classes=[f"class of {k}" for k in range(100)]
    )
    assert write_report([folder]).stat().st_size < 6e6


def test_markdown_shows_hostile_names_as_text(run: Path, tmp_path: Path):
    text = write_report([run], tmp_path / "a.md", "md").read_text(encoding="utf-8")
    assert text.startswith("# resnet8 from large one\n")
    assert "\\<script\\>alert(1)\\</script\\>" in text
    assert not re.search(r"(?<!\\)<(script|img|b)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert "| student | resnet8 |" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ") and "images" not in line}
    assert widths


def test_a_fence_is_longer_than_any_in_its_text():
    from potstill.report.blocks import Code

    text = render_markdown(Page("t", "s", [Section("a", "A", [Code("x\n````\ny")])]))
    assert "\n`````\nx\n````\ny\n`````\n" in text


def test_csv_has_a_row_for_each_network(run: Path, tmp_path: Path):
    rows = list(csv.DictReader(io.StringIO(write_report([run], tmp_path / "a.csv", "csv").read_text(encoding="utf-8"))))
    assert [row["network"] for row in rows] == ["student", "control", "teacher"]
    student, control, _ = rows
    assert float(control["student_less_this"]) == pytest.approx(float(student["top1"]) - float(control["top1"]))
    assert float(control["low"]) < float(control["student_less_this"]) < float(control["high"])
    assert (student["parameters"], student["seed"], student["finished"]) == ("83892.0", "0", "yes")
    assert wilson(float(student["top1"]) * 6, 600).value == pytest.approx(float(student["top1"]))


def test_a_folder_named_like_a_formula_stays_text(tmp_path: Path, make_run: Callable[..., Path], monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(Path("=cmd|x"), predictions=False, control=False)
    text = write_report(["=cmd|x"], "a.csv", "csv").read_text(encoding="utf-8")
    assert "\n'=cmd|x,student" in text


def test_mistakes_are_sentences(run: Path, tmp_path: Path):
    with pytest.raises(RunError, match=r"no format 'htm'; expected html, md or csv. Did you mean 'html'"):
        write_report([run], format="htm")
    with pytest.raises(RunError, match="one run or more"):
        write_report([])
    with pytest.raises(RunError, match="is a folder; give a file"):
        write_report([run], tmp_path)
    with pytest.raises(RunError, match=r"There is no folder .*gone to write a.html into"):
        write_report([run], tmp_path / "gone" / "a.html")
