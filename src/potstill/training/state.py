"""What a checkpoint holds, and how a loop takes it up again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from potstill.errors import RunError

if TYPE_CHECKING:
    from potstill.training.loop import Loop

__all__ = ["restore", "snapshot", "weights_norm"]


def snapshot(loop: "Loop") -> dict[str, Any]:
    """The loop's state as tensors and plain values; every process must call, the main one's is the state."""
    return {
        "phase": loop.settings.phase,
        "epoch": loop.epoch,
        "done": loop.done,
        "seconds": loop.seconds_so_far(),
        "history": loop.history,
        "times": loop.clock.totals(),
        "student": loop.step.student.network.state_dict(),
        "objective": loop.step.objective.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "average": loop.average.state_dict() if loop.average else None,
        "tally": loop.tally.state(),
        "skipped": loop.processes.gathered(loop.skipped),
    }


def restore(loop: "Loop", state: dict[str, Any], path: Path) -> None:
    """Take up a state: of this phase all of it, of the phase before what the student has learned in it.

    Where a later phase wrote it, this one is over and leaves the rest to that.

    Raises:
        RunError: for a state of another shape; names its ``path``.
    """
    try:
        _load(loop, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # another shape of state, or of the network's
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0].rstrip(":.")
        raise RunError(
            f"The checkpoint {path} does not fit this run ({reason}): another version of Potstill or of the "
            "network wrote it. Go on with that version, or give another run= to start again."
        ) from error


def weights_norm(module: nn.Module) -> dict[str, float]:
    """The norm of all parameters as ``weights``: not finite where one of them is not. Waits for the device."""
    norms = torch._foreach_norm([p.detach() for p in module.parameters()])
    return {"weights": torch.stack(norms).sum().item()}


def _load(loop: "Loop", state: dict[str, Any]) -> None:
    loop.epoch, loop.done, loop.seconds = state["epoch"], state["done"], state["seconds"]
    loop.history = state["history"]
    loop.clock.restore(state["times"])
    own = state["phase"] == loop.settings.phase
    if not own and loop.epoch > loop.settings.begin:
        loop.epoch = loop.settings.epochs
        return
    loop.step.student.network.load_state_dict(state["student"])
    if own or loop.settings.takes_objective:
        loop.step.objective.load_state_dict(state["objective"])
    if loop.average is not None:
        loop.average.load_state_dict(state["average"])
    for found in state["skipped"]:
        for name, images in found.items():
            loop.skipped.setdefault(name, {}).update(images)
    if not own:
        return
    loop.optimizer.load_state_dict(state["optimizer"])
    if loop.settings.fp16:
        loop.scaler.load_state_dict(state["scaler"])
    loop.tally.restore(state["tally"])
