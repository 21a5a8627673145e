"""One pass of a network, call by call: which layer was given which tensor, and returned which."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Call", "Key", "Recording", "key_of", "record"]

Key: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...], int]


@dataclass(slots=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: the layer.
        name: as the network names it.
        number: how many calls this layer had in the pass before.
        parent: the call in whose forward it was made; None where that is the network's own.
        given: the key of its first argument; None for what is no tensor ``(B, D)`` or ``(B, C, H, W)``.
        returned: likewise, of its output.
    """

    layer: nn.Module
    name: str
    number: int
    parent: "Call | None"
    given: Key | None = None
    returned: Key | None = None

    def idle(self) -> bool:
        """Whether it returned what it was given, as ``nn.Identity`` does."""
        return self.returned is not None and self.given == self.returned

    def within(self, other: "Call") -> bool:
        """Whether this call was made during ``other``."""
        call: Call | None = self.parent
        while call is not None and call is not other:
            call = call.parent
        return call is not None


@dataclass(slots=True, eq=False)
class Recording:
    """The calls of a pass in the order in which they began.

    It holds on to all tensors of the pass, so that the keys in it stay those of one tensor each.
    """

    calls: list[Call] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def keep(self, value: Any) -> Key | None:
        """The key of a value, which then lives as long as the recording."""
        if not isinstance(value, Tensor) or value.ndim not in (2, 4):
            return None
        self.kept.append(value)
        return key_of(value)

    def last_of(self, name: str) -> Call | None:
        """The last call of a layer; None where it was not run."""
        return next((call for call in reversed(self.calls) if call.name == name), None)

    def inside(self, parent: Call | None) -> list[Call]:
        """The calls that a call's own forward made."""
        return [call for call in self.calls if call.parent is parent]


def key_of(tensor: Tensor) -> Key:
    """What tells a tensor's values, as long as it lives, from those of every other one, equal in value or not.

    Two views of the same memory in the same layout are one, and a tensor that was changed in place is another than
    before.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> before = key_of(x)
        >>> key_of(x.view(2, 3)) == before, key_of(x.clone()) == before, key_of(x.relu_()) == before
        (True, False, False)
    """
    place = tensor.untyped_storage().data_ptr()
    return place, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor._version


@contextmanager
def record(network: nn.Module) -> Iterator[Recording]:
    """Note each call of each layer of ``network`` while the context is open."""
    recording, running, counts = Recording(), list[Call](), Counter[nn.Module]()
    names = {layer: name for name, layer in network.named_modules() if not isinstance(layer, torch.jit.ScriptModule)}

    def begin(layer: nn.Module, args: tuple[Any, ...]) -> None:
        parent = running[-1] if running else None
        call = Call(layer, names[layer], counts[layer], parent, recording.keep(args[0]) if args else None)
        counts[layer] += 1
        running.append(call)
        recording.calls.append(call)

    def end(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running.pop().returned = recording.keep(output)

    handles = []
    try:
        for name, layer in network.named_modules():
            if name and layer in names:  # the network itself is no layer of it
                handles += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
        yield recording
    finally:
        for handle in handles:
            handle.remove()
