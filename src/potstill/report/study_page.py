"""A study's page: which method, by how much, at what cost; then every run, and how to make it all again."""

import csv
import io
from collections.abc import Sequence

import yaml

from potstill.quantities import bytes_of, scaled
from potstill.report.blocks import Block, Card, Cards, Code, Column, Fold, Grid, Note, Page, Part, Section, Tabs, Text
from potstill.report.blocks import Table as Rows
from potstill.report.numbers import counted, duration, percent, points
from potstill.report.rows import harmless
from potstill.report.run_files import number
from potstill.report.study_figures import accuracies, courses, differences, front
from potstill.study import Difference, Entry, Record, Spread, Table

__all__ = ["study_csv", "study_page"]


def study_page(record: Record) -> Page:
    """The page of a study."""
    table = record.table
    runs = [run for entry in table.entries for run in entry.runs]
    done = sum(run.state == "done" for run in runs)
    banner = "" if done == len(runs) else _unfinished(table, done, len(runs))
    seeds = sorted({run.seed for run in runs})
    subtitle = f"{len(table.entries)} combinations, seeds {', '.join(map(str, seeds))}, {len(runs)} runs"
    sections = [_verdict(table), _results(table), _courses(table), _costs(table), _runs(table), _again(record)]
    return Page(table.title, subtitle, sections, banner)


def _unfinished(table: Table, done: int, of: int) -> str:
    failed = len(table.failed)
    lost = f" {failed} failed; the reasons are below." if failed else ""
    return f"{done} of {of} runs are finished.{lost} The same command runs what is missing."


def _columns(table: Table) -> list[tuple[str, list[Entry]]]:
    return [(name, [e for e in table.entries if table.column(e) == name]) for name in table.columns]


def _verdict(table: Table) -> Section:
    blocks: list[Block] = []
    for column, entries in _columns(table):
        where = f"{column}: " if column else ""
        ranked = sorted((e for e in entries if e.last), key=lambda e: -(e.last.mean if e.last else 0.0))
        if not ranked:
            blocks.append(Text(f"{where}no run is finished."))
            continue
        blocks.append(Text(where + _sentence(table, ranked)))
        if len(table.columns) == 1:
            blocks.append(Cards([_card(table, entry) for entry in ranked[:4]]))
    if not any(entry.control for entry in table.entries):
        blocks.append(Note("The study names no control, so nothing here says what distilling is worth."))
    counts = [entry.last.count for entry in table.entries if entry.last]
    if counts and min(counts) < 2:
        blocks.append(Note("Of some rows a single run is finished: there is no spread, and no interval, of one run."))
    elif counts:
        blocks.append(
            Note(
                f"With {min(counts)} seeds an interval is wide: what it cannot tell apart may still differ. Many rows "
                "are compared, and of twenty that are in truth equal to the control one would be expected outside 95 %."
            )
        )
    return Section("verdict", "Verdict", blocks)


def _sentence(table: Table, ranked: Sequence[Entry]) -> str:
    best = ranked[0]
    said = f"{best.levels[table.rows]} comes out first, with {_spread(best.last)} %"
    if best.control:
        said += "; it is the control: nothing that was tried is better than the student alone"
    elif best.difference:
        said += f", {_difference(best.difference)} points against the control"
    if len(ranked) > 1 and (close := [e.levels[table.rows] for e in ranked[1:] if _overlap(best, e)]):
        said += f". Within one standard deviation of it: {', '.join(close)}"
    worse = [e.levels[table.rows] for e in ranked if e.difference and e.difference.clear and e.difference.mean < 0]
    if worse:
        said += f". Clearly below the control: {', '.join(worse)}"
    return said + "."


def _overlap(best: Entry, other: Entry) -> bool:
    if best.last is None or other.last is None:
        return False
    return best.last.mean - other.last.mean <= max(best.last.deviation or 0.0, other.last.deviation or 0.0)


def _card(table: Table, entry: Entry) -> Card:
    label = f"{entry.levels[table.rows]}{' (control)' if entry.control else ''}"
    found = entry.difference
    detail = f"{_difference(found)} points against the control" if found else ""
    tone = ("good" if found.mean > 0 else "bad") if found and found.clear else ""
    return Card(label, f"{_spread(entry.last)} %", detail, tone)


def _results(table: Table) -> Section:
    blocks: list[Block] = []
    parts = []
    for column, entries in _columns(table):
        inner: list[Block] = [_result_rows(table, entries, column)]
        inner += [figure for figure in (accuracies(table, entries), differences(table, entries)) if figure]
        parts.append((column, inner))
    blocks += parts[0][1] if len(parts) == 1 else [Tabs(_other_axes(table), parts)]
    if table.teachers:
        blocks.append(_teachers(table))
    if table.paper:
        note = f" {table.paper['note']}" if table.paper["note"] else ""
        blocks.append(Note(f"Published: {table.paper['source']}.{note}"))
    blocks.append(
        Text(
            "Mean and sample standard deviation over the seeds, after the last epoch. The interval is Welch's for the "
            "difference of two means, 95 %."
        )
    )
    return Section("results", "Results", blocks)


def _other_axes(table: Table) -> str:
    return ", ".join(axis for axis in table.axes if axis != table.rows)


