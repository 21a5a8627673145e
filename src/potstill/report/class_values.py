"""Which classes gain and lose, where a run has a value for each class: AP of detection, IoU of segmentation."""

from collections.abc import Mapping, Sequence

from potstill.headline import Headline
from potstill.report.blocks import Block, Column, Figure, Fold, Note, Section, Table, Tabs, Text
from potstill.report.figures import bars, names_axis
from potstill.report.numbers import percent, points
from potstill.report.run_files import number

__all__ = ["class_values"]

_SHOWN = 8  # classes on each side
_TOLD = 1000  # rows of the folded table
_FEW = 20  # classes whose table is not folded

Values = Mapping[str, Mapping[str, object]]


def class_values(found: Values, headline: Headline) -> Section:
    """The value of each class, with the largest gains and losses against the control and against the teacher.

    Args:
        found: "student", "control", "teacher", as far as there are -> class -> percent.
        headline: what the value is a part of.
    """
    student = found.get("student", {})
    names = [name for name in student if number(student, name) is not None]
    if not names:
        return Section("classes", "Classes", [Note(f"The run kept no {headline.each} of each class (result.json).")])
    others = {name: found[name] for name in ("control", "teacher") if found.get(name)}
    tabs = [(f"Against the {other}", _changes(names, student, rows, other, headline)) for other, rows in others.items()]
    blocks: list[Block] = [Tabs("Compared with", tabs)] if tabs else []
    if not tabs:
        blocks.append(Note("There are no values of a control or a teacher to compare with."))
    table = _every(names, student, others, headline)
    blocks.append(table if len(names) <= _FEW else Fold("Every class", [table]))
    return Section("classes", "Classes", blocks)


def _changes(
    names: Sequence[str], ours: Mapping[str, object], theirs: Mapping[str, object], other: str, headline: Headline
) -> list[Block]:
    pairs = [(name, number(ours, name), number(theirs, name)) for name in names]
    change = {name: mine - their for name, mine, their in pairs if mine is not None and their is not None}
    order = sorted((name for name in change if change[name]), key=lambda name: -change[name])
    gains = [name for name in order if change[name] > 0]
    losses = [name for name in order if change[name] < 0]
    text = f"Of {len(change)} classes, {len(gains)} gain and {len(losses)} lose against the {other}."
    chosen = gains[:_SHOWN] + losses[-_SHOWN:]
    if not chosen:
        return [Text(text)]
    tones = ["var(--gain)" if change[name] > 0 else "var(--loss)" for name in chosen]
    said = ", ".join(f"{name} {points(change[name])}" for name in [*gains[:3], *losses[-3:]])
    figure = Figure(
        f"Largest gains and losses against the {other}",
        f"Change of {headline.each} per class in points, student less {other}: {said}.",
        [bars("change", chosen, [change[name] for name in chosen], tones,
              hovertemplate="%{customdata[0]}: %{x:+.2f} points<extra></extra>")],
        {"yaxis": names_axis(chosen), "xaxis": {"title": {"text": "points"}}, "hovermode": "closest",
         "showlegend": False},
        f"The student's {headline.each} of a class less the {other}'s. A class of few objects moves far by chance.",
        height=90 + 24 * len(chosen),
    )  # fmt: skip
    return [Text(text), figure]


def _every(names: Sequence[str], ours: Mapping[str, object], others: Values, headline: Headline) -> Table:
    rows = []
    for name in names[:_TOLD]:
        mine = number(ours, name)
        row = [name, percent(mine)]
        for values in others.values():
            their = number(values, name)
            row += [percent(their), points(None if mine is None or their is None else mine - their)]
        rows.append(row)
    heads = ["Student", *(head for other in others for head in (other.capitalize(), "Change"))]
    cut = f", the first {_TOLD} of them" if len(names) > _TOLD else ""
    return Table(
        f"{headline.each} of each class{cut}", [Column("Class"), *(Column(head, number=True) for head in heads)], rows
    )
