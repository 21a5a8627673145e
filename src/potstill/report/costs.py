"""Where a run's time and memory went."""

from potstill.quantities import bytes_of
from potstill.report.blocks import Block, Figure, Note, Section, Text
from potstill.report.figures import colour
from potstill.report.numbers import duration
from potstill.report.reading import RunRecord
from potstill.report.run_files import number
from potstill.training.clock import PARTS

__all__ = ["cost"]

_SAID = {
    "data": "images", "teacher": "teacher", "forward": "student, losses", "backward": "backward",
    "optimizer": "optimiser", "graph": "CUDA graph", "host": "logging, saving", "evaluation": "evaluation",
}  # fmt: skip


def cost(run: RunRecord) -> Section:
    """The section of times and memory."""
    blocks: list[Block] = []
    times = _times(run)
    total = sum(times.values())
    wall = number(run.result or {}, "seconds") or sum(number(row, "seconds") or 0.0 for row in run.epochs)
    if wall:
        per_epoch = f", {duration(wall / len(run.epochs))} an epoch" if run.epochs else ""
        blocks.append(Text(f"The student trained for {duration(wall)}{per_epoch}."))
    if total:
        blocks.append(_figure(times, total))
    else:
        blocks.append(Note("The run has no account of where its time went: it is of a version that did not keep one."))
    memory, device = number(run.result or {}, "memory"), (run.result or {}).get("device")
    if memory:
        blocks.append(Text(f"At its peak it took {bytes_of(memory)} of memory{f' on {device}' if device else ''}."))
    return Section("time", "Where the time went", blocks)


def _times(run: RunRecord) -> dict[str, float]:
    """Seconds by part, of a finished run from its result, of another one from the steps that were logged."""
    told = (run.result or {}).get("times") or {}
    found = {part: number(told, part) or 0.0 for part in PARTS}
    if not any(found.values()):
        before = 0.0
        for row in run.steps:
            parts = row.get("ms") or {}
            count = (number(row, "step") or 0.0) - before
            before = number(row, "step") or before
            for part in PARTS if isinstance(parts, dict) else ():
                found[part] += count * (number(parts, part) or 0.0) / 1000
    return {part: seconds for part, seconds in found.items() if seconds > 0}


def _figure(times: dict[str, float], total: float) -> Figure:
    order = sorted(times, key=lambda part: -times[part])
    parts = {part: 100 * times[part] / total for part in order}
    data = [
        {
            "type": "bar", "orientation": "h", "y": [_SAID[part] for part in order],
            "x": [round(parts[p], 2) for p in order],
            "marker": {"color": [colour("teacher") if part == "teacher" else colour("student") for part in order]},
            "text": [f"{duration(times[part])}, {parts[part]:.0f} %" for part in order], "textposition": "outside",
            "cliponaxis": False, "hovertemplate": "%{y}: %{text}<extra></extra>",
        }
    ]  # fmt: skip
    said = ", ".join(f"{_SAID[part]} {parts[part]:.0f} %" for part in order)
    return Figure(
        "Time by part", f"Of the run's {duration(total)}: {said}.", data,
        {
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "fixedrange": True},
            "xaxis": {"ticksuffix": " %", "range": [0, 1.4 * max(parts.values())]}, "showlegend": False,
            "hovermode": "closest",
        },
        "Every moment of the run belongs to one part: images is the wait for them, teacher its pass or its store's "
        "rows. potstill profile says which settings would shorten it.",
        height=80 + 34 * len(order),
    )  # fmt: skip
