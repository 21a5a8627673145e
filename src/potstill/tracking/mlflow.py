"""MLflow: the server that MLFLOW_TRACKING_URI names, else an SQLite file beside the run's folder."""

import logging
import os
import time
from collections.abc import Mapping

from potstill.errors import RecipeError
from potstill.tracking.tracker import TrackedRun

__all__ = ["RunTracker", "check"]

_MOST_PARAMS = 100  # that MLflow takes at once
_LONGEST = 500  # characters of a value that every version of its servers takes


def check() -> None:
    """Look whether the local store can be used; which file it will be is known when a run begins.

    Raises:
        RecipeError: for an MLflow without what its SQLite store needs.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return
    try:
        import alembic
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"log.track names mlflow, whose local store needs SQLAlchemy and Alembic ({error}); pip install "
            "'potstill[track]', or set MLFLOW_TRACKING_URI to a server."
        ) from None
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # the making of each of its tables
    logging.getLogger(alembic.__name__).setLevel(logging.WARNING)


class RunTracker:
    """An MLflow run: metrics, the recipe as parameters. Nothing of the machine, the user or the code is sent."""

    def begin(self, run: TrackedRun) -> str:
        """Create it in the experiment of the project's name, or set it running again."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        run.base.mkdir(parents=True, exist_ok=True)
        base = run.base.resolve()
        self._client = MlflowClient(address or f"sqlite:///{base / 'mlflow.db'}")
        self._last = 0
        if run.key is not None:
            self._client.update_run(run.key, status="RUNNING")
            self._run = run.key
            return run.key
        artifacts = None if address else (base / "mlartifacts").as_uri()
        self._run = self._client.create_run(self._experiment(run.project, artifacts), run_name=run.name).info.run_id
        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.recipe.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _MOST_PARAMS])
        return str(self._run)

    def _experiment(self, project: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(project)
        if found is None:
            try:
                return str(self._client.create_experiment(project, artifact_location=artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(project)
                if found is None:  # else another run has made it in between
                    raise
        return str(found.experiment_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values in one request."""
        from mlflow.entities import Metric

        self._last = step
        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Log the result, where there is one, and say how the run ended."""
        if result:
            self.log(self._last, result)
        self._client.set_terminated(self._run, "KILLED" if result is None else "FINISHED")
