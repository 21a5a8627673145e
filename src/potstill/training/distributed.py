"""The processes of a run: one, or as many as ``torchrun`` started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from potstill.errors import PotstillError, RunError

__all__ = ["Processes", "choose_device", "joined"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its run's processes.

    Attributes:
        device: where this process computes.
        rank: its number; 0 writes the run's folder and talks.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes (the tensor itself where there is one process)."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Waits for all of them."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def gathered(self, value: Any) -> list[Any]:
        """A plain value of each process, in the order of their numbers, on all of them. Waits for all of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do something on the main process alone; where it fails there, all processes end.

        Returns:
            What ``work`` returned on the main process, None on the others.

        Raises:
            PotstillError: on the main process, what ``work`` raised. The others leave without a word (``SystemExit``),
                so that the mistake is told once and nobody waits for a process that is gone.
        """
        result, failure = None, None
        if self.main:
            try:
                result = work()
            except PotstillError as error:
                failure = error
        if any(self.gathered(failure is not None)):
            if failure is not None:
                raise failure
            raise SystemExit(2)
        return result

    def align(self, module: nn.Module) -> None:
        """Give every process the main one's buffers (the running statistics of batch norms, which are its own else)."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be the only one; leave them at the end.

    Args:
        device: "auto" (CUDA, then MPS, then the CPU), or a device's name as PyTorch spells it.

    Raises:
        RunError: for a device that this machine does not have.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")), world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Processes(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0, world: int = 1) -> torch.device:
    """The device that a name means here: "auto" is CUDA, then MPS, then the CPU; one a process where there are several.

    Raises:
        RunError: for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"device={name} is no device that PyTorch knows; use auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise RunError(f"device={name} is no device that Potstill trains on; use auto, cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError(f"device={name}: this machine has no CUDA device that PyTorch can use; use device=cpu.")
        index = local_rank if world > 1 else device.index or 0
        if index >= torch.cuda.device_count():
            raise RunError(f"device={name}: device {index} was asked for and there are {torch.cuda.device_count()}.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RunError("device=mps: this machine has no Metal device that PyTorch can use; use device=cpu.")
    return device
