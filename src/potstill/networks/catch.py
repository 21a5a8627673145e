"""Hooks that catch the values of layers in a running pass, and survive copies, pickles and compilation."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

__all__ = ["Catch", "CatchInput", "CatchOutput", "Store", "protect_where_changed"]


class Store:
    """What the hooks of one network caught in the running pass; copies and pickles of it are empty."""

    def __init__(self) -> None:
        self.active = False
        self.values: dict[str, Any] = {}
        self.counts: dict[str, int] = {}  # calls so far in this pass, of the catches that wait for a certain one
        self.journal: list[tuple[str, Any, int]] | None = None  # (key, value, its version), kept while probing

    def __getstate__(self) -> dict[str, Any]:
        return {"active": False, "values": {}, "counts": {}, "journal": None}

    def clear(self) -> None:
        """Catch nothing more, and let go of what was caught."""
        self.active = False
        self.values = {}
        self.counts = {}
        self.journal = None


class Catch(ABC):
    """A hook that keeps a layer's input or output; a class of this module, so that networks with it pickle and copy.

    Where a later layer changes the caught tensor in place (``ReLU(inplace=True)``), ``protect`` hands a copy onward, so
    that what was caught keeps its values and stays upstream of the logits.

    Args:
        store: where the value goes.
        key: under which name.
        call: which of the layer's calls in a pass, counted from 0; None catches each, so that the last one stays.
    """

    def __init__(self, store: Store, key: str, call: int | None = None) -> None:
        self.store = store
        self.key = key
        self.call = call
        self.protect = False

    @abstractmethod
    def register(self, layer: nn.Module) -> None:
        """Hook it on a layer."""

    def keep(self, value: Any) -> Any:
        """Store ``value``; what the hook returns."""
        store = self.store
        if self.call is not None:
            before = store.counts.get(self.key, 0)
            store.counts[self.key] = before + 1
            if before != self.call:
                return None
        store.values[self.key] = value
        if store.journal is not None:
            store.journal.append((self.key, value, getattr(value, "_version", 0)))
        return value.clone() if self.protect else None


class CatchInput(Catch):
    """A forward pre-hook."""

    def register(self, layer: nn.Module) -> None:
        """Hook it on a layer."""
        layer.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """The input's copy where it is protected, else nothing."""
        return self.keep(args[0]) if self.store.active else None


class CatchOutput(Catch):
    """A forward hook."""

    def register(self, layer: nn.Module) -> None:
        """Hook it on a layer."""
        layer.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The output's copy where it is protected, else nothing."""
        return self.keep(output) if self.store.active else None


def protect_where_changed(store: Store, catches: dict[str, Catch]) -> list[str]:
    """Protect each catch whose value was changed since it was caught; the keys of the journal, which ends here."""
    journal, store.journal = store.journal or [], None
    for key, value, version in journal:
        catches[key].protect |= getattr(value, "_version", 0) != version
    return [key for key, _, _ in journal]
