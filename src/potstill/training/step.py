"""What is computed for one batch: the student, and every term of the objective."""

from collections.abc import Collection
from typing import Self

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.methods.objective import Objective
from potstill.networks.features import Features
from potstill.networks.tap import Tapped
from potstill.training.freeze import standing_still

__all__ = ["TrainingStep", "seed_of"]


class TrainingStep(nn.Module):
    """Student and objective as one module, so that DDP and the optimiser see all that trains, and never the teacher.

    Args:
        student: the network that learns.
        objective: the weighted sum of methods, with their projectors.
        autocast: the dtype that the student computes in; None for float32. Losses are float32 always.
        compiled: run the student through ``torch.compile``.
        channels_last: the memory format of the images; the student's weights should have the same.
        trains: names of the student's parameters and buffers that train; None for all. What holds none of them is in
            evaluation mode always; which parameters ask for a gradient is for the caller to set.

    Attributes:
        teacher_reads: what the teacher is asked for beside logits and embedding, as its keyword arguments.
    """

    def __init__(
        self,
        student: Tapped,
        objective: Objective,
        *,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        channels_last: bool = True,
        trains: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self._still = [] if trains is None else standing_still(student.network, trains)
        self.student = student
        self.objective = objective
        self._autocast = autocast
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self._read = objective.needs.on_demand("student")
        self.teacher_reads = objective.needs.on_demand("teacher")
        student.open(**self._read)
        # The compiled callable is kept outside the module tree: state dicts stay plain. Batches come in two sizes
        # (an epoch's last one is short); static shapes make one graph for each.
        self.__dict__["_forward"] = torch.compile(student, dynamic=False) if compiled else student

    def train(self, mode: bool = True) -> Self:
        """As of any module; what stands still stays in evaluation mode."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def forward(
        self, batch: Batch, teacher: Features | None, eager: bool = False
    ) -> tuple[dict[str, Tensor], Features]:
        """The objective's terms with their weighted "total", and the student's features.

        Args:
            batch: what both networks see.
            teacher: the teacher's features of that batch.
            eager: go round the compiled graph, which hides how the logits depend on the embedding; the
                gradient's shares are measured so.
        """
        network = self.student if eager else self.__dict__["_forward"]
        with torch.autocast(batch.images.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            student: Features = network(batch.images.contiguous(memory_format=self._memory), **self._read)
        return self.objective(student, teacher, batch), student


def seed_of(*numbers: int) -> int:
    """The seed of a step's random numbers, from the run's seed, the step's position and the process: far from others.

    Example:
        >>> seed_of(0, 1, 0) == seed_of(0, 0, 1)
        False
    """
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed
