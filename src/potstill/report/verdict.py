"""The verdict: the student against the same network alone, and against its teacher."""

from dataclasses import dataclass

from potstill.headline import Headline
from potstill.quantities import bytes_of, scaled
from potstill.report.blocks import Block, Card, Cards, Column, Figure, Note, Section, Table, Text
from potstill.report.figures import colour, shown
from potstill.report.numbers import between, counted, percent, points, ratio
from potstill.report.reading import RunRecord
from potstill.report.run_files import number
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

_NO_INTERVAL = (
    "The differences have no interval: {short} is no part of the images that a network has right, and one run says "
    "nothing of another seed. Several seeds do: potstill report of their folders, or a study."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The student's headline value less another network's.

    Attributes:
        other: "control" or "teacher".
        value: in points.
        interval: its 95 % interval; None of a value for which one run gives none.
        how: what the interval is and what is not in it; empty without one.
    """

    other: str
    value: float
    interval: Interval | None = None
    how: str = ""

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and zero lies outside."""
        return self.interval is not None and self.interval.clear

    @property
    def ends(self) -> str:
        """The interval as a sentence names it, in brackets; nothing without one."""
        return "" if self.interval is None else f" (95 % interval {between(self.interval)})"


def against(run: RunRecord, other: str) -> Comparison | None:
    """The student of a run against its "control" or its "teacher"; None where one of the two was not measured."""
    paired = _paired(run, other)
    if paired is not None:
        return paired
    rows, headline = run.rows, run.headline
    ours, theirs = (number(rows.get(name, {}), headline.key) for name in ("student", other))
    if ours is None or theirs is None:
        return None
    if not headline.proportion:
        return Comparison(other, ours - theirs)
    if not run.images:
        return None
    n = run.images
    interval = unpaired_difference(ours * n / 100, n, theirs * n / 100, n)
    return Comparison(other, interval.value, interval, _UNPAIRED.format(images=counted(n)))


def _paired(run: RunRecord, other: str) -> Comparison | None:
    """From the answers of both to the same images."""
    if run.outputs is None or not run.headline.proportion:
        return None
    theirs = run.outputs.teacher_right
    if other == "control":
        control = run.control.outputs if run.control else None
        theirs = control.student_right if control is not None and control.same_images(run.outputs) else None
    if theirs is None or not theirs.size:
        return None
    interval = paired_difference(run.outputs.student_right, theirs)
    return Comparison(other, interval.value, interval, _PAIRED.format(images=counted(theirs.size)))


def verdict(run: RunRecord) -> Section:
    """What was distilled, what came of it, and what it costs."""
    found = {other: against(run, other) for other in ("control", "teacher")}
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(run, found)]
    cards = _cards(run, found)
    blocks += [Cards(cards)] if len(cards) > 1 else []  # one alone says what the sentence says
    blocks += [plot] if (plot := _accuracies(run)) else []
    blocks.append(_table(run))
    ways = dict.fromkeys(c.how for c in found.values() if c is not None and c.how)
    for how in ways:
        others = " and the ".join(c.other for c in found.values() if c is not None and c.how == how)
        blocks.append(Note(f"The interval of the difference to the {others} {how}"))
    if not ways and any(found.values()):
        blocks.append(Note(_NO_INTERVAL.format(short=run.headline.short)))
    blocks += [Note(sentence) for sentence in _missing(run)]
    return Section("verdict", "Verdict", blocks)


def _sentences(run: RunRecord, found: dict[str, Comparison | None]) -> list[str]:
    control, teacher = found["control"], found["teacher"]
    said = []
    if control is not None:
        said.append(_against_control(control, run.headline))
    if teacher is not None:
        value = teacher.value
        of = "" if run.headline.proportion else f" of {run.headline.short}"
        where = f"{abs(value):.2f} points{of} {'above' if value > 0 else 'below'}"
        place = "as good as" if abs(value) < 0.005 else where
        cost = _cheaper(run)
        subject = "It" if said else "The student"
        said.append(f"{subject} is {place} its teacher{teacher.ends}{cost}.")
    if not said and (reached := number(run.rows["student"], run.headline.key)) is not None:
        judged = f"reaches {percent(reached)} {run.headline.short} on the validation images"
        right = f"has {percent(reached)} of the validation images right"
        said.append(f"The student {right if run.headline.proportion else judged}.")
    return said


