"""Several runs beside each other: what each came to, and recipes over their seeds."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.quantities import bytes_of, scaled
from potstill.report.blocks import Block, Column, Figure, Note, Section, Table, Tabs, Text
from potstill.report.curves import losses_of, plot
from potstill.report.figures import colour, cut, shown
from potstill.report.numbers import between, duration, percent, points
from potstill.report.reading import RunRecord
from potstill.report.run_files import number
from potstill.report.statistics import Interval, mean_interval, paired_difference, two_sample_difference
from potstill.report.verdict import against

__all__ = ["comparison", "grouped", "run_names"]

# What may differ between two seeds of one recipe.
_SEED_KEYS = ("seed", "run", "control", "log", "checkpoint", "device", "students")
_DATA_SEEDS = ("order_seed", "view_seed", "path", "workers")
_OVER_SEEDS = "Student's interval over the seeds of one recipe, in which what another seed would change is counted."


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Short names that differ: the folders, without what all of them begin with."""
    paths = [os.path.normpath(run.folder) for run in runs]
    parts = [path.split(os.sep) for path in paths]
    same = 0
    while len(runs) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    names = [os.sep.join(part[same:]) if len(runs) > 1 else part[-1] for part in parts]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]


def grouped(runs: Sequence[RunRecord]) -> list[list[int]]:
    """The places of the runs that differ in nothing but their seeds, in the order of their first one."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        kept: dict[str, Any] = {key: value for key, value in run.recipe.items() if key not in _SEED_KEYS}
        if isinstance(kept.get("data"), Mapping):
            kept["data"] = {key: value for key, value in kept["data"].items() if key not in _DATA_SEEDS}
        kept["made of"] = [_identity(run), (run.result or {}).get("teacher_fingerprint")]
        groups.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(place)
    return list(groups.values())


def comparison(runs: Sequence[RunRecord]) -> list[Section]:
    """The sections that lay several runs beside each other."""
    names, groups = run_names(runs), grouped(runs)
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(runs, names, groups)]
    if plot := _accuracies(runs, names, groups):
        blocks.append(plot)
    blocks += [_runs(runs, names), *_recipes(runs, names, groups)]
    blocks += [Note(f"{names[i]}: {run.banner}") for i, run in enumerate(runs) if run.banner]
    if len({run.data for run in runs}) > 1 or len({_identity(run) for run in runs} - {None}) > 1:
        blocks.append(Note("These runs are not all on the same data: their accuracies do not compare."))
    return [Section("verdict", "Verdict", blocks), _overlaid(runs, names)]


def _identity(run: RunRecord) -> Any:
    return ((run.result or {}).get("data") or {}).get("identity")


def _value(run: RunRecord, name: str = "student") -> float | None:
    """The headline's value."""
    return number(run.rows.get(name, {}), run.headline.key)


def _called(runs: Sequence[RunRecord], names: Sequence[str], group: Sequence[int]) -> str:
    first = runs[group[0]]
    return f"{names[group[0]]} and {len(group) - 1} more" if len(group) > 1 else names[group[0]] or first.student


def _seeds(runs: Sequence[RunRecord], group: Sequence[int], name: str = "student") -> dict[Any, float]:
    """The headline's values of a group's finished runs, by seed."""
    found = {str(runs[i].seed): _value(runs[i], name) for i in group if runs[i].result is not None}
    return {seed: value for seed, value in found.items() if value is not None}


def _gain(runs: Sequence[RunRecord], group: Sequence[int]) -> tuple[float, Interval | None] | None:
    """A recipe's student less its control: over pairs of one seed where there are several, else of one run's images."""
    ours, theirs = _seeds(runs, group), _seeds(runs, group, "control")
    both = [seed for seed in ours if seed in theirs]
    if len(both) > 1:
        found = mean_interval([ours[seed] - theirs[seed] for seed in both])
        return None if found is None else (found.value, found)
    compared = [c for i in group if (c := against(runs[i], "control")) is not None]
    return (compared[0].value, compared[0].interval) if len(compared) == 1 else None


