"""trackio: a local SQLite file a project, which `trackio show` serves."""

import contextlib
import contextvars
import io
from collections.abc import Mapping
from typing import Any

from potstill.errors import RunError
from potstill.tracking.tracker import TrackedRun

__all__ = ["RunTracker", "check"]


def check() -> None:
    """Nothing: it writes files, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says where else to."""


class RunTracker:
    """A trackio run. Nothing about the machine is logged beside the run's own values."""

    _run: Any
    _last = 0

    def begin(self, run: TrackedRun) -> str:
        """Open it, or the newest one of this name, which must be the one that was begun."""
        import trackio

        def open_run() -> Any:
            return trackio.init(
                run.project, name=run.name, config=dict(run.recipe), resume="must" if run.key else "never",
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

        # trackio ends the run at hand when another begins, and students side by side are several at a time. What is at
        # hand is a context variable, so each begins in a context of its own.
        with _unseen():
            self._run = contextvars.Context().run(open_run)
        if run.key and self._run.id != run.key:
            raise RunError(f"trackio's newest run {run.name!r} of the project {run.project!r} is another run's")
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values over; trackio writes them within a second."""
        self._last = step
        self._run.log(dict(values), step=step)

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Log the result, where there is one, and wait for what is not written yet."""
        if result:
            self._run.log(dict(result), step=self._last)
        with _unseen():
            self._run.finish()


def _unseen() -> contextlib.AbstractContextManager[Any]:
    """What trackio prints would go through the progress bar."""
    return contextlib.redirect_stdout(io.StringIO())
