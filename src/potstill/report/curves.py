"""How a run went: accuracy, loss terms apart, shares of the gradient, learning rate; and what explains it."""

from collections.abc import Sequence
from typing import Any

from potstill.report.blocks import Block, Figure, Grid, Note, Section, Tabs, Text
from potstill.report.figures import SERIES, colour, line, phases, rounded, shown, thinned
from potstill.report.reading import RunRecord
from potstill.report.run_files import number

__all__ = ["Curve", "curves", "losses_of", "measures", "plot"]

Rows = Sequence[dict[str, Any]]
Curve = tuple[str, Rows, "str | int"]
"""A name, the rows to read, and a role or a series' number."""

_EPOCH = {"xaxis": {"title": {"text": "epoch"}}}
_STEP = {"xaxis": {"title": {"text": "step"}}}

_NO_LOSS = {"step", "epoch", "phase", "lr", "total", "steps_per_second", "ms"}
"""What else a step's row holds."""

_MEASURES = (
    ("val_m_da", "Direction alignment, M_DA",
     "How far the student's embeddings point from the teacher's: 0 is the same direction, 1 a right angle; lower is "
     "closer."),
    ("val_m_bc", "Between-class similarity, M_BC",
     "How alike the embeddings of different classes are (mean cosine): the lower, the better classes are kept apart."),
    ("val_cka", "CKA with the teacher",
     "How alike the two spaces are whatever way they are turned or scaled: 1 is alike, 0 has nothing in common."),
    ("val_norm", "Length of the embeddings",
     "The mean length of the student's embeddings; what a method that works on lengths (KD++) wants to raise."),
)  # fmt: skip
_DISTANCE = (
    "How far two projectors of the ensemble are apart: the further, the more they differ. Where it falls to 0 they "
    "have become one, and the ensemble is worth no more than a single projector."
)


def plot(
    title: str, key: str, drawn: Sequence[Curve], *, x: str = "epoch", suffix: str = "", reading: str = "",
    height: int = 320, level: tuple[str, float] | None = None, marks: dict[str, Any] | None = None,
) -> Figure | None:  # fmt: skip
    """One value of several rows over epochs or steps; None where no row has it.

    Args:
        title: of the figure.
        key: the value's name in the rows.
        drawn: names, rows and roles.
        x: "epoch" or "step".
        suffix: of the value.
        reading: how to read it.
        height: in pixels.
        level: the teacher's name and value, drawn across.
        marks: lines of phases.
    """
    data, said = [], []
    for name, rows, role in drawn:
        known = [(float(row[x]), number(row, key)) for row in rows if key in row and number(row, x) is not None]
        real = [y for _, y in known if y is not None]
        if real:
            data.append(line(name, [place for place, _ in known], [y for _, y in known], role, f"%{{y}}{suffix}"))
            said.append(f"{name} from {real[0]:.4g} to {real[-1]:.4g}{suffix}")
    if not data:
        return None
    if level is not None:
        name, value = level
        ends = [min(trace["x"][0] for trace in data), max(trace["x"][-1] for trace in data)]
        data.append(line(name, ends, [value, value], "teacher", f"%{{y}}{suffix}", mode="lines"))
        said.append(f"{name} {value:.4g}{suffix}")
    axis: dict[str, Any] = dict((_EPOCH if x == "epoch" else _STEP)["xaxis"])
    if x == "epoch" and max(trace["x"][-1] for trace in data) <= 12:
        axis["dtick"] = 1  # there is no half of an epoch
    layout = {"xaxis": axis, "yaxis": {"ticksuffix": suffix}, "showlegend": len(data) > 1}
    return Figure(title, f"{title} over {x}s: {'; '.join(said)}.", data, layout | (marks or {}), reading, height)


def losses_of(run: RunRecord) -> list[str]:
    """The terms that the rows of a run have a loss of, and their sum.

    Where networks have losses of their own, as detectors have, also what is in the steps' rows beside the terms.
    """
    named = [*run.terms, "total"]
    if not run.headline.proportion:
        others = (key for row in run.steps for key in row if key not in _NO_LOSS and not key.startswith("share_"))
        named[-1:-1] = [name for name in dict.fromkeys(others) if name not in named]
    return [name for name in named if any(name in row for row in [*run.steps, *run.epochs])]


def curves(run: RunRecord) -> Section:
    """The section of a run's curves."""
    missing = "This run has no rows yet: its first epoch is not done."
    if not run.epochs and not run.steps:
        return Section("curves", "How it went", [Note(missing)])
    tabs = [
        (run.headline.subject, _accuracy(run)), ("Loss terms", _losses(run)), ("Gradient shares", _shares(run)),
        ("Learning rate", _rate(run)),
    ]  # fmt: skip
    return Section("curves", "How it went", [Tabs("Curves", tabs)])


