"""A report's page from the runs that it is about."""

from collections.abc import Sequence

from potstill.errors import RunError
from potstill.headline import HEADLINES
from potstill.report.blocks import Block, Grid, Page, Part, Section, Tabs
from potstill.report.class_values import class_values
from potstill.report.classes import confusions, per_class
from potstill.report.comparison import comparison, run_names
from potstill.report.costs import cost
from potstill.report.curves import curves, measures
from potstill.report.maps import embedding_map
from potstill.report.pictures import pictures
from potstill.report.provenance import provenance
from potstill.report.reading import RunRecord
from potstill.report.roc import roc
from potstill.report.verdict import verdict

__all__ = ["compose"]


def compose(runs: Sequence[RunRecord]) -> Page:
    """The page of one run, or of several beside each other.

    Raises:
        RunError: for several of different tasks.
    """
    if len(runs) == 1:
        return Page(_title(runs[0]), _subtitle(runs[0]), _sections(runs[0]), runs[0].banner)
    headlines = {run.headline for run in runs}
    if len(headlines) > 1:
        shorts = ", ".join(sorted(headline.short for headline in headlines))
        raise RunError(f"These runs are of several tasks, judged by {shorts}, which do not compare; give one task's.")
    tabs: list[tuple[str, Sequence[Block]]] = [
        (name, [Part(section.title, section.blocks) for section in _sections(run)])
        for name, run in zip(run_names(runs), runs, strict=True)
    ]
    each = Section("runs", "Each run", [Tabs("Runs", tabs)])
    return Page(f"{len(runs)} runs compared", _data(runs), [*comparison(runs), each])


def _sections(run: RunRecord) -> list[Section]:
    if run.headline.proportion:
        told = [measures(run), per_class(run), confusions(run), embedding_map(run)]
    else:
        told = [*_measured(run), *_of_its_task(run), *([embedding_map(run)] if run.outputs else [])]
    return [verdict(run), curves(run), *told, cost(run), provenance(run)]


def _measured(run: RunRecord) -> list[Section]:
    """The measures, where the run has some of them."""
    found = measures(run)
    return [found] if any(isinstance(block, Grid) for block in found.blocks) else []


def _of_its_task(run: RunRecord) -> list[Section]:
    if run.headline is HEADLINES["faces"]:
        return [roc(run.curves)]
    return [class_values(run.per_class, run.headline), pictures(run.pictures, run.classes)]


def _title(run: RunRecord) -> str:
    return f"{run.student} from {run.teacher}" if run.taught else f"{run.student}, trained on labels"


def _subtitle(run: RunRecord) -> str:
    epochs = f"{run.planned} epochs" if run.planned else ""
    seed = "" if run.seed is None else f"seed {run.seed}"
    return ", ".join(part for part in (run.data, " + ".join(run.terms), epochs, seed) if part)


def _data(runs: Sequence[RunRecord]) -> str:
    return ", ".join(dict.fromkeys(run.data for run in runs))
