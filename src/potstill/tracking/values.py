"""A run's rows and recipe under the names that trackers group by."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.headline import is_accuracy
from potstill.tracking.tracker import Flat

__all__ = ["epoch_values", "flat_recipe", "flat_result", "step_values"]


def step_values(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of ``steps.jsonl``: ``loss/..``, ``share/..``, ``ms/..``, ``lr`` and ``steps_per_second``.

    Example:
        >>> step_values({"step": 50, "epoch": 0, "lr": 0.1, "ce": 2.0, "share_ce": 1.0, "ms": {"data": 3}})
        {'lr': 0.1, 'loss/ce': 2.0, 'share/ce': 1.0, 'ms/data': 3.0}
    """
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key == "ms":
            found |= {f"ms/{part}": ms for part, ms in value.items()}
        elif key in ("lr", "steps_per_second"):
            found[key] = value
        elif key.startswith("share_"):
            found[f"share/{key.removeprefix('share_')}"] = value
        elif key not in ("step", "epoch"):
            found[f"loss/{key}"] = value
    return _finite(found)


def epoch_values(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of ``metrics.csv``: ``epoch/..`` for mean losses and seconds, ``accuracy/..`` and ``val/..``.

    Example:
        >>> epoch_values({"epoch": 1, "step": 9, "lr": 0.1, "ce": 2.0, "seconds": 3, "top1": 40.0, "val_m_bc": 0.2})
        {'epoch': 1.0, 'epoch/ce': 2.0, 'epoch/seconds': 3.0, 'accuracy/top1': 40.0, 'val/m_bc': 0.2}
    """
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key == "epoch":
            found[key] = value
        elif is_accuracy(key):
            found[f"accuracy/{key}"] = value
        elif key.startswith("val_"):
            found[f"val/{key.removeprefix('val_')}"] = value
        elif key not in ("step", "lr", "phase"):  # each step's rate is there already
            found[f"epoch/{key}"] = value
    return _finite(found)


def flat_result(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """A result's rows: ``result/student/top1`` and so on.

    Example:
        >>> flat_result({"student": {"top1": 70.0, "bytes": 1000}})
        {'result/student/top1': 70.0, 'result/student/bytes': 1000.0}
    """
    return _finite({f"result/{part}/{key}": value for part, row in rows.items() for key, value in row.items()})


def flat_recipe(recipe: Mapping[str, Any]) -> dict[str, Flat]:
    """Every value of a recipe by its key; a list is its JSON, and what says nothing is left out.

    Example:
        >>> flat_recipe({"epochs": 3, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "clip": None, "students": []})
        {'epochs': 3, 'optimizer.lr': 0.1, 'optimizer.betas': '[0.9, 0.99]'}
    """
    return dict(_leaves(recipe, ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Flat]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        if value:
            yield key, json.dumps(value)
    elif value is not None:
        yield key, value


def _finite(found: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn: numbers that are finite."""
    numbers = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