def _pair(run: RunRecord, epochs: bool = True) -> list[Curve]:
    drawn: list[Curve] = [("student", run.epochs if epochs else run.steps, "student")]
    if run.control is not None:
        drawn.append(("control", run.control.epochs if epochs else run.control.steps, "control"))
    return drawn


def _accuracy(run: RunRecord) -> list[Block]:
    teacher, marks, headline = run.rows.get("teacher", {}), phases(run.epochs), run.headline
    found = []
    for key in (headline.key, *headline.further(run.epochs)):
        value = number(teacher, key)
        level = None if value is None else ("teacher", value)
        suffix = f" {headline.unit}"
        found.append(plot(headline.title(key), key, _pair(run), suffix=suffix, level=level, marks=marks))
    found.append(plot("Cross entropy on the validation images", "val_loss", _pair(run), marks=marks))
    if not any(found):  # without labels, what is validated is the objective itself
        found = [plot(f"{name} on the validation images", f"val_{name}", _pair(run)) for name in [*run.terms, "total"]]
    drawn = [figure for figure in found if figure is not None]
    first: list[Block] = list(drawn[:1])
    return first + ([Grid(drawn[1:])] if drawn[1:] else []) or [Note("No epoch of this run has been evaluated yet.")]


def _losses(run: RunRecord) -> list[Block]:
    panels = []
    for name in losses_of(run):
        by_step = any(name in row for row in run.steps)
        title = "Total, weights applied" if name == "total" else name
        drawn = [curve for curve in _pair(run, epochs=not by_step) if name != "total" or curve[0] == "student"]
        panels.append(plot(title, name, drawn, x="step" if by_step else "epoch", height=240))
    terms = [panel for panel in panels if panel is not None]
    if not terms:
        return [Note("This run has logged no loss yet.")]
    return [
        Text("Each term by itself, before its weight, as the mean of the steps between two looks (log.every)."),
        Grid(terms),
    ]


def _shares(run: RunRecord) -> list[Block]:
    rows = [row for row in run.steps if any(str(key).startswith("share_") for key in row)]
    names = list(dict.fromkeys(key for row in rows for key in row if str(key).startswith("share_")))
    if not names:
        return [
            Note(
                "There are no shares: they are measured of an objective of two terms or more that reach the student's "
                "embedding, every log.shares steps (0: never)."
            )
        ]
    data, said = [], []
    for place, name in enumerate(names):
        known = [(float(row["step"]), number(row, name)) for row in rows]
        xs, ys = thinned([x for x, _ in known], [None if y is None else 100 * y for _, y in known])
        said.append(f"{name.removeprefix('share_')} {ys[-1] or 0:.0f} % at the end")
        data.append({
            "type": "scatter", "mode": "lines", "stackgroup": "shares", "name": shown(name.removeprefix("share_")),
            "x": xs, "y": rounded(ys, 4), "line": {"width": 1, "color": colour(place % SERIES)},
            "hovertemplate": "%{y:.1f} %",
        })  # fmt: skip
    layout = {**_STEP, "yaxis": {"ticksuffix": " %", "range": [0, 100]}}
    return [
        Figure(
            "Shares of the gradient", f"Shares of the gradient at the student's embedding: {'; '.join(said)}.", data,
            layout,
            "How much of the gradient at the student's embedding comes from each term, weights applied: which loss "
            "does the teaching. A term that does not reach the embedding is not in it.",
        )
    ]  # fmt: skip


def _rate(run: RunRecord) -> list[Block]:
    rows, x = (run.steps, "step") if any("lr" in row for row in run.steps) else (run.epochs, "epoch")
    figure = plot("Learning rate", "lr", [("learning rate", rows, "student")], x=x)
    return [figure] if figure else [Note("This run has logged no learning rate yet.")]


def measures(run: RunRecord) -> Section:
    """What explains a run: directions, classes, projectors."""
    keys = {key for row in run.epochs for key in row}
    figures = [plot(title, key, _pair(run), reading=reading, height=260) for key, title, reading in _MEASURES]
    for key in sorted(key for key in keys if key.endswith("_distance") and key.startswith("val_")):
        name = key.removeprefix("val_").removesuffix("_distance")
        figures.append(
            plot(f"Distance of two projectors of {name}", key, _pair(run)[:1], reading=_DISTANCE, height=260)
        )
    drawn = [figure for figure in figures if figure is not None]
    blocks: list[Block] = [Grid(drawn)] if drawn else []
    if not drawn:
        blocks.append(
            Note(
                "These were not measured while the run trained: log.measures=true does, with each evaluation. Of a "
                "finished run, potstill analyze tells them of its last epoch."
            )
        )
    elif "val_m_da" not in keys and run.taught:
        blocks.append(
            Note("There is no M_DA: it compares embeddings of one length, and the student's is not the teacher's.")
        )
    return Section("measures", "What explains it", blocks)
