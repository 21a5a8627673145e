"""Running a network once to learn its shapes, and leaving it exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError

__all__ = ["at_rest", "default_input_size", "layer_name", "probe_images", "run_probe", "stride_of"]


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own training flag and the random state come back afterwards."""
    flags = {module: module.training for module in network.modules()}
    device = probe_device(network)
    try:
        network.eval()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def default_input_size(network: nn.Module) -> tuple[int, int, int]:
    """The size that the network says it was built for, else ``(3, 224, 224)``."""
    patches = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if isinstance(patches, tuple) and len(patches) == 2:
        return (3, *patches)
    size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return (size[0], size[1], size[2])


def layer_name(network: nn.Module, layer: nn.Module) -> str | None:
    """The name under which ``layer`` is found in ``network``; None where it is not."""
    return next((name for name, module in network.named_modules() if module is layer), None)


def probe_device(network: nn.Module) -> torch.device:
    """The device of the network's first parameter; the CPU where it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def probe_images(network: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """Two fixed noise images ``(2, 3, H, W)`` on the network's device, in its dtype."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    return noise.to(probe_device(network), dtype)


def run_probe(network: nn.Module, images: Tensor) -> Any:
    """The network's output for the probe.

    Raises:
        NetworkError: the network cannot take images of this size.
    """
    try:
        return network(images)
    except Exception as error:
        size = tuple(images.shape[1:])
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise NetworkError(
            f"{type(network).__name__} does not run on images of {size}: {reason}. Give input_size the size of your "
            "images, or build the network for it (many transformers take args: {img_size: N})"
        ) from error


def stride_of(pixels: int, cells: int) -> int:
    """How many of an image's ``pixels`` one of a map's ``cells`` covers: a power of two where one fits.

    Example:
        >>> stride_of(224, 7), stride_of(176, 6), stride_of(224, 16)
        (32, 32, 14)
    """
    powers = (2**k for k in range(pixels.bit_length() + 1))
    fitting = (power for power in powers if cells in (pixels // power, -(-pixels // power)))
    return next(fitting, max(1, round(pixels / cells)))
