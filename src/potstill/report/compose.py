"""A report's page from the runs that it is about."""

from collections.abc import Sequence

from potstill.report.blocks import Block, Page, Part, Section, Tabs
from potstill.report.classes import confusions, per_class
from potstill.report.comparison import comparison, run_names
from potstill.report.costs import cost
from potstill.report.curves import curves, measures
from potstill.report.maps import embedding_map
from potstill.report.provenance import provenance
from potstill.report.reading import RunRecord
from potstill.report.verdict import verdict

__all__ = ["compose"]


def compose(runs: Sequence[RunRecord]) -> Page:
    """The page of one run, or of several beside each other."""
    if len(runs) == 1:
        return Page(_title(runs[0]), _subtitle(runs[0]), _sections(runs[0]), runs[0].banner)
    tabs: list[tuple[str, Sequence[Block]]] = [
        (name, [Part(section.title, section.blocks) for section in _sections(run)])
        for name, run in zip(run_names(runs), runs, strict=True)
    ]
    each = Section("runs", "Each run", [Tabs("Runs", tabs)])
    return Page(f"{len(runs)} runs compared", _data(runs), [*comparison(runs), each])


def _sections(run: RunRecord) -> list[Section]:
    return [
        verdict(run), curves(run), measures(run), per_class(run), confusions(run), embedding_map(run), cost(run),
        provenance(run),
    ]  # fmt: skip


def _title(run: RunRecord) -> str:
    return f"{run.student} from {run.teacher}" if run.taught else f"{run.student}, trained on labels"


def _subtitle(run: RunRecord) -> str:
    epochs = f"{run.planned} epochs" if run.planned else ""
    seed = "" if run.seed is None else f"seed {run.seed}"
    return ", ".join(part for part in (run.data, " + ".join(run.terms), epochs, seed) if part)


def _data(runs: Sequence[RunRecord]) -> str:
    return ", ".join(dict.fromkeys(run.data for run in runs))
