"""The trackers by name. Each one's package is imported only where a recipe asks for it."""

import importlib
import os
from collections.abc import Iterable

from potstill.errors import RecipeError
from potstill.tracking.tracker import Tracker

__all__ = ["TRACKERS", "make_tracker", "must_be_there"]

TRACKERS = {
    "tensorboard": "torch.utils.tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
"""The module that each of them is imported as."""

# Nobody is told of anything but the run: each of these packages reports on its own use unless it is told not to. What
# the user has set stays as it is.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # A server that is gone is asked twice, for some seconds: training stands still meanwhile.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def must_be_there(names: Iterable[str]) -> None:
    """Import the packages of the trackers that are asked for, before anything is trained.

    Args:
        names: out of :data:`TRACKERS`.

    Raises:
        RecipeError: for one that is not installed, or cannot be used as it is set up.
    """
    for name in names:
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        try:
            importlib.import_module(TRACKERS[name])
        except ImportError as error:
            raise RecipeError(
                f"log.track names {name}, which cannot be imported ({error}); pip install 'potstill[track]', or take "
                "it out."
            ) from None
        importlib.import_module(f"potstill.tracking.{name}").check()


def make_tracker(name: str) -> Tracker:
    """A tracker for one run, by its name."""
    made: Tracker = importlib.import_module(f"potstill.tracking.{name}").RunTracker()
    return made
