"""Training a part of a network while the rest stands still."""

from collections.abc import Collection

from torch import nn

__all__ = ["standing_still"]


def standing_still(network: nn.Module, trains: Collection[str]) -> list[nn.Module]:
    """The outermost modules of a network that have parameters or buffers, and none of those named.

    In evaluation mode they hold still: batch norms keep their running statistics, dropout lets everything through.

    Args:
        network: nothing of it is changed.
        trains: names of parameters and buffers, as in its state dict.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
        >>> [type(module).__name__ for module in standing_still(network, {"2.1.weight", "2.1.bias"})]
        ['Conv2d', 'BatchNorm2d']
    """
    names = set(trains)
    found: list[nn.Module] = []

    def visit(module: nn.Module, prefix: str) -> None:
        held = [name for name, _ in [*module.named_parameters(prefix[:-1]), *module.named_buffers(prefix[:-1])]]
        if held and not names.intersection(held):
            found.append(module)
            return
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.")

    visit(network, "")
    return found
