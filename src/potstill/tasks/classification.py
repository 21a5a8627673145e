"""Classification: how well a network names what it sees."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.batch import Batch
from potstill.networks.features import Features
from potstill.training.distributed import Processes

__all__ = ["Accuracies", "accuracy_counts", "evaluate", "named"]

_TOP = 5


class _Network(Protocol):
    def __call__(self, images: Tensor) -> Features: ...


def accuracy_counts(logits: Tensor, targets: Tensor, top: int = _TOP) -> Tensor:
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


def named(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class that a network names for each image, and how sure it is: the softmax probability of that class.

    Where several logits are equally large, it is the class that :func:`accuracy_counts` ranks first.

    Args:
        logits: ``(B, C)`` float.

    Returns:
        ``(B,)`` int32 and ``(B,)`` float16.

    Example:
        >>> classes, confidence = named(torch.tensor([[0.0, 0.0], [5.0, 0.0]]))
        >>> classes.tolist()[1], [round(value, 2) for value in confidence.tolist()]
        (0, [0.5, 0.99])
    """
    logits = logits.float()
    ranked = logits.topk(min(_TOP, logits.shape[1]), dim=1)
    confidence = (ranked.values[:, 0] - logits.logsumexp(1)).exp()
    return ranked.indices[:, 0].int(), confidence.half()


class Accuracies:
    """Top-1, top-5 and the mean cross entropy of a set of images, added up batch by batch; no batch waits for it.

    Args:
        device: where the sums are.

    Example:
        >>> found = Accuracies(torch.device("cpu"))
        >>> found.add(torch.tensor([[3.0, 1, 2], [3, 1, 2]]), torch.tensor([0, 2]))
        >>> {name: round(value, 2) for name, value in found.values(lambda sums: sums).items()}
        {'top1': 50.0, 'top5': 100.0, 'val_loss': 0.91}
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, device=device)  # as accuracy_counts has them, and the cross entropies

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits ``(B, C)`` and class numbers ``(B,)``."""
        logits = logits.float()
        self._sums[:3] += accuracy_counts(logits, targets)
        self._sums[3] += F.cross_entropy(logits, targets, reduction="sum")

    def values(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``top1`` and ``top5`` in percent, and ``val_loss``; waits for the device.

        Args:
            total: gives a tensor's sum over all processes, such as ``Processes.sum``.
        """
        first, five, count, loss = total(self._sums).tolist()
        return {"top1": 100 * first / count, "top5": 100 * five / count, "val_loss": loss / count}


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
    found = Accuracies(processes.device)
    for batches in steps:
        for batch in batches:
            if batch.weight == 0 or batch.targets is None:
                continue
            with torch.autocast(batch.images.device.type, dtype=autocast, enabled=autocast is not None):
                features = network(batch.images)
            if observe is not None:
                observe(features, batch)
            found.add(features.logits, batch.targets)
    return found.values(processes.sum)