def _difference(runs: Sequence[RunRecord], group: Sequence[int], first: Sequence[int]) -> tuple[Interval, str] | None:
    """A recipe less the first one: by pairs of seeds, else two samples of seeds, else the images of one run each."""
    ours, theirs = _seeds(runs, group), _seeds(runs, first)
    both = [seed for seed in ours if seed in theirs]
    if len(both) > 1 and len(both) == max(len(ours), len(theirs)):
        found = mean_interval([ours[seed] - theirs[seed] for seed in both])
        return None if found is None else (found, f"{len(both)} pairs of one seed")
    welch = two_sample_difference(list(ours.values()), list(theirs.values()))
    if welch is not None:
        return welch, "two sets of seeds (Welch)"
    one, other = (runs[part[0]].outputs for part in (group, first))
    images = len(group) == len(first) == 1 and runs[group[0]].headline.proportion
    if images and one is not None and other is not None and one.same_images(other):
        return paired_difference(one.student_right, other.student_right), "the same images, seeds not counted"
    return None


def _sentences(runs: Sequence[RunRecord], names: Sequence[str], groups: Sequence[Sequence[int]]) -> list[str]:
    said = []
    for group in groups:
        found = mean_interval(list(_seeds(runs, group).values()))
        gain = _gain(runs, group)
        if found is None:
            continue
        text = f"{_called(runs, names, group)}: {percent(found.value)} on average over {len(_seeds(runs, group))} seeds"
        text += f" (95 % interval {between(found, signed=False)})"
        if gain is not None and gain[1] is not None:
            clear = "" if gain[1].clear else ", which is no clear difference"
            text += f", {points(gain[0])} points against the control ({between(gain[1])}{clear})"
        said.append(f"{text}.")
    return said or [f"{len(runs)} runs beside each other."]


def _runs(runs: Sequence[RunRecord], names: Sequence[str]) -> Table:
    rows = []
    for name, run in zip(names, runs, strict=True):
        student, gain = run.rows["student"], against(run, "control")
        seconds = number(run.result or {}, "seconds")
        rows.append([
            name, run.student, " + ".join(run.terms), "" if run.seed is None else str(run.seed), percent(_value(run)),
            points(gain.value if gain else None), between(gain.interval if gain else None),
            percent(_value(run, "teacher")),
            scaled(number(student, "parameters")),
            bytes_of(number(student, "bytes")), duration(seconds),
        ])  # fmt: skip
    headline = runs[0].headline
    reached = headline.head(headline.key)
    heads = ("Seed", reached, "Against control", "95 % interval", "Teacher", "Parameters", "Size", "Time")
    columns = [Column("Run"), Column("Student"), Column("Objective"), *(Column(head, number=True) for head in heads)]
    caption = "The runs; each interval is of one run's images, seeds not counted" if headline.proportion else "The runs"
    return Table(caption, columns, rows)


def _recipes(runs: Sequence[RunRecord], names: Sequence[str], groups: Sequence[Sequence[int]]) -> list[Block]:
    if len(groups) == 1 and len(runs) == 1:
        return []
    rows = []
    for group in groups:
        values = list(_seeds(runs, group).values())
        mean, gain = mean_interval(values), _gain(runs, group)
        gap = _difference(runs, group, groups[0]) if group is not groups[0] else None
        rows.append([
            _called(runs, names, group), str(len(values)),
            percent(mean.value if mean else values[0] if values else None),
            between(mean, signed=False), points(gain[0]) if gain else "-", between(gain[1]) if gain else "-",
            points(gap[0].value) if gap else "-", between(gap[0]) if gap else "-", gap[1] if gap else "",
        ])  # fmt: skip
    headline = runs[0].headline
    heads = (
        "Seeds",
        headline.head(headline.key),
        "95 % interval",
        "Against control",
        "95 % interval",
        "Against the first",
        "95 % interval",
    )
    columns = [Column("Recipe"), *(Column(head, number=True) for head in heads), Column("That interval is over")]
    return [Table("The recipes: runs that differ in their seeds alone are one row", columns, rows), Note(_OVER_SEEDS)]


