"""A graph without a GPU: a tape that records and repeats kernels as a CUDA graph does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storages(tree: Any) -> list[Any]:
    return [tensor.untyped_storage() for tensor in tensors(tree)]


class Recorder(TorchDispatchMode):
    """Writes down every kernel with the very tensors that it reads and writes, and puts back what they held."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}  # by storage, of what was there before: what it held
        self._own: dict[int, Any] = {}  # storages made within, kept alive as a graph's memory is

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(function):
            raise RuntimeError("operation not permitted when stream is capturing: the host reads a value")
        for storage in storages((args, kwargs)):
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        found = function(*args, **(kwargs or {}))
        for storage in storages(found):
            if storage._cdata not in self._before:
                self._own[storage._cdata] = storage
        self.kernels.append((function, args, kwargs or {}, found))
        return found

    def put_back(self) -> None:
        for storage, held in self._before.values():
            storage.copy_(held)


class Tape:
    """A graph without a GPU.

    As with CUDA, what runs while it records leaves no trace but in Python, a replay runs no Python, and it reads and
    writes the addresses of the recording.
    """

    def __init__(self) -> None:
        self.kernels: list[tuple[Any, Any, Any, Any]] = []
        self.history: list[str] = []

    def aside(self, work: Callable[[], None]) -> None:
        self.history.append("aside")
        work()

    def record(self, work: Callable[[], None]) -> None:
        self.history.append("record")
        drawn, recorder = torch.get_rng_state(), Recorder()
        try:
            with recorder:
                work()
        finally:
            recorder.put_back()
            torch.set_rng_state(drawn)
        self.kernels = recorder.kernels

    def replay(self) -> None:
        self.history.append("replay")
        assert self.kernels
        with torch._C._AutoDispatchBelowAutograd():
            for function, args, kwargs, found in self.kernels:
                given = {storage._cdata for storage in storages((args, kwargs))}
                for was, now in zip(tensors(found), tensors(function(*args, **kwargs)), strict=True):
                    if now.untyped_storage()._cdata not in given and now.numel():
                        was.copy_(now)

    def forget(self) -> None:
        self.history.append("forget")
        self.kernels = []
