"""A study on the terminal: what runs now, and the tables that it ends with."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from potstill.cli.tables import plain_table
from potstill.training.durations import duration

if TYPE_CHECKING:
    from potstill.study import Entry, Plan, SeedRun, Spread, Status, Table

__all__ = ["board_on", "plan_table", "result_tables"]

_SIGNS = {"waiting": ("·", "dim"), "running": ("▶", "cyan"), "done": ("✓", "green"), "failed": ("✗", "bold red")}
_AROUND = 8  # lines of the terminal that are not rows: head, title, the lines below
_A_RUN, _A_SPREAD = 11, 14  # characters of a cell


@contextmanager
def board_on(
    console: Console, plan: "Plan", changed: Callable[["Table"], None]
) -> Iterator[Callable[["Status"], None]]:
    """What a study is told to show itself by: a live table on a terminal, a line for each change on a pipe.

    Args:
        console: where to talk.
        plan: the study's.
        changed: is given the table when another run has ended.
    """
    from potstill.study import Reader

    reader, ended = Reader(plan), -1

    def table(status: "Status") -> "Table":
        nonlocal ended
        found = reader.read(status)
        if (now := status.count("done", "failed")) != ended:
            ended = now
            changed(found)
        return found

    if not console.is_terminal:
        say = _Lines(console)

        def tell(status: "Status") -> None:
            table(status)
            say(status)

        yield tell
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        began = time.monotonic()
        yield lambda status: live.update(
            _board(table(status), status, time.monotonic() - began, console.width, console.height), refresh=True
        )


class _Lines:
    """A line for each job that starts or ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.before: dict[str, str] | None = None
        self.tries: dict[str, int] = {}

    def __call__(self, status: "Status") -> None:
        states: dict[str, str] = {**status.states}
        whole = f"{status.count('done', 'failed')}/{len(states)}"
        if self.before is None:
            self._say(f"{len(states)} jobs, {status.count('done')} of them done already.")
            self.before = states
        for name, state in states.items():
            if status.tries.get(name, 0) > self.tries.get(name, 0) and state != "failed":
                self._say(f"{whole}  {name}: lost, tried again")
            elif state != self.before[name]:
                word = {"running": "started", "waiting": "stopped"}.get(state, state)
                reason = f": {status.reasons[name]}" if name in status.reasons else ""
                self._say(f"{whole}  {name}: {word}{reason}")
        self.before, self.tries = states, dict(status.tries)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def plan_table(plan: "Plan") -> RichTable:
    """What a study would run: each job, what it waits for, and its folder."""
    rows = [[job.name, job.kind, ", ".join(job.after), str(job.folder)] for job in plan.jobs.values()]
    return plain_table(["job", "", "after", "folder"], rows, f"{len(plan.cells)} cells, {len(plan.jobs)} jobs")


def _board(table: "Table", status: "Status", seconds: float, width: int, height: int) -> Group:
    """The table with a sign for each run, as many of its rows as there is place for, and a line on the whole."""
    at = {(entry.levels[table.rows], table.column(entry)): entry for entry in table.entries}
    rows = list(dict.fromkeys(row for row, _ in at))
    going = {row for (row, _), entry in at.items() if any(run.state == "running" for run in entry.runs)}
    chosen = set(sorted(rows, key=lambda row: row not in going)[: max(1, height - _AROUND)])
    runs = max((len(entry.runs) for entry in table.entries), default=0)
    names = max(map(len, rows), default=0)
    brief = names + len(table.columns) * (runs * _A_RUN + _A_SPREAD) > width
    shown = plain_table([table.rows, *table.columns], [], table.title)
    for row in rows:
        if row in chosen:
            cells = (at.get((row, column)) for column in table.columns)
            shown.add_row(Text(row), *(Text("") if entry is None else _signs(entry, brief) for entry in cells))
    more = [Text(f"  and {len(rows) - len(chosen)} more rows")] if len(chosen) < len(rows) else []
    running = [name for name, state in status.states.items() if state == "running"]
    whole = f"{status.count('done')} of {len(status.states)} done, {status.count('failed')} failed, {duration(seconds)}"
    return Group(shown, *more, Text(f"  {whole}; now: {', '.join(running) or 'nothing'}"))


