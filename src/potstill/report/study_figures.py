"""The plots of a study: accuracies with their spread, differences with their intervals, accuracy over cost, curves."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.report.blocks import Figure
from potstill.report.curves import Curve, plot
from potstill.report.figures import colour, names_axis, rounded, shown
from potstill.report.numbers import percent, points
from potstill.study import Entry, Table

__all__ = ["accuracies", "courses", "differences", "front"]


def accuracies(table: Table, entries: Sequence[Entry]) -> Figure | None:
    """A column's rows: the mean of each, its standard deviation, and every seed as a point."""
    known = [entry for entry in entries if entry.last is not None]
    if not known:
        return None
    names = [entry.levels[table.rows] for entry in known]
    places = list(range(len(known)))
    means = [entry.last.mean for entry in known if entry.last]
    spreads = [entry.last.deviation or 0.0 for entry in known if entry.last]
    tones = [colour("control" if entry.control else "student") for entry in known]
    seeds = [(place, run) for place, entry in zip(places, known, strict=True) for run in entry.runs if run.last]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "name": "mean and standard deviation", "y": places,
            "x": rounded(means), "marker": {"size": 13, "symbol": "line-ns", "line": {"width": 3, "color": tones}},
            "customdata": [[shown(name)] for name in names],
            "error_x": {
                "type": "data", "array": rounded(spreads), "thickness": 2, "width": 6, "color": colour("muted"),
            },
            "hovertemplate": "%{customdata[0]}: %{x:.2f} %<extra></extra>",
        },
        {
            "type": "scatter", "mode": "markers", "name": "each seed", "y": [place for place, _ in seeds],
            "x": rounded([run.last for _, run in seeds]),
            "marker": {"size": 8, "color": [tones[place] for place, _ in seeds], "opacity": 0.7},
            "customdata": [[run.seed] for _, run in seeds],
            "hovertemplate": "seed %{customdata[0]}: %{x:.2f} %<extra></extra>",
        },
    ]  # fmt: skip
    values = [run.last for _, run in seeds if run.last is not None]
    low, high = min([*values, *means]), max([*values, *means])
    room = max(0.5, 0.35 * (high - low))
    said = "; ".join(f"{name} {percent(mean)}" for name, mean in zip(names, means, strict=True))
    return Figure(
        f"{table.headline.subject} after the last epoch", f"{table.headline.long}, means over seeds: {said}.", data,
        {
            "yaxis": names_axis(names), "hovermode": "closest",
            "xaxis": {"ticksuffix": " %", "range": [max(0.0, low - room), min(100.0, high + room)]},
        },
        "The whiskers are one standard deviation of the runs, not an interval of the mean.",
        height=110 + 34 * len(known),
    )  # fmt: skip


def differences(table: Table, entries: Sequence[Entry]) -> Figure | None:
    """A column's rows: the difference of each to the control, with its interval; the paper's beside it."""
    known = [entry for entry in entries if entry.difference is not None]
    if not known:
        return None
    names, places = [entry.levels[table.rows] for entry in known], list(range(len(known)))
    found = [entry.difference for entry in known if entry.difference is not None]
    ends = [(one.high or one.mean) - one.mean for one in found]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "name": "measured, 95 % interval", "y": places,
            "x": rounded([one.mean for one in found]), "marker": {"size": 11, "color": colour("student")},
            "error_x": {
                "type": "data", "array": rounded(ends), "thickness": 2, "width": 6, "color": colour("student"),
            },
            "customdata": [[shown(name)] for name in names],
            "hovertemplate": "%{customdata[0]}: %{x:+.2f}<extra></extra>",
        }
    ]  # fmt: skip
    published = [(place, e.paper_difference) for place, e in zip(places, known, strict=True) if e.paper_difference]
    if published:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "published", "y": [place for place, _ in published],
                "x": rounded([value for _, value in published]),
                "marker": {"size": 11, "symbol": "diamond-open", "color": colour("teacher"), "line": {"width": 2}},
                "hovertemplate": "published: %{x:+.2f}<extra></extra>",
            }
        )  # fmt: skip
    long = table.headline.long
    said = "; ".join(f"{name} {points(one.mean)}" for name, one in zip(names, found, strict=True))
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "var(--muted)"}}
    return Figure(
        "Difference to the control", f"Points of {long[0].lower()}{long[1:]} more than the control: {said}.", data,
        {"yaxis": names_axis(names), "xaxis": {"ticksuffix": " points"}, "hovermode": "closest", "shapes": [zero]},
        "An interval that leaves out 0 is a difference that these few seeds can tell from chance.",
        height=110 + 34 * len(known),
    )  # fmt: skip


