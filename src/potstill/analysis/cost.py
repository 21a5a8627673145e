"""What a network costs: parameters, multiply-accumulates, latency on this machine, bytes on disk."""

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from potstill.errors import DataError, NetworkError
from potstill.networks.probe import at_rest, probe_images, run_probe
from potstill.networks.tap import Tapped

__all__ = ["Cost", "count_macs", "count_parameters", "latency", "measure_cost", "size_of_weights", "size_on_disk"]

WARM_UP = 3  # passes before the clock starts: kernels are chosen and memory is laid out in the first ones
FEWEST, MOST = 5, 1000  # timed passes; as many of them as fit into the time, and no fewer than the first number


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one network.

    Attributes:
        parameters: all of them, frozen ones too; buffers do not count.
        macs: multiply-accumulates of one image.
        latency_ms: median milliseconds of one pass, with the threads that torch has on this machine.
        bytes: of the weights and buffers; of their file, where that was given.
    """

    parameters: int
    macs: int
    latency_ms: float
    bytes: int


def count_parameters(network: nn.Module) -> int:
    """The number of parameters; a tensor that two layers share counts once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    r"""Multiply-accumulates of one image in evaluation mode.

    Convolutions, matrix products and attention count, as the literature has it; normalisation, activations, pooling
    and biases do not. A convolution with kernel k has

    .. math:: k^2 \, C_{in} C_{out} \, H_{out} W_{out} / \text{groups}

    Weights, buffers, training flags and the random state stay as they were.

    Args:
        network: any network of images.
        input_size: ``(3, H, W)``.

    Raises:
        NetworkError: the network does not take images of that size.

    Source: half of what ``torch.utils.flop_counter`` counts, which takes a multiplication and an addition for two.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32)) == 3 * 3 * 3 * 8 * 32 * 32
        True
    """
    with at_rest(network), FlopCounterMode(display=False) as counter:
        run_probe(network, probe_images(network, input_size)[:1])
    return int(counter.get_total_flops()) // 2


def latency(
    network: nn.Module,
    input_size: tuple[int, int, int],
    device: torch.device | str | None = None,
    batch: int = 1,
    seconds: float = 0.5,
) -> float:
    """Median seconds of one pass in evaluation mode, with as many threads as torch is set to.

    Training flags and the random state stay as they were, and so does the network's device: for another one a copy is
    measured.

    Args:
        network: any network of images.
        input_size: ``(3, H, W)``.
        device: where to measure; None for where the network is.
        batch: images a pass.
        seconds: time to spend on timed passes. A network so slow that fewer than five fit takes longer.

    Raises:
        NetworkError: ``batch`` below 1, or images of a size that the network does not take.
    """
    if batch < 1:
        raise NetworkError(f"latency of a batch of {batch} images is asked for; expected 1 or more")
    noise = probe_images(network, input_size)
    place = noise.device if device is None else torch.device(device)
    # A device without a number ("cuda") means the current one, where the network may be already.
    if place.type != noise.device.type or place.index not in (None, noise.device.index):
        network = copy.deepcopy(network).to(place)
    images = noise[:1].to(place).expand(batch, -1, -1, -1).contiguous()
    times: list[float] = []
    with at_rest(network), torch.inference_mode():
        for _ in range(WARM_UP):
            run_probe(network, images)
        wait(place)
        end = time.perf_counter() + seconds
        while len(times) < FEWEST or (time.perf_counter() < end and len(times) < MOST):
            start = time.perf_counter()
            network(images)
            wait(place)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def wait(device: torch.device) -> None:
    """Wait for the device: an accelerator's calls return before their work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def size_of_weights(network: nn.Module) -> int:
    """Bytes of a network's state dict; a safetensors file of it is larger by its header, some 100 bytes a tensor.

    Example:
        >>> size_of_weights(nn.Linear(3, 2))
        32
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def size_on_disk(path: str | Path) -> int:
    """Bytes of a file.

    Raises:
        DataError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no file whose size can be read; expected the path of weights that were written")
    return path.stat().st_size


def measure_cost(
    network: nn.Module,
    input_size: tuple[int, int, int] | None = None,
    *,
    weights: str | Path | None = None,
    seconds: float = 0.5,
) -> Cost:
    """Measure what a network costs, on the device where it is; it stays as it was.

    Args:
        network: a :class:`potstill.networks.tap.Tapped` network, of which the network inside is measured, or any other.
        input_size: ``(3, H, W)``; None for the size at which a tapped network was tapped.
        weights: its file, for the size on disk; None for the bytes of its tensors.
        seconds: time to spend on the latency.

    Raises:
        NetworkError: no input size, or one that the network does not take.
        DataError: ``weights`` is no file.

    Example:
        >>> cost = measure_cost(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), (3, 4, 4), seconds=0.01)
        >>> cost.parameters, cost.macs, cost.bytes
        (490, 480, 1960)
    """
    if isinstance(network, Tapped):
        input_size = input_size or network.input_size
        network = network.network
    if input_size is None:
        raise NetworkError(f"the input size of {type(network).__name__} is not known; give input_size=(3, H, W)")
    return Cost(
        parameters=count_parameters(network),
        macs=count_macs(network, input_size),
        latency_ms=1000 * latency(network, input_size, seconds=seconds),
        bytes=size_of_weights(network) if weights is None else size_on_disk(weights),
    )
