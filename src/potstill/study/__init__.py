"""Many runs as one table: a grid of recipes, run side by side, with seeds and a control."""

from potstill.study.file import Paper, StudyFile, load_study
from potstill.study.plan import Cell, Job, Plan, plan_study
from potstill.study.record import Record, read_record, write_record
from potstill.study.run import Status, run_study
from potstill.study.statistics import Difference, Spread, difference, spread
from potstill.study.table import Entry, Reader, SeedRun, Table, read_table
from potstill.study.workers import Ended, LocalWorkers, Place, Workers, local_places

__all__ = [
    "Cell", "Difference", "Ended", "Entry", "Job", "LocalWorkers", "Paper", "Place", "Plan", "Reader", "Record",
    "SeedRun", "Spread", "Status", "StudyFile", "Table", "Workers", "difference", "load_study", "local_places",
    "plan_study", "read_record", "read_table", "run_study", "spread", "write_record",
]  # fmt: skip
