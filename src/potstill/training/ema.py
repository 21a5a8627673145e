"""A moving average of the student's weights, which is then what is evaluated and shipped."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    """``average = decay * average + (1 - decay) * weights`` after each step, batch norms' statistics included.

    Args:
        network: copied; the copy is the average.
        decay: the part that stays, for instance 0.999.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._averaged.eval()

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step's weights in."""
        self._averaged.update_parameters(network)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left."""
        self._averaged.load_state_dict(state)
