"""A moving average of the student's weights, which is then what is evaluated and shipped."""

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """``average = decay * average + (1 - decay) * weights`` after each step, batch norms' statistics included.

    The first step's weights are taken as they are; counters are copied. Not ``torch.optim.swa_utils.AveragedModel``: it
    counts its steps on the host and sends the count to the device in each, which waits for the device and cannot be
    recorded in a CUDA graph.

    Args:
        network: copied; the copy is the average.
        decay: the part that stays, for instance 0.999.

    Attributes:
        network: the network with the averaged weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self._decay = decay
        self._begun = False

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step's weights in."""
        pairs = [
            (ours.detach(), theirs.detach())
            for ours, theirs in zip(
                [*self.network.parameters(), *self.network.buffers()],
                [*network.parameters(), *network.buffers()],
                strict=True,
            )
        ]
        averaged = [pair for pair in pairs if self._begun and pair[0].is_floating_point()]
        for ours, theirs in pairs:
            if not (self._begun and ours.is_floating_point()):
                ours.copy_(theirs)
        if averaged:
            means, news = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(means, news, 1 - self._decay)
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"network": self.network.state_dict(), "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left."""
        self.network.load_state_dict(state["network"])
        self._begun = state["begun"]
