"""A report's file."""

from collections.abc import Sequence
from pathlib import Path

from potstill.errors import RunError, nearest
from potstill.files import write_whole
from potstill.report.blocks import Page
from potstill.report.compose import compose
from potstill.report.html import render_html
from potstill.report.markdown import render_markdown
from potstill.report.reading import read_run
from potstill.report.rows import render_csv
from potstill.report.study_page import study_csv, study_page
from potstill.study.record import STUDY_FILE, read_record

__all__ = ["FORMATS", "write_report"]

FORMATS = ("html", "md", "csv")


def write_report(folders: Sequence[str | Path], out: str | Path | None = None, format: str = "html") -> Path:
    """Write the report of a run, of several beside each other, or of a study, as one file.

    Args:
        folders: the runs', or the study's.
        out: the file; None for ``report.html`` (or ``.md``, ``.csv``) in the first run's folder.
        format: "html", "md" or "csv".

    Returns:
        The file's path.

    Raises:
        RunError: where there is no run, a file of it is damaged, a study is given with something else, or the report
            cannot be written.
    """
    if format not in FORMATS:
        raise RunError(f"There is no format {format!r}; expected html, md or csv.{nearest(format, FORMATS)}")
    if not folders:
        raise RunError("A report is of one run or more; none is given.")
    studies = [folder for folder in folders if (Path(folder) / STUDY_FILE).is_file()]
    if studies and len(folders) > 1:
        raise RunError(f"{studies[0]} is a study, which has a report of its own; give it alone.")
    page: Page
    if studies:
        record = read_record(Path(studies[0]))
        page, rows = study_page(record), study_csv(record)
    else:
        runs = [read_run(folder) for folder in folders]
        page, rows = compose(runs), render_csv(runs)
    path = Path(out) if out is not None else Path(folders[0]) / f"report.{format}"
    if path.is_dir():
        raise RunError(f"{path} is a folder; give a file to write the report to.")
    if not path.parent.is_dir():
        raise RunError(f"There is no folder {path.parent} to write {path.name} into.")
    text = rows if format == "csv" else render_html(page) if format == "html" else render_markdown(page)
    write_whole(path, text)
    return path