def _signs(entry: "Entry", brief: bool) -> Text:
    text = Text()
    for run in entry.runs:
        sign, style = _SIGNS[run.state]
        text.append(sign, style)
        if not brief:
            text.append(f" {_state(run)}  ", "default" if run.state == "done" else "dim")
    if entry.last is not None and (brief or entry.last.count > 1):
        text.append(f"{' ' * brief}{_spread(entry.last)}", "bold")
    return text


def _state(run: "SeedRun") -> str:
    if run.last is not None:
        return f"{run.last:.2f}"
    return f"epoch {run.epoch}" if run.state == "running" else ""


def result_tables(table: "Table", width: int) -> list[RichTable]:
    """A table for each column of the study: mean and spread, the difference to the control, and the cost.

    Args:
        table: the study's.
        width: of the terminal; what is wider than that is divided in two.
    """
    made = []
    published = any(entry.paper is not None for entry in table.entries)
    results = [">runs", ">last %", ">to the control\n(95 %)", *([">paper %\n(to its control)"] if published else [])]
    costs = [">best %", ">time", ">teacher", ">memory", ">latency", ">parameters"]
    for column in table.columns:
        entries = {entry.levels[table.rows]: entry for entry in table.entries if table.column(entry) == column}
        found = [[name, *_results(entry)[: len(results)]] for name, entry in entries.items()]
        cost = [[name, *_costs(entry)] for name, entry in entries.items()]
        title = f"{table.title}: {column}" if column else table.title
        rows = ([*one, *other[1:]] for one, other in zip(found, cost, strict=True))
        wide = _unfolded([table.rows, *results, *costs], rows, title)
        if Console(width=10_000).measure(wide).maximum <= width:
            made.append(wide)
        else:
            made += [_unfolded([table.rows, *results], found, title), _unfolded([table.rows, *costs], cost)]
    if table.teachers:
        headline = table.headline
        rows = (
            [name, _number(row.get(headline.key), "{:.2f}"), _number(row.get("latency_ms"), "{:.2f} ms"),
             _number(row.get("parameters"), "{:,.0f}")]
            for name, row in table.teachers.items()
        )  # fmt: skip
        accuracy = f">{headline.short} {headline.unit}"
        made.append(_unfolded(["teacher", accuracy, ">latency", ">parameters"], rows))
    return made


def _unfolded(columns: list[str], rows: Iterable[list[str]], title: str | None = None) -> RichTable:
    """A table of which only the first column is folded where the terminal is too narrow: a number stays on its line."""
    made = plain_table(columns, rows, title)
    made.collapse_padding = True
    for column in made.columns[1:]:
        column.no_wrap = True
    return made


def _results(entry: "Entry") -> list[str]:
    finished = sum(run.last is not None for run in entry.runs)
    theirs = "" if entry.paper_difference is None else f" ({entry.paper_difference:+.2f})"
    return [
        f"{finished}/{len(entry.runs)}",
        _spread(entry.last),
        "control" if entry.control else _difference(entry),
        "" if entry.paper is None else f"{entry.paper:.2f}{theirs}",
    ]


def _costs(entry: "Entry") -> list[str]:
    seconds, share, memory = entry.mean("seconds"), entry.mean("teacher_share"), entry.mean("memory")
    return [
        _spread(entry.best),
        "" if seconds is None else duration(seconds),
        "" if share is None else f"{100 * share:.0f} %",
        "" if memory is None else f"{memory / 2**30:.1f} GiB",
        _number(entry.mean("latency_ms"), "{:.2f} ms"),
        _number(entry.mean("parameters"), "{:,.0f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _spread(found: "Spread | None") -> str:
    if found is None:
        return "-"
    return f"{found.mean:.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def _difference(entry: "Entry") -> str:
    found = entry.difference
    if found is None:
        return "-"
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.mean:+.2f}{interval}"
