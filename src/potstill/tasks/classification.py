"""Classification: how well a network names what it sees."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.batch import Batch
from potstill.networks.features import Features
from potstill.training.distributed import Processes

__all__ = ["accuracy_counts", "evaluate"]


class _Network(Protocol):
    def __call__(self, images: Tensor) -> Features: ...


def accuracy_counts(logits: Tensor, targets: Tensor, top: int = 5) -> Tensor:
    """How many of a batch are right, as a tensor: within the first, within the first ``top``, and how many there are.

    Args:
        logits: ``(B, C)`` float.
        targets: ``(B,)`` int64.
        top: the larger k; with fewer classes than that it is the number of classes.

    Example:
        >>> accuracy_counts(torch.tensor([[3.0, 1, 2], [3, 1, 2]]), torch.tensor([0, 2]), top=2).tolist()
        [1.0, 2.0, 2.0]
    """
    ranked = logits.topk(min(top, logits.shape[1]), dim=1).indices  # (B, top)
    hits = ranked == targets[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum(), hits.new_full((), targets.shape[0], dtype=torch.int64)]).float()


@torch.no_grad()
def evaluate(
    network: nn.Module | _Network,
    steps: Iterable[list[Batch]],
    processes: Processes,
    *,
    autocast: torch.dtype | None = None,
    observe: Callable[[Features, Batch], None] | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, and the mean cross entropy, over all processes' images.

    Args:
        network: gives Features; put into eval mode here where it is a module.
        steps: an evaluation loader's epoch; fillers (batches of weight 0) are passed over.
        processes: over which the counts are summed.
        autocast: the dtype to compute in; None for float32.
        observe: sees every batch with its features.

    Returns:
        ``top1``, ``top5`` (percent) and ``val_loss``.
    """
    if isinstance(network, nn.Module):
        network.eval()
    counts = torch.zeros(4, device=processes.device)
    for batches in steps:
        for batch in batches:
            if batch.weight == 0 or batch.targets is None:
                continue
            with torch.autocast(batch.images.device.type, dtype=autocast, enabled=autocast is not None):
                features = network(batch.images)
            if observe is not None:
                observe(features, batch)
            logits = features.logits.float()
            counts[:3] += accuracy_counts(logits, batch.targets)
            counts[3] += F.cross_entropy(logits, batch.targets, reduction="sum")
    first, five, total, loss = processes.sum(counts).tolist()
    return {"top1": 100 * first / total, "top5": 100 * five / total, "val_loss": loss / total}