def _result_rows(table: Table, entries: Sequence[Entry], column: str) -> Rows:
    published = any(entry.paper is not None for entry in entries)
    heads = [table.rows, "Runs", "Last epoch, %", "Best epoch, %", "To the control, 95 %"]
    heads += ["Published, %", "Published, to the control"] if published else []
    rows = []
    for entry in entries:
        finished = sum(run.last is not None for run in entry.runs)
        row = [
            entry.levels[table.rows], f"{finished} of {len(entry.runs)}", _spread(entry.last), _spread(entry.best),
            "control" if entry.control else _difference(entry.difference),
        ]  # fmt: skip
        if published:
            row += ["-" if entry.paper is None else f"{entry.paper:.2f}", points(entry.paper_difference)]
        rows.append(row)
    columns = [Column(heads[0]), *(Column(head, number=True) for head in heads[1:])]
    return Rows(f"{table.headline.long}{f', {column}' if column else ''}", columns, rows)


def _teachers(table: Table) -> Rows:
    headline = table.headline
    rows = [
        [name, percent(number(dict(row), headline.key)), counted(number(dict(row), "parameters")),
         scaled(number(dict(row), "macs"))]
        for name, row in table.teachers.items()
    ]  # fmt: skip
    heads = (headline.head(headline.key), "Parameters", "Multiply-adds")
    columns = [Column("Teacher"), *(Column(head, number=True) for head in heads)]
    return Rows("The teachers", columns, rows)


def _courses(table: Table) -> Section:
    drawn = [(column, figure) for column, entries in _columns(table) if (figure := courses(table, entries))]
    if not drawn:
        return Section("curves", "How it went", [Note("No run is finished, or their folders are not here.")])
    blocks: list[Block] = [figure for _, figure in drawn]
    if len(drawn) > 1:
        blocks = [Tabs(_other_axes(table), [(column, [figure]) for column, figure in drawn])]
    return Section("curves", "How it went", blocks)


def _costs(table: Table) -> Section:
    heads = ["A run's time", "Teacher's share", "Memory", "Latency", "Parameters", "Multiply-adds"]
    rows = []
    for entry in table.entries:
        share, latency = entry.mean("teacher_share"), entry.mean("latency_ms")
        rows.append([
            ", ".join(entry.levels.values()), duration(entry.mean("seconds")),
            "-" if share is None else f"{100 * share:.0f} %", bytes_of(entry.mean("memory")),
            "-" if latency is None else f"{latency:.2f} ms", counted(entry.mean("parameters")),
            scaled(entry.mean("macs")),
        ])  # fmt: skip
    columns = [Column("Combination"), *(Column(head, number=True) for head in heads)]
    figures = [figure for _, entries in _columns(table) if (figure := front(table, entries))]
    blocks: list[Block] = [Rows("Means over the finished runs", columns, rows)]
    blocks += [Grid(figures)] if len(figures) > 1 else figures
    return Section("costs", "What it costs", blocks)


def _runs(table: Table) -> Section:
    rows = [
        [", ".join(entry.levels.values()), str(run.seed), run.state, percent(run.last), percent(run.best), run.folder]
        for entry in table.entries
        for run in entry.runs
    ]
    heads = [Column("Combination"), Column("Seed", number=True), Column("State"), Column("Last", number=True),
             Column("Best", number=True), Column("Folder")]  # fmt: skip
    blocks: list[Block] = []
    if table.failed:
        reasons = [[", ".join(e.levels.values()), str(run.seed), run.reason or ""] for e, run in table.failed]
        columns = [Column("Combination"), Column("Seed", number=True), Column("Why it failed")]
        blocks.append(Rows("Failed runs", columns, reasons))
    blocks.append(Fold(f"All {len(rows)} runs", [Rows("Each run", heads, rows)]))
    blocks.append(Text("potstill report FOLDER makes the page of a single run."))
    return Section("runs", "Each run", blocks)


def _again(record: Record) -> Section:
    text = yaml.safe_dump(record.file, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    versions = [[name, version] for name, version in record.versions.items()]
    return Section("repeat", "How to repeat it", [
        Code(record.command, "As it was started; the same command goes on, or finds it finished"),
        Part("Made with", [Rows("Versions", [Column("What"), Column("Version")], versions)]),
        Fold("The study file, with everything said", [Code(text, "study.yaml")]),
    ])  # fmt: skip


def study_csv(record: Record) -> str:
    """A row for each run: its levels, seed and state, its accuracies and what it cost."""
    table = record.table
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ("parameters", "macs", "latency_ms", "bytes")
    writer.writerow([*(harmless(axis) for axis in table.axes), "seed", "state", "last", "best", "seconds",
                     "teacher_share", "memory", *own, "folder", "reason"])  # fmt: skip
    for entry in table.entries:
        for run in entry.runs:
            row = dict(run.row or {})
            writer.writerow([
                *(harmless(level) for level in entry.levels.values()), run.seed, run.state, run.last, run.best,
                run.seconds, run.teacher_share, run.memory, *(number(row, key) for key in own), harmless(run.folder),
                harmless(run.reason or ""),
            ])  # fmt: skip
    return text.getvalue()


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def _difference(found: Difference | None) -> str:
    if found is None:
        return "-"
    ends = "" if found.low is None else f" [{points(found.low)}, {points(found.high)}]"
    return f"{points(found.mean)}{ends}"
