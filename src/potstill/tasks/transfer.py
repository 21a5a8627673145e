"""Without labels: how closely a student follows its teacher on images that it was not trained on."""

from collections.abc import Iterable

import torch

from potstill.batch import Batch
from potstill.networks.teacher import Teacher
from potstill.training.distributed import Processes
from potstill.training.step import TrainingStep

__all__ = ["evaluate_transfer"]


@torch.no_grad()
def evaluate_transfer(
    step: TrainingStep, teacher: Teacher | None, steps: Iterable[list[Batch]], processes: Processes
) -> dict[str, float]:
    """The mean of each term of the objective over all processes' images.

    Args:
        step: student and objective; put into eval mode here.
        teacher: None where no term reads one.
        steps: an evaluation loader's epoch; fillers (batches of weight 0) are passed over.
        processes: over which the means are taken.

    Returns:
        ``val_pefd`` and so on, by the terms' names, and ``val_total``.
    """
    step.eval()
    names = [*step.objective.weights, "total"]
    reads = step.objective.needs.on_demand("teacher")
    sums = torch.zeros(len(names) + 1, device=processes.device)  # the last counts images
    for batches in steps:
        for batch in batches:
            if batch.weight == 0:
                continue
            losses, _ = step(batch, teacher(batch.images, **reads) if teacher else None)
            sums[:-1] += torch.stack([losses[name] for name in names]) * len(batch)
            sums[-1] += len(batch)
    *totals, count = processes.sum(sums).tolist()
    return {f"val_{name}": total / count for name, total in zip(names, totals, strict=True)}
