"""Which classes gain and lose, and which are taken for each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.report.blocks import Block, Column, Figure, Fold, Note, Section, Table, Tabs, Text
from potstill.report.figures import bars, names_axis
from potstill.report.numbers import percent, points
from potstill.report.outputs import Outputs
from potstill.report.reading import RunRecord

__all__ = ["class_names", "confusions", "per_class"]

_SHOWN = 8  # classes on each side
_PAIRS = 15
_TOLD = 1000  # rows of the folded table: ImageNet's classes

Bools = NDArray[np.bool_]


def _why(run: RunRecord) -> str:
    when = "the run is not finished" if run.result is None else "the run kept none, or its data have no labels"
    return f"There are no predictions of the validation images (predictions.safetensors): {when}."


def per_class(run: RunRecord) -> Section:
    """Accuracy per class, with the largest gains and losses against the control and against the teacher."""
    outputs = run.outputs
    if outputs is None:
        return Section("classes", "Classes", [Note(_why(run))])
    names = class_names(run, outputs)
    others = _others(run, outputs)
    tabs = [
        (f"Against the {other}", _changes(names, outputs.label, outputs.student_right, right, other))
        for other, right in others.items()
    ]
    blocks: list[Block] = [Tabs("Compared with", tabs)] if tabs else []
    if not tabs:
        blocks.append(Note("There are no predictions of a control or a teacher on the same images to compare with."))
    blocks.append(Fold("Every class", [_every(names, outputs, others)]))
    return Section("classes", "Classes", blocks)


def class_names(run: RunRecord, outputs: Outputs) -> list[str]:
    """A name for each class; its number where the run is not finished, and its names are not told yet."""
    known = run.classes[: outputs.classes]
    return [*known, *(f"class {number}" for number in range(len(known), outputs.classes))]


def _others(run: RunRecord, outputs: Outputs) -> dict[str, Bools]:
    found: dict[str, Bools] = {}
    control = run.control.outputs if run.control else None
    if control is not None and control.same_images(outputs):
        found["control"] = control.student_right
    if outputs.teacher_right is not None:
        found["teacher"] = outputs.teacher_right
    return found


def _accuracy(label: NDArray[np.int64], right: Bools, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Percent right of each class, NaN of one without an image; and how many images it has."""
    images = np.bincount(label, minlength=classes)
    hits = np.bincount(label[right], minlength=classes)
    return np.where(images > 0, 100 * hits / np.maximum(images, 1), np.nan), images


def _changes(names: Sequence[str], label: NDArray[np.int64], ours: Bools, theirs: Bools, other: str) -> list[Block]:
    mine, images = _accuracy(label, ours, len(names))
    change = mine - _accuracy(label, theirs, len(names))[0]
    order = [int(k) for k in np.argsort(-change, kind="stable") if images[k] and change[k]]
    gains = [k for k in order if change[k] > 0][:_SHOWN]
    losses = [k for k in order if change[k] < 0][-_SHOWN:]
    up, down = int((change > 0).sum()), int((change < 0).sum())
    total = int((images > 0).sum())
    rest = "; the others stay as they are" if up + down < total else ""
    text = f"Of {total} classes, {up} gain and {down} lose against the {other}{rest}."
    chosen = gains + losses
    if not chosen:
        return [Text(text)]
    fewest = int(images[images > 0].min())
    tones = ["var(--gain)" if change[k] > 0 else "var(--loss)" for k in chosen]
    said = ", ".join(f"{names[k]} {points(float(change[k]))}" for k in [*gains[:3], *losses[-3:]])
    figure = Figure(
        f"Largest gains and losses against the {other}",
        f"Change of the accuracy per class in points, student less {other}: {said}.",
        [bars("change", [names[k] for k in chosen], [float(change[k]) for k in chosen], tones,
              hovertemplate="%{customdata[0]}: %{x:+.1f} points<extra></extra>")],
        {"yaxis": names_axis([names[k] for k in chosen]), "xaxis": {"title": {"text": "points"}},
         "hovermode": "closest", "showlegend": False},
        f"The student's accuracy less the {other}'s. The smallest class has {fewest} validation images, where one "
        f"image is {100 / fewest:.1f} points: the ends of such a list are partly chance.",
        height=90 + 24 * len(chosen),
    )  # fmt: skip
    return [Text(text), figure]


def _every(names: Sequence[str], outputs: Outputs, others: dict[str, Bools]) -> Table:
    mine, images = _accuracy(outputs.label, outputs.student_right, len(names))
    theirs = {other: _accuracy(outputs.label, right, len(names))[0] for other, right in others.items()}
    rows = []
    for k in [k for k in range(len(names)) if images[k]][:_TOLD]:
        row = [names[k], str(images[k]), percent(float(mine[k]))]
        for found in theirs.values():
            row += [percent(float(found[k])), points(float(mine[k] - found[k]))]
        rows.append(row)
    heads = ["Images", "Student", *(head for other in theirs for head in (other.capitalize(), "Change"))]
    cut = f", the first {_TOLD} of them" if (images > 0).sum() > _TOLD else ""
    return Table(
        f"Top-1 accuracy of each class{cut}", [Column("Class"), *(Column(h, number=True) for h in heads)], rows
    )


def confusions(run: RunRecord) -> Section:
    """The pairs of classes that the student takes for each other most often, and how often the others do."""
    outputs = run.outputs
    if outputs is None:
        return Section("confusions", "Confusions", [Note(_why(run))])
    names = class_names(run, outputs)
    counts = {"Student": _pairs(outputs.label, outputs.student, len(names))}
    control = run.control.outputs if run.control else None
    if control is not None and control.same_images(outputs):
        counts["Control"] = _pairs(outputs.label, control.student, len(names))
    if outputs.teacher is not None:
        counts["Teacher"] = _pairs(outputs.label, outputs.teacher, len(names))
    own = counts["Student"]
    if not own:
        return Section("confusions", "Confusions", [Text("The student has every validation image right.")])
    images = np.bincount(outputs.label, minlength=len(names))
    most = sorted(own, key=lambda pair: (-own[pair], pair))[:_PAIRS]
    rows = [
        [
            names[pair // len(names)], names[pair % len(names)], str(images[pair // len(names)]),
            *(str(found.get(pair, 0)) for found in counts.values()),
        ]
        for pair in most
    ]  # fmt: skip
    columns = [Column("Is"), Column("Taken for"), Column("Images of it", number=True)]
    columns += [Column(name, number=True) for name in counts]
    text = (
        "What the student takes for what, the most frequent first, and how often the other networks do the same. "
        "A mistake that the teacher makes too may have been learnt from it."
    )
    return Section("confusions", "Confusions", [Text(text), Table("Confused most often, in images", columns, rows)])


def _pairs(label: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> dict[int, int]:
    """How often a class is taken for another: by ``label * classes + predicted``, without the right ones."""
    wrong = label != predicted
    codes, counts = np.unique(label[wrong] * classes + predicted[wrong], return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))
