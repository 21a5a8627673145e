"""The verdict: the student against the same network alone, and against its teacher."""

from dataclasses import dataclass

from potstill.report.blocks import Block, Card, Cards, Column, Figure, Note, Section, Table, Text
from potstill.report.figures import colour, shown
from potstill.report.numbers import between, bytes_of, counted, percent, points, ratio, scaled
from potstill.report.reading import RunRecord, number
from potstill.report.statistics import Interval, paired_difference, unpaired_difference, wilson

__all__ = ["Comparison", "against", "verdict"]

_PAIRED = (
    "is Tango's for two networks on the same {images} validation images, which agrees with McNemar's test. It says how "
    "far other images could move the difference; what another seed would change is not in it."
)
_UNPAIRED = (
    "is Newcombe's, which takes the two as measured on different images ({images} each), because their answers to each "
    "image were not kept; so it is wider than it had to be. What another seed would change is not in it."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The student's top-1 accuracy less another network's.

    Attributes:
        other: "control" or "teacher".
        interval: in points; low and high are those of 95 %.
        how: what the interval is and what is not in it.
    """

    other: str
    interval: Interval
    how: str


def against(run: RunRecord, other: str) -> Comparison | None:
    """The student of a run against its "control" or its "teacher"; None where one of the two was not measured."""
    paired = _paired(run, other)
    if paired is not None:
        return paired
    rows = run.rows
    ours, theirs = (number(rows.get(name, {}), "top1") for name in ("student", other))
    if ours is None or theirs is None or not run.images:
        return None
    n = run.images
    interval = unpaired_difference(ours * n / 100, n, theirs * n / 100, n)
    return Comparison(other, interval, _UNPAIRED.format(images=counted(n)))


def _paired(run: RunRecord, other: str) -> Comparison | None:
    """From the answers of both to the same images."""
    if run.outputs is None:
        return None
    theirs = run.outputs.teacher_right
    if other == "control":
        control = run.control.outputs if run.control else None
        theirs = control.student_right if control is not None and control.same_images(run.outputs) else None
    if theirs is None or not theirs.size:
        return None
    interval = paired_difference(run.outputs.student_right, theirs)
    return Comparison(other, interval, _PAIRED.format(images=counted(theirs.size)))


def verdict(run: RunRecord) -> Section:
    """What was distilled, what came of it, and what it costs."""
    found = {other: against(run, other) for other in ("control", "teacher")}
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(run, found)]
    cards = _cards(run, found)
    blocks += [Cards(cards)] if len(cards) > 1 else []  # one alone says what the sentence says
    blocks += [plot] if (plot := _accuracies(run)) else []
    blocks.append(_table(run))
    ways = dict.fromkeys(c.how for c in found.values() if c is not None)
    for how in ways:
        others = " and the ".join(c.other for c in found.values() if c is not None and c.how == how)
        blocks.append(Note(f"The interval of the difference to the {others} {how}"))
    blocks += [Note(sentence) for sentence in _missing(run)]
    return Section("verdict", "Verdict", blocks)


def _sentences(run: RunRecord, found: dict[str, Comparison | None]) -> list[str]:
    control, teacher = found["control"], found["teacher"]
    said = []
    if control is not None:
        said.append(_against_control(control.interval))
    if teacher is not None:
        value = teacher.interval.value
        place = "as good as" if abs(value) < 0.005 else f"{abs(value):.2f} points {'above' if value > 0 else 'below'}"
        cost = _cheaper(run)
        subject = "It" if said else "The student"
        said.append(f"{subject} is {place} its teacher (95 % interval {between(teacher.interval)}){cost}.")
    if not said and (top1 := number(run.rows["student"], "top1")) is not None:
        said.append(f"The student has {percent(top1)} of the validation images right.")
    return said


def _against_control(interval: Interval) -> str:
    ends = f"95 % interval {between(interval)}"
    if not interval.clear:
        return (
            f"No clear difference to the same network trained without the teacher: {points(interval.value)} points, "
            f"and the interval holds zero ({ends})."
        )
    better = "better" if interval.value > 0 else "worse"
    value = f"{abs(interval.value):.2f}"
    return f"The student is {value} points {better} than the same network trained without the teacher ({ends})."


def _cheaper(run: RunRecord) -> str:
    student, teacher = run.rows["student"], run.rows.get("teacher", {})
    parts = [
        ratio(number(student, key), number(teacher, key), less, more)
        for key, less, more in (("parameters", "smaller", "larger"), ("latency_ms", "faster", "slower"))
    ]
    parts = [part for part in parts if part not in ("-", "the same")]
    return f", and {' and '.join(parts)}" if parts else ""


def _cards(run: RunRecord, found: dict[str, Comparison | None]) -> list[Card]:
    rows = run.rows
    student, teacher = rows["student"], rows.get("teacher", {})
    top1 = number(student, "top1")
    cards = []
    if top1 is not None:
        ends = wilson(top1 * run.images / 100, run.images) if run.images else None
        cards.append(Card("Student, top-1", percent(top1), f"95 %: {between(ends, signed=False)}" if ends else ""))
    for other, comparison in found.items():
        if comparison is not None:
            interval = comparison.interval
            tone = ("good" if interval.value > 0 else "bad") if interval.clear and other == "control" else ""
            cards.append(
                Card(f"Against the {other}", f"{points(interval.value)} points", f"95 %: {between(interval)}", tone)
            )
    for label, key, less, more, form in (
        ("Parameters", "parameters", "smaller", "larger", scaled),
        ("Multiply-adds", "macs", "fewer", "more", scaled),
        ("Latency, one image", "latency_ms", "faster", "slower", _milliseconds),
    ):
        if (value := number(student, key)) is not None:
            other = ratio(value, number(teacher, key), less, more)
            cards.append(Card(label, form(value), f"{other} than the teacher" if "times" in other else ""))
    return cards


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _accuracies(run: RunRecord) -> Figure | None:
    """Each network's accuracy with its own interval."""
    rows = [(name, number(row, "top1")) for name, row in run.rows.items()]
    measured = [(name, value) for name, value in rows if value is not None]
    if len(measured) < 2 or not run.images:
        return None
    ends = {name: wilson(value * run.images / 100, run.images) for name, value in measured}
    data = [
        {
            "type": "scatter", "mode": "markers", "name": name, "x": [round(found.value, 3)], "y": [shown(name)],
            "marker": {"size": 11, "color": colour(name)}, "showlegend": False,
            "error_x": {
                "type": "data", "symmetric": False, "array": [round(found.high - found.value, 3)],
                "arrayminus": [round(found.value - found.low, 3)], "color": colour(name), "thickness": 2, "width": 6,
            },
            "hovertemplate": f"{name}: %{{x:.2f}} %, 95 % {between(found, signed=False)}<extra></extra>",
        }
        for name, found in ends.items()
    ]  # fmt: skip
    said = "; ".join(f"{name} {found.value:.2f} %, {between(found, signed=False)}" for name, found in ends.items())
    return Figure(
        "Top-1 accuracy with 95 % intervals", f"Top-1 accuracies with their intervals: {said}.", data,
        {
            "xaxis": {"ticksuffix": " %"}, "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
            "hovermode": "closest",
        },
        "Each interval is of one network by itself (Wilson's). Two that overlap may still differ: on the same "
        "images it is the difference above that counts.",
        height=90 + 44 * len(measured),
    )  # fmt: skip


def _table(run: RunRecord) -> Table:
    names = {"student": run.student, "control": run.student, "teacher": run.teacher}
    rows = [
        [
            name, names.get(name, ""), percent(number(row, "top1")), percent(number(row, "top5")),
            counted(number(row, "parameters")), scaled(number(row, "macs")), _milliseconds(number(row, "latency_ms")),
            bytes_of(number(row, "bytes")),
        ]
        for name, row in run.rows.items()
    ]  # fmt: skip
    heads = ("Top-1", "Top-5", "Parameters", "Multiply-adds", "Latency", "Size")
    columns = [Column("Network"), Column("Model"), *(Column(head, number=True) for head in heads)]
    return Table("The networks, on this run's validation images and machine", columns, rows)


def _missing(run: RunRecord) -> list[str]:
    """What cannot be compared, and why."""
    said = []
    rows = run.rows
    if number(rows["student"], "top1") is None:
        why = "no evaluation is done yet" if run.result is None else "its data have no labels, or no validation images"
        said.append(f"There is no accuracy: {why}.")
    elif not run.taught:
        said.append("This run has no teacher: nothing is compared.")
    elif "control" not in rows:
        said.append(
            "There is no control, so nothing here says what the teacher is worth: run it again with control=true, "
            "which also trains the same student on labels alone."
        )
    elif number(rows["control"], "top1") is None:
        said.append("The control has not been evaluated yet.")
    elif run.control is not None and run.control.result is None:
        said.append("The control is not finished: its accuracy is of its last evaluation so far.")
    best = (run.result or {}).get("best")
    best = best if isinstance(best, dict) else {}
    top1, last = number(best, "top1"), number(rows["student"], "top1")
    if top1 is not None and last is not None and top1 - last >= 0.005:
        said.append(
            f"Epoch {counted(number(best, 'epoch'))} was the best one, with {percent(top1)}. The last one counts here: "
            "the best is chosen by the very images that it is measured on."
        )
    if run.taught and run.result is not None and number(rows.get("teacher", {}), "top1") is None:
        said.append("The teacher was not evaluated: its classes are not known to be those of the data.")
    return said
