"""One self-contained page about a run, or about several: the verdict first, then what explains it."""

from potstill.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