def front(table: Table, entries: Sequence[Entry]) -> Figure | None:
    """A column's rows by what a run costs and what it reaches, with the line that none lies above."""
    known = [(entry, cost) for entry in entries if entry.last and (cost := entry.mean("seconds"))]
    if len(known) < 2:
        return None
    rows = [(cost / 60, entry.last.mean, entry.levels[table.rows]) for entry, cost in known if entry.last]
    best: list[tuple[float, float, str]] = []
    for row in sorted(rows):
        if not best or row[1] > best[-1][1]:
            best.append(row)
    points_trace = {
        "type": "scatter", "mode": "markers+text", "name": "methods", "x": rounded([x for x, _, _ in rows]),
        "y": rounded([y for _, y, _ in rows]), "text": [shown(name) for *_, name in rows], "textposition": "top center",
        "marker": {"size": 11, "color": [colour("control" if e.control else "student") for e, _ in known]},
        "hovertemplate": "%{text}: %{y:.2f} % in %{x:.1f} min<extra></extra>", "cliponaxis": False,
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "name": "none is better for less", "x": rounded([x for x, _, _ in best]),
        "y": rounded([y for _, y, _ in best]), "line": {"color": colour("muted"), "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }  # fmt: skip
    said, subject = ", ".join(name for *_, name in best), table.headline.subject
    return Figure(
        f"{subject} over cost", f"{subject} over minutes of training; none is better for less than: {said}.",
        [line, points_trace],
        {"xaxis": {"title": {"text": "minutes of a run"}}, "yaxis": {"ticksuffix": " %"}, "hovermode": "closest"},
        "Up and to the left is better. Times are of this machine, of all that a run does; a shared store's making is "
        "not in them.",
        height=380,
    )  # fmt: skip


def courses(table: Table, entries: Sequence[Entry]) -> Figure | None:
    """The mean accuracy of each row over the epochs."""
    drawn: list[Curve] = []
    for number, entry in enumerate(entries):
        rows = _mean_rows([_epochs(Path(run.folder)) for run in entry.runs if run.state == "done"], table.metric)
        drawn.append((entry.levels[table.rows], rows, number))
    return plot(
        f"{table.headline.subject} over the epochs", table.metric, drawn, suffix=" %", height=380,
        reading="Means over the seeds. The last epoch counts; the best one is chosen by the images that it is measured "
        "on.",
    )  # fmt: skip


def _mean_rows(runs: Sequence[Sequence[Mapping[str, str]]], key: str) -> list[dict[str, Any]]:
    """One row for each epoch that all runs have evaluated."""
    by_epoch: list[dict[int, float]] = [
        {int(float(row["epoch"])): float(row[key]) for row in rows if row.get(key)} for rows in runs
    ]
    shared: set[int] = set.intersection(*(set(one) for one in by_epoch)) if by_epoch else set()
    mean: Callable[[int], float] = lambda epoch: sum(one[epoch] for one in by_epoch) / len(by_epoch)  # noqa: E731
    return [{"epoch": epoch, key: mean(epoch)} for epoch in sorted(shared)]


def _epochs(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``; none where the run has been moved away."""
    try:
        with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
