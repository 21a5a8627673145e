"""Values at certain calls of certain layers, by hooks that are registered when they are first wanted."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.catch import Catch, Store, protect_where_changed
from potstill.networks.probe import at_rest

__all__ = ["Points"]


class Points:
    """What one kind of hook catches in a pass, point by point.

    Args:
        hook: :class:`CatchInput` or :class:`CatchOutput`.
        at: for each point the layer and which of its calls in a pass; None for a point that needs no hook.
    """

    def __init__(self, hook: type[Catch], at: Sequence[tuple[str, int] | None]) -> None:
        self.hook = hook
        self.at = tuple(at)
        self.store = Store()
        self.opened = False

    def open(self, network: nn.Module, run: Callable[[], object]) -> None:
        """Register the hooks, and find by one ``run`` which values have to be protected."""
        catches = {}
        for name, call in filter(None, self.at):
            catch = self.hook(self.store, point_key(name, call), call)
            catch.register(network.get_submodule(name))
            catches[catch.key] = catch
        self.opened = True
        self.store.active, self.store.journal = True, []
        try:
            with at_rest(network):
                run()
            protect_where_changed(self.store, catches)
        finally:
            self.store.clear()

    def caught(self, instead: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The values of the running pass; those of ``instead`` at the points without a hook."""
        values = self.store.values
        wanted = [None if at is None else point_key(*at) for at in self.at]
        for key in wanted:
            if key is not None and key not in values:
                raise NetworkError(f"{key} was not run in this pass, as it was when the network was tapped")
        return tuple(one if key is None else values[key] for key, one in zip(wanted, instead, strict=True))


def point_key(name: str, call: int) -> str:
    return f"call {call + 1} of layer {name!r}"
