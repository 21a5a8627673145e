"""Means of the objective's terms, kept on the device and read only when they are logged."""

import torch
from torch import Tensor

from potstill.training.distributed import Processes

__all__ = ["Tally"]


class Tally:
    """Sums of named losses since an epoch began, and since they were last looked at.

    Args:
        names: of the losses, in a fixed order.
        processes: over whose batches the means are taken.

    Example:
        >>> tally = Tally(["ce"], Processes(torch.device("cpu")))
        >>> for value in (2.0, 4.0):
        ...     tally.add({"ce": torch.tensor(value)}, weight=1.0)
        ...     tally.step()
        >>> tally.recent(), tally.recent(), tally.epoch()
        (({'ce': 3.0}, 2), ({}, 0), {'ce': 3.0})
    """

    def __init__(self, names: list[str], processes: Processes) -> None:
        self._names = names
        self._processes = processes
        # float64 keeps a long epoch's sums exact enough to be the same after a resume (Metal has none).
        dtype = torch.float32 if processes.device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(names) + 1, dtype=dtype, device=processes.device)  # the last counts steps
        self._seen = self._sums.clone()

    def add(self, losses: dict[str, Tensor], weight: float) -> None:
        """Take in one micro-batch's losses with its part of the step."""
        values = torch.stack([losses[name].detach() for name in self._names])
        self._sums[:-1] += values.to(self._sums.dtype) * weight

    def step(self) -> None:
        """One optimiser step is complete."""
        self._sums[-1] += 1

    def recent(self) -> tuple[dict[str, float], int]:
        """The means since the last call, and over how many steps. Waits for the device and the other processes."""
        values = self._processes.sum(self._sums - self._seen).tolist()
        self._seen.copy_(self._sums)
        return self._means(values), round(values[-1] / self._processes.world)

    def epoch(self) -> dict[str, float]:
        """The means since the last reset. Waits likewise."""
        return self._means(self._processes.sum(self._sums).tolist())

    def reset(self) -> None:
        """A new epoch begins."""
        self._sums.zero_()
        self._seen.zero_()

    def state(self) -> list[Tensor]:
        """What resuming needs, summed over the processes; every process must call."""
        return [self._processes.sum(self._sums), self._processes.sum(self._seen)]

    def restore(self, state: list[Tensor]) -> None:
        """Take up where :meth:`state` left; the first process goes on with the whole sum."""
        if self._processes.main:
            self._sums.copy_(state[0])
            self._seen.copy_(state[1])

    def _means(self, values: list[float]) -> dict[str, float]:
        return {name: value / values[-1] for name, value in zip(self._names, values[:-1], strict=True) if values[-1]}