def _accuracies(runs: Sequence[RunRecord], names: Sequence[str], groups: Sequence[Sequence[int]]) -> Figure | None:
    """A point for each run, a row for each recipe, with the mean's interval."""
    data: list[dict[str, Any]] = []
    ticks = [shown(cut(_called(runs, names, group), 26)) for group in groups]
    for place, group in enumerate(groups):
        values = [(names[i], value) for i in group if (value := _value(runs[i])) is not None]
        if not values:
            continue
        data.append({
            "type": "scatter", "mode": "markers", "x": [round(v, 3) for _, v in values], "y": [place] * len(values),
            "customdata": [[shown(name)] for name, _ in values],
            "marker": {"size": 9, "color": colour(place), "opacity": 0.75},
            "hovertemplate": "%{customdata[0]}: %{x:.2f} %<extra></extra>",
        })  # fmt: skip
        if mean := mean_interval([value for _, value in values]):
            data.append({
                "type": "scatter", "mode": "markers", "x": [round(mean.value, 3)], "y": [place],
                "marker": {"size": 13, "symbol": "line-ns-open", "color": "var(--text)", "line": {"width": 2}},
                "error_x": {"type": "constant", "value": round(mean.high - mean.value, 3), "color": "var(--text)"},
                "hovertemplate": "mean %{x:.2f} %<extra></extra>",
            })  # fmt: skip
    if not data:
        return None
    axis = {"tickmode": "array", "tickvals": list(range(len(ticks))), "ticktext": ticks, "showgrid": False,
            "range": [len(ticks) - 0.5, -0.5], "zeroline": False, "fixedrange": True}  # fmt: skip
    headline = runs[0].headline
    said = ", ".join(f"{name} {percent(_value(run))}" for name, run in zip(names, runs, strict=True))
    return Figure(
        f"{headline.long} of each run", f"{headline.many}: {said}.", data,
        {"yaxis": axis, "xaxis": {"ticksuffix": " %"}, "hovermode": "closest", "showlegend": False},
        "A point is a run, a row a recipe; the line is the mean over its seeds with its 95 % interval.",
        height=90 + 40 * len(ticks),
    )  # fmt: skip


def _overlaid(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """The runs' curves in one plot for each value."""
    by_epoch = [(name, run.epochs, place) for place, (name, run) in enumerate(zip(names, runs, strict=True))]
    by_step = [(name, run.steps, place) for place, (name, run) in enumerate(zip(names, runs, strict=True))]
    terms = dict.fromkeys(term for run in runs for term in losses_of(run) if term != "total")
    headline, rows = runs[0].headline, [row for run in runs for row in run.epochs]
    further = [] if headline.proportion else headline.further(rows)
    wanted = [
        (headline.long, plot(headline.long, headline.key, by_epoch, suffix=f" {headline.unit}", height=380)),
        *(
            (headline.head(key), plot(headline.title(key), key, by_epoch, suffix=f" {headline.unit}", height=380))
            for key in further
        ),
        ("Cross entropy", plot("Cross entropy on the validation images", "val_loss", by_epoch, height=380)),
        *((f"Loss {term}", plot(f"{term}, before its weight", term, by_step, x="step", height=380)) for term in terms),
        ("Direction alignment", plot("M_DA, lower is closer to the teacher", "val_m_da", by_epoch, height=380)),
        ("Between classes", plot("M_BC, lower keeps classes better apart", "val_m_bc", by_epoch, height=380)),
        ("Learning rate", plot("Learning rate", "lr", by_step, x="step", height=380)),
    ]
    tabs = [(title, [figure]) for title, figure in wanted if figure is not None]
    blocks: list[Block] = [Tabs("Curves of all runs", tabs)] if tabs else [Note("None of these runs has a row yet.")]
    return Section("curves", "How they went", blocks)
