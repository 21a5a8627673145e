"""A study's page: the verdict says what the numbers say, names are escaped, and the page stands in a browser."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import RunError
from potstill.report import write_report
from potstill.study import Entry, SeedRun, Table, difference, read_record, spread, write_record

HOSTILE = "<script>alert(1)</script>"
ALONE, KD, PEFD = (46.0, 46.4, 46.2), (48.9, 48.7, 48.8), (53.3, 53.1, 53.5)


def entry(levels: dict[str, str], folder: Path, values: Sequence[float | None], **more: Any) -> Entry:
    """One combination; a value that is None is a run that failed."""
    runs = []
    for seed, value in enumerate(values, start=1):
        place = folder / f"{'-'.join(levels)}-{len(runs)}-{value}"
        place.mkdir(parents=True, exist_ok=True)
        if value is None:
            runs.append(SeedRun(seed, str(place), "failed", "it was told to"))
            continue
        rows = "".join(f"{epoch},{value - 10 / epoch + 5}\n" for epoch in (1, 2))
        (place / "metrics.csv").write_text(f"epoch,top1\n{rows}", encoding="utf-8")
        row = {"top1": value, "parameters": 78042, "macs": 3_100_000, "latency_ms": 0.28}
        runs.append(SeedRun(seed, str(place), "done", None, 2, value, value + 0.5, 60.0, 0.25, 2**30, row))
    known = [run.last for run in runs if run.last is not None]
    made = {"control": False, "difference": None, "paper": None, "paper_difference": None} | more
    best = spread([value + 0.5 for value in known]) if known else None
    return Entry(levels, tuple(runs), spread(known) if known else None, best, **made)


def write_study(folder: Path, entries: Sequence[Entry], **more: Any) -> Path:
    axes = {axis: tuple(dict.fromkeys(e.levels[axis] for e in entries)) for axis in entries[0].levels}
    teachers = {"large": {"top1": 56.96, "parameters": 278324, "macs": 40_818_944}}
    fields = {"name": "small", "title": "A small study", "metric": "top1", "rows": "method", "axes": axes,
              "entries": tuple(entries), "teachers": teachers, "paper": None} | more  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, Table(**fields), {"seeds": [1, 2, 3]}, "potstill study small.yaml 'data.path=my photos'")
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    published = {"paper": 73.33, "paper_difference": 0.4}
    return write_study(tmp_path / "study", [
        entry({"method": "alone"}, runs, ALONE, control=True, paper=72.93),
        entry({"method": "KD"}, runs, KD, difference=difference(KD, ALONE), **published),
        entry({"method": HOSTILE}, runs, PEFD, difference=difference(PEFD, ALONE)),
    ], paper={"source": "a paper, table 5", "note": "Its pair is another."})  # fmt: skip


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_verdict_names_the_first_with_its_spread_and_its_interval(study: Path):
    text = write_report([study], format="md").read_text(encoding="utf-8")
    found = difference(PEFD, ALONE)
    verdict = section(text, "Verdict")
    assert "comes out first, with 53.30 ± 0.20 %" in verdict
    assert f"+7.10 \\[+{found.low:.2f}, +{found.high:.2f}\\] points against the control" in verdict
    assert "Within one standard deviation" not in verdict
    assert "With 3 seeds an interval is wide" in verdict


def test_the_table_has_the_published_numbers_beside_the_measured_ones(study: Path):
    results = section(write_report([study], format="md").read_text(encoding="utf-8"), "Results")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results.splitlines() if line.startswith("|")]
    assert rows[2] == ["alone", "3 of 3", "46.20 ± 0.20", "46.70 ± 0.20", "control", "72.93", "-"]
    assert rows[3][:4] == ["KD", "3 of 3", "48.80 ± 0.10", "49.30 ± 0.10"]
    assert rows[3][5:] == ["73.33", "+0.40"]
    assert "Published: a paper, table 5. Its pair is another." in results


def test_a_control_that_nothing_beats_is_said_to_be_the_best(tmp_path: Path):
    worse = (44.0, 44.2, 44.1)
    folder = write_study(tmp_path / "study", [
        entry({"method": "alone"}, tmp_path, ALONE, control=True),
        entry({"method": "KD"}, tmp_path, worse, difference=difference(worse, ALONE)),
    ])  # fmt: skip
    verdict = section(write_report([folder], format="md").read_text(encoding="utf-8"), "Verdict")
    assert "alone comes out first, with 46.20 ± 0.20 %; it is the control" in verdict
    assert "Clearly below the control: KD." in verdict


def test_failed_runs_are_counted_in_the_banner_and_told_with_their_reasons(tmp_path: Path):
    folder = write_study(tmp_path / "study", [
        entry({"method": "alone"}, tmp_path, ALONE, control=True),
        entry({"method": "KD"}, tmp_path, (48.9, None, None)),
    ])  # fmt: skip
    text = write_report([folder], format="md").read_text(encoding="utf-8")
    assert "> 4 of 6 runs are finished. 2 failed; the reasons are below." in text
    assert section(text, "Each run").count("it was told to") == 2
    assert "a single run is finished" in section(text, "Verdict")


def test_a_study_of_which_nothing_is_finished_has_a_page(tmp_path: Path):
    folder = write_study(tmp_path / "study", [entry({"method": "KD"}, tmp_path, (None,))])
    text = write_report([folder], format="md").read_text(encoding="utf-8")
    assert "no run is finished." in section(text, "Verdict")
    assert "No run is finished, or their folders are not here." in text


def test_columns_are_tabs_and_each_has_its_own_best(tmp_path: Path):
    folder = write_study(tmp_path / "study", [
        entry({"pair": pair, "method": method}, tmp_path / pair, values)
        for pair, method, values in [("a", "KD", KD), ("a", "PEFD", PEFD), ("b", "KD", PEFD), ("b", "PEFD", KD)]
    ])  # fmt: skip
    text = write_report([folder], format="md").read_text(encoding="utf-8")
    verdict = section(text, "Verdict")
    assert "a: PEFD comes out first" in verdict
    assert "b: KD comes out first" in verdict
    assert "names no control" in verdict
    assert write_report([folder]).read_text(encoding="utf-8").count('role="tab"') >= 4


def test_csv_has_a_row_for_each_run(study: Path):
    rows = list(csv.DictReader(io.StringIO(write_report([study], format="csv").read_text(encoding="utf-8"))))
    assert len(rows) == 9
    assert [row["last"] for row in rows if row["method"] == "KD"] == ["48.9", "48.7", "48.8"]
    assert {row["seconds"] for row in rows} == {"60.0"}


def test_the_commands_and_the_file_are_on_the_page(study: Path):
    text = write_report([study], format="md").read_text(encoding="utf-8")
    assert "potstill study small.yaml 'data.path=my photos'" in text
    assert "seeds: [1, 2, 3]" in text


def test_a_study_is_not_mixed_with_runs(study: Path, run: Path):
    with pytest.raises(RunError, match="is a study, which has a report of its own; give it alone"):
        write_report([run, study])


def test_a_damaged_record_is_a_sentence(study: Path):
    (study / "study.json").write_text('{"table": {}}', encoding="utf-8")
    with pytest.raises(RunError, match=r"study\.json is damaged: table\.name"):
        read_record(study)


@pytest.fixture
def page(browser: Any, study: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.problems = []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("dialog", lambda dialog: (opened.problems.append("a dialog"), dialog.dismiss()))
    opened.on("request", lambda request: request.url.startswith("file:") or opened.problems.append(request.url))
    opened.goto(write_report([study]).resolve().as_uri())
    opened.wait_for_selector(".plot .main-svg")
    yield opened
    context.close()


def test_in_a_browser_it_complains_of_nothing_and_asks_for_nothing(page: Any):
    for y in range(0, page.evaluate("document.documentElement.scrollHeight"), 400):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(50)
    assert page.locator(".plot .main-svg").count() >= 4
    assert page.problems == []
    assert HOSTILE in page.inner_text("#results")
    assert any(HOSTILE[:8] in tick for tick in page.locator("#results .ytick text").all_text_contents())


def test_in_a_browser_a_click_on_the_legend_hides_the_published_numbers(page: Any):
    plot = page.locator("#results .plot").nth(1)
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("#results .plot >> nth=1 >> .legendtoggle")
    assert plot.locator(".scatterlayer .trace").count() == 2
    plot.locator(".legendtoggle").nth(1).click()
    page.wait_for_timeout(700)  # plotly waits for a second click before it hides
    assert plot.locator(".scatterlayer .trace").count() == 1


def test_in_a_browser_it_does_not_scroll_sideways_on_a_phone(browser: Any, study: Path):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    narrow = context.new_page()
    narrow.goto(write_report([study]).resolve().as_uri())
    narrow.wait_for_selector(".plot .main-svg")
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_study_of_another_task_is_told_by_its_own_value(tmp_path: Path):
    runs = tmp_path / "runs"
    entries = [entry({"method": "alone"}, runs, ALONE, control=True),
               entry({"method": "KD"}, runs, KD, difference=difference(KD, ALONE))]  # fmt: skip
    for one in entries:
        for run in one.runs:
            metrics = Path(run.folder) / "metrics.csv"
            metrics.write_text(metrics.read_text().replace("top1", "miou"))
    folder = write_study(tmp_path / "study", entries, metric="miou", teachers={"large": {"miou": 60.0}})
    text = write_report([folder], format="md").read_text(encoding="utf-8")
    assert "Mean IoU:" in section(text, "Results")
    assert "| Teacher | mIoU | Parameters | Multiply-adds |" in text
    assert "| large | 60.00 % | - | - |" in text
    assert "Mean IoU, means over seeds: alone 46.20 %; KD 48.80 %." in text
    assert "Points of mean IoU more than the control: KD +2.60." in text
    assert "mIoU over the epochs" in section(text, "How it went")
    assert "ccuracy" not in text
    assert "op-1" not in text
