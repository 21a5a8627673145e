"""What ``result.json`` says of a finished run."""

import hashlib
import math
import resource
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from potstill.config import Recipe
from potstill.headline import headline_of
from potstill.networks.card import read_card
from potstill.plain_json import to_json
from potstill.procedures.data import Data
from potstill.procedures.identity import command, versions
from potstill.training.distributed import Processes
from potstill.training.loop import Loop

__all__ = ["best_epoch", "now", "outcome", "peak_memory", "recipe_hash"]

# What changes no weight, or is told by the hashes of data and teacher that stand beside (as in identity.py).
_ASIDE: dict[str, Any] = {
    **dict.fromkeys(("run", "log", "checkpoint", "device", "control"), True),
    "data": {"workers", "on_error", "path"},
    "teacher": {"weights"},
}


def outcome(
    rows: dict[str, dict[str, Any]], recipe: Recipe, data: Data, loop: Loop, skipped: dict[str, dict[str, str]],
    *, teacher: str | None, begun: str | None, memory: int,
) -> dict[str, Any]:  # fmt: skip
    """The content of the file.

    Args:
        rows: of the networks.
        recipe: of the run.
        data: what it was trained on.
        loop: of its last phase.
        skipped: the damaged images of all processes.
        teacher: its fingerprint; None without one.
        begun: when the run was begun; None where an older version began it.
        memory: see :func:`peak_memory`.
    """
    counts = {name: found - len(skipped[name]) for name, found in zip(("train", "val"), data.found, strict=True)}
    device = loop.processes.device
    return {
        "rows": rows,
        "epochs": recipe.epochs,
        "best": best_epoch(loop.history),
        "seconds": sum(row["seconds"] for row in loop.history),
        "times": {part: round(seconds, 3) for part, seconds in loop.clock.totals().items()},
        "memory": memory,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "begun": begun,
        "finished": now(),
        "command": command(),
        "recipe_hash": recipe_hash(recipe),
        "classes": list(data.classes),
        "data": {"identity": data.identity, **counts, "skipped": skipped},
        "teacher": _teacher(recipe, teacher),
        "teacher_fingerprint": teacher,
        "versions": versions(),
    }


def best_epoch(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch of the highest headline value, the first of equals; None where none was measured.

    It is chosen by the images that it is measured on, so it is no unseen result.

    Example:
        >>> best_epoch([{"epoch": 1}, {"epoch": 2, "top1": 70.0}, {"epoch": 3, "top1": 70.0}])
        {'epoch': 2, 'top1': 70.0}
        >>> best_epoch([{"epoch": 1, "ap": 31.0, "ap50": 60.0}, {"epoch": 2, "ap": 30.0, "ap50": 62.0}])
        {'epoch': 1, 'ap': 31.0}
    """
    key = headline_of(history).key
    judged = [row for row in history if math.isfinite(row.get(key, math.nan))]
    if not judged:
        return None
    best = max(judged, key=lambda row: row[key])  # the first of equals
    return {"epoch": best["epoch"], key: best[key]}


def peak_memory(processes: Processes) -> int:
    """Bytes at the peak, of the process that takes the most: on a GPU what was allocated there, elsewhere resident.

    A process knows one peak: a run's is that of whatever the process has done until then.
    """
    if processes.device.type == "cuda":
        own = torch.cuda.max_memory_allocated(processes.device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(processes.gathered(own))


def recipe_hash(recipe: Recipe) -> str:
    """The SHA-256 of the resolved recipe, but for what changes no weight and for where data and teacher lie.

    Runs with one such hash, one ``data.identity`` and one ``teacher_fingerprint`` trained the same thing.

    Example:
        >>> recipe_hash(Recipe(run="a")) == recipe_hash(Recipe(run="b")) != recipe_hash(Recipe(seed=1))
        True
    """
    content = recipe.model_dump(mode="json", exclude=_ASIDE)
    return hashlib.sha256(to_json(dict(sorted(content.items()))).encode()).hexdigest()


def now() -> str:
    """The time in UTC, as ISO 8601 has it, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _teacher(recipe: Recipe, fingerprint: str | None) -> dict[str, Any] | None:
    if recipe.teacher is None:
        return None
    config = recipe.teacher
    folder = config.weights is not None and Path(config.weights).is_dir()
    model = config.model or (read_card(str(config.weights)).model if folder else None)
    return {
        "model": model, "weights": config.weights, "pretrained": config.pretrained, "fingerprint": fingerprint
    }  # fmt: skip
