"""TensorBoard: event files in the run's own folder."""

from collections.abc import Mapping

from potstill.headline import headline_for
from potstill.tracking.tracker import TrackedRun

__all__ = ["RunTracker", "check"]


def check() -> None:
    """Nothing: it writes files."""


class RunTracker:
    """Scalars, the recipe as hyperparameters and as a table of text, and the result as both."""

    def begin(self, run: TrackedRun) -> str:
        """Write to ``tensorboard/`` below the run's place for trackers."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / "tensorboard"
        # A new run in a folder where one stopped before it had saved anything: what that one wrote counts no more.
        self._writer = SummaryWriter(str(folder), purge_step=0 if run.key is None else None)
        self._last = 0
        if run.key is None:
            judged_by = f"result/student/{headline_for(run.recipe).key}"
            for summary in hparams(dict(run.recipe), {judged_by: 0.0}):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            self._writer.add_text("recipe", _table(run.recipe), 0)
        self._writer.flush()
        return "tensorboard"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each curve, on the disk when this returns: a killed run goes on behind it."""
        self._last = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Write the result, where there is one, and close the file."""
        for name, value in (result or {}).items():
            self._writer.add_scalar(name, value, self._last)
        if result:
            self._writer.add_text("result", _table(result), self._last)
        self._writer.close()


def _table(values: Mapping[str, object]) -> str:
    rows = [f"| {name} | `{str(value).replace('|', '/')}` |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
