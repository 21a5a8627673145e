"""What "auto" means for the settings of speed: the machine and the run decide, and a run that has begun keeps to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.networks.processor import native_bf16
from potstill.procedures.store_key import views_of
from potstill.procedures.stored import HELD_ON_A_DEVICE, held_bytes
from potstill.store import Store
from potstill.store.manifest import MANIFEST_FILE
from potstill.training.distributed import Processes

__all__ = ["autocast_of", "resolve_speed"]

# Compiling takes a minute or two. On CPUs it brings 3 to 6 percent beside bfloat16 and folded batch norms
# (docs/performance.md), which a run of hours would earn back: there it has to be asked for.
_STEPS_WORTH_COMPILING = 5000


def resolve_speed(recipe: Recipe, processes: Processes, images: int, begun: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with its settings of speed said.

    Args:
        recipe: its data section is resolved.
        processes: where it runs.
        images: how many it trains on.
        begun: the recipe of the run that goes on, as plain values: what was chosen then holds, as other settings would
            change the last bits of its weights. None for a new run.

    Raises:
        RecipeError: for a graph that cannot be.
    """
    begun, device = begun or {}, processes.device
    precision, compiled, graph = recipe.precision, recipe.compile, recipe.graph
    if precision == "auto":
        precision = begun.get("precision", "bf16" if native_bf16(device) else "fp32")
    hindrances = _against_a_graph(recipe.model_copy(update={"precision": precision}), processes)
    if graph == "auto":
        graph = begun.get("graph", not hindrances)
    if graph and hindrances:
        since = ", as which the run has begun," if begun.get("graph") else ""
        raise RecipeError(f"graph=true{since} cannot be: {'; '.join(hindrances)}. Leave it out, or change that.")
    if compiled is True and recipe.task == "detection":
        raise RecipeError("compile=true cannot be with task=detection: a detector's lists change their lengths.")
    if recipe.task == "detection":
        compiled = False
    if compiled == "auto":
        steps = recipe.epochs * -(-images // recipe.batch_size)
        compiled = begun.get("compile", device.type == "cuda" and steps >= _STEPS_WORTH_COMPILING)
    return recipe.model_copy(update={"precision": precision, "compile": compiled, "graph": graph})


def _against_a_graph(recipe: Recipe, processes: Processes) -> list[str]:
    """What stands against a step as one CUDA graph, a sentence's part each."""
    reasons = {
        f"it runs on {processes.device.type}, and CUDA graphs are for cuda": processes.device.type != "cuda",
        "data.loader=streaming makes batches on the host": recipe.data.loader == "streaming",
        "several processes exchange their gradients between the kernels": processes.world > 1,
        f"accumulate={recipe.accumulate} takes several batches a step": recipe.accumulate > 1,
        "fp16's loss scale is looked at by the host in each step": recipe.precision == "fp16",
        "mixup and CutMix draw on the host": recipe.data.mixup > 0 or recipe.data.cutmix > 0,
        "several students go side by side": bool(recipe.students),
        "a store is filled by the host": recipe.store.fill,
        "vkd's whitening cannot be recorded": _argument(recipe, "vkd", "normalisation") == "whitening",
        "orthogonal projectors cannot be recorded": _argument(recipe, "pefd", "constraint") is not None,
        "the store is too large for the device": _reads_on_the_host(recipe),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _argument(recipe: Recipe, method: str, name: str) -> object:
    term = recipe.objective.get(method)
    return term.get(name) if isinstance(term, dict) else None


def _reads_on_the_host(recipe: Recipe) -> bool:
    """Whether the recipe's store is larger than what is held on a device, so that the host reads its rows."""
    if recipe.teacher is None or recipe.teacher.store is None or recipe.store.fill:
        return False
    there = (Path(recipe.teacher.store) / MANIFEST_FILE).exists()  # one that is missing is told of elsewhere
    return there and held_bytes(Store.open(recipe.teacher.store), views_of(recipe)) > HELD_ON_A_DEVICE


def autocast_of(recipe: Recipe) -> torch.dtype | None:
    """What the student computes in under autocast; None for float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