def _against_control(found: Comparison, headline: Headline) -> str:
    interval = found.interval
    better = "better" if found.value > 0 else "worse"
    value = f"{abs(found.value):.2f}"
    if interval is None:
        if abs(found.value) < 0.005:
            return f"The student has the {headline.short} of the same network trained without the teacher."
        than = f"points of {headline.short} {better} than the same network trained without the teacher"
        return f"The student is {value} {than}, in one run of each."
    ends = f"95 % interval {between(interval)}"
    if not interval.clear:
        return (
            f"No clear difference to the same network trained without the teacher: {points(interval.value)} points, "
            f"and the interval holds zero ({ends})."
        )
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
    rows, headline = run.rows, run.headline
    student, teacher = rows["student"], rows.get("teacher", {})
    value = number(student, headline.key)
    cards = []
    if value is not None:
        ends = wilson(value * run.images / 100, run.images) if run.images and headline.proportion else None
        label, detail = f"Student, {headline.short}", f"95 %: {between(ends, signed=False)}" if ends else ""
        cards.append(Card(label, percent(value), detail))
    for other, comparison in found.items():
        if comparison is not None:
            better = "good" if comparison.value > 0 else "bad"
            tone = better if comparison.clear and other == "control" else ""
            detail = f"95 %: {between(comparison.interval)}" if comparison.interval else ""
            cards.append(Card(f"Against the {other}", f"{points(comparison.value)} points", detail, tone))
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
    rows = [(name, number(row, run.headline.key)) for name, row in run.rows.items()]
    measured = [(name, value) for name, value in rows if value is not None]
    if len(measured) < 2 or not run.images or not run.headline.proportion:
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
        f"{run.headline.long} with 95 % intervals", f"{run.headline.many} with their intervals: {said}.", data,
        {
            "xaxis": {"ticksuffix": " %"}, "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
            "hovermode": "closest",
        },
        "Each interval is of one network by itself (Wilson's). Two that overlap may still differ: on the same "
        "images it is the difference above that counts.",
        height=90 + 44 * len(measured),
    )  # fmt: skip


def _table(run: RunRecord) -> Table:
    names, headline = {"student": run.student, "control": run.student, "teacher": run.teacher}, run.headline
    keys = [headline.key, *headline.further(run.rows.values())]
    rows = [
        [
            name, names.get(name, ""), *(percent(number(row, key)) for key in keys),
            counted(number(row, "parameters")), scaled(number(row, "macs")), _milliseconds(number(row, "latency_ms")),
            bytes_of(number(row, "bytes")),
        ]
        for name, row in run.rows.items()
    ]  # fmt: skip
    heads = (*map(headline.head, keys), "Parameters", "Multiply-adds", "Latency", "Size")
    columns = [Column("Network"), Column("Model"), *(Column(head, number=True) for head in heads)]
    return Table("The networks, on this run's validation images and machine", columns, rows)


def _missing(run: RunRecord) -> list[str]:
    """What cannot be compared, and why."""
    said = []
    rows, headline = run.rows, run.headline
    if number(rows["student"], headline.key) is None:
        why = "no evaluation is done yet" if run.result is None else "its data have no labels, or no validation images"
        said.append(f"There is no {headline.noun}: {why}.")
    elif not run.taught:
        said.append("This run has no teacher: nothing is compared.")
    elif "control" not in rows:
        said.append(
            "There is no control, so nothing here says what the teacher is worth: run it again with control=true, "
            "which also trains the same student on labels alone."
        )
    elif number(rows["control"], headline.key) is None:
        said.append("The control has not been evaluated yet.")
    elif run.control is not None and run.control.result is None:
        said.append(f"The control is not finished: its {headline.noun} is of its last evaluation so far.")
    best = (run.result or {}).get("best")
    best = best if isinstance(best, dict) else {}
    most, last = number(best, headline.key), number(rows["student"], headline.key)
    if most is not None and last is not None and most - last >= 0.005:
        said.append(
            f"Epoch {counted(number(best, 'epoch'))} was the best one, with {percent(most)}. The last one counts here: "
            "the best is chosen by the very images that it is measured on."
        )
    if run.taught and run.result is not None and number(rows.get("teacher", {}), headline.key) is None:
        why = ": its classes are not known to be those of the data" if headline.proportion else " on these images"
        said.append(f"The teacher was not evaluated{why}.")
    return said
