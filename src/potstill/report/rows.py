"""Runs as CSV: a row for each network of each run, for spreadsheets and other programs."""

import csv
import io
from collections.abc import Sequence

from potstill.report.reading import RunRecord
from potstill.report.run_files import number
from potstill.report.verdict import against

__all__ = ["harmless", "render_csv"]

_NAMES = ("run", "network", "model", "data", "objective", "seed", "epochs", "finished")
_COSTS = ("val_loss", "parameters", "macs", "latency_ms", "bytes")
_COMPARED = ("seconds", "student_less_this", "low", "high")


def render_csv(runs: Sequence[RunRecord]) -> str:
    """Numbers in full, empty where there is none; ``low`` and ``high`` are the 95 % interval of ``student_less_this``.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [row for run in runs for row in run.rows.values()]
    headlines = dict.fromkeys(run.headline for run in runs)
    measured = [*(key for one in headlines for key in (one.key, *one.further(rows))), *_COSTS]
    writer.writerow([*_NAMES, *measured, *_COMPARED])
    for run in runs:
        for name, row in run.rows.items():
            model = run.teacher if name == "teacher" else run.student if name in ("student", "control") else ""
            found = against(run, name) if name in ("control", "teacher") else None
            ends = found.interval if found else None
            interval = [found.value if found else "", *((ends.low, ends.high) if ends else ("", ""))]
            names = (
                str(run.folder),
                name,
                model,
                run.data,
                "+".join(run.terms),
                "" if run.seed is None else str(run.seed),
            )
            seconds = number(run.result or {}, "seconds") if name == "student" else None
            writer.writerow([
                *(harmless(one) for one in names), len(run.epochs), "no" if run.result is None else "yes",
                *(number(row, key) for key in measured), seconds, *interval,
            ])  # fmt: skip
    return text.getvalue()


def harmless(text: str) -> str:
    """A text that no spreadsheet runs.

    Example:
        >>> harmless("=1+1"), harmless("runs/a")
        ("'=1+1", 'runs/a')
    """
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
