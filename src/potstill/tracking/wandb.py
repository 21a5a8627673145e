"""Weights & Biases: offline in the run's own folder, unless WANDB_MODE says otherwise."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from potstill.errors import RecipeError
from potstill.tracking.tracker import TrackedRun

__all__ = ["RunTracker", "check"]


def check() -> None:
    """Look for a login where WANDB_MODE asks for the server: without one, wandb would ask for a key and wait.

    Raises:
        RecipeError: for the online mode without a login.
    """
    import wandb

    if _mode() not in ("offline", "disabled") and not wandb.login(prompt=False):
        raise RecipeError(
            f"WANDB_MODE={_mode()} needs a login, and there is none; run `wandb login`, or leave WANDB_MODE out to "
            "write to the run's folder, from where `wandb sync` sends it later."
        )


class RunTracker:
    """A W&B run. Of the machine, the code, the packages and the terminal nothing is collected."""

    _run: Any

    def begin(self, run: TrackedRun) -> str:
        """Open it under an identifier of its own, under which it also goes on."""
        import wandb

        key = run.key or uuid.uuid4().hex[:8]
        run.folder.mkdir(parents=True, exist_ok=True)  # in a folder that is not there it would take a temporary one
        self._run = wandb.init(
            project=run.project, name=run.name, id=key, dir=str(run.folder), mode=_mode(),
            config={name.replace(".", "/"): value for name, value in run.recipe.items()},
            resume="allow", reinit="create_new", save_code=False,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_save_requirements=False,
                x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            ),
        )  # fmt: skip
        # W&B's own step counts rows and refuses any that it has passed; ours is a value like any other.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return key

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values over to W&B's own process."""
        self._run.log({**values, "step": step})

    def finish(self, result: Mapping[str, float] | None) -> None:
        """Write the result into the summary, where there is one, and wait for what is not written yet."""
        if result:
            self._run.summary.update(dict(result))
        self._run.finish(exit_code=1 if result is None else 0)


def _mode() -> Any:
    return os.environ.get("WANDB_MODE") or "offline"
