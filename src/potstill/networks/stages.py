"""A network cut at its maps: which parameters belong to which stage, and the pass up to a map."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.contract import ContractTapped
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.probe import at_rest, probe_images
from potstill.networks.tapped import Tapped

__all__ = ["forward_to", "stage_parameters"]


def forward_to(tapped: Tapped, images: Tensor, stage: int) -> Tensor:
    """Map ``stage`` of a network, ``(B, C, H, W)``.

    A network that is read through timm's contract runs no further than to this map. One that is read through hooks runs
    to its end, later batch norms in training mode with their statistics.

    Args:
        tapped: the network.
        images: as it takes them.
        stage: the map's index, of ``spec.maps``; negative ones count from the end.

    Raises:
        NetworkError: a map that the network does not show.

    Example:
        >>> import timm, potstill.networks.cifar
        >>> from potstill.networks.tap import tap
        >>> tapped = tap(timm.create_model("resnet8"))
        >>> forward_to(tapped, torch.zeros(2, 3, 32, 32), stage=1).shape
        torch.Size([2, 16, 32, 32])
    """
    count = len(tapped.spec.maps)
    if not -count <= stage < count:
        raise NetworkError(f"stage is {stage}, and {type(tapped.network).__name__} shows {count} maps, counted from 0")
    if isinstance(tapped, ContractTapped):
        network: Any = tapped.network
        indices = [tapped.indices[stage]]
        ends: list[Tensor] = network.forward_intermediates(
            images, indices=indices, stop_early=True, intermediates_only=True
        )
        return ends[0]
    return tapped(images, maps=True).maps[stage]


def stage_parameters(tapped: Tapped) -> list[list[str]]:
    """The names of the parameters and buffers of each stage, and of the head.

    Of a detector the stages are its backbone's and, as the last, its pyramid; what looks at the pyramid is the head.

    A parameter belongs to the first map that depends on it, by the autograd graph of one probe in evaluation mode; a
    layer's buffers go with its parameters or, where it has none of its own, with the first map that depends on what it
    returned. The last entry is the head: all that no map depends on, and all that is frozen and not used.

    Returns:
        One list more than the network has maps, of names as in the network's state dict and in its order; what several
        layers share stands under its first name.

    Raises:
        NetworkError: the network shows no maps, or has a parameter that trains and that no output depends on.

    Example:
        >>> from potstill.networks.tap import Taps, tap
        >>> head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), *head)
        >>> stage_parameters(tap(network, Taps(maps=("2",)), input_size=(3, 8, 8)))
        [['0.weight', '0.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked'], ['5.weight', '5.bias']]
    """
    network, detects = tapped.network, isinstance(tapped, TappedDetector)
    head = len(tapped.spec.blocks) + 1 if detects else len(tapped.spec.maps)
    if not head:
        raise NetworkError(
            f"{type(network).__name__} shows no maps to cut it at; name the layers that end its stages in taps.maps"
        )
    returned: dict[nn.Module, list[Any]] = defaultdict(list)
    images = probe_images(network, tapped.input_size)
    with at_rest(network), torch.enable_grad(), all_training(network), noting_graph(network, returned):
        # So that all that is computed is in the graph; the copy is no leaf, which a network may change in place.
        features = tapped(images.requires_grad_().clone(), maps=True, blocks=detects)
        ends = [(end,) for end in features.blocks] + [features.maps] if detects else [(end,) for end in features.maps]
        nodes, parameters = first_dependents([*ends, () if detects else (features.embedding, features.logits)])
    for name, parameter in network.named_parameters():
        if not detects and parameter.requires_grad and id(parameter) not in parameters:
            raise NetworkError(
                f"no output of {type(network).__name__} depends on its parameter {name!r}, so it is part of no stage; "
                "freeze it (requires_grad=False) or take it out of the network"
            )

    def of_parameters(module: nn.Module, recurse: bool) -> list[int]:
        return [parameters.get(id(parameter), head) for parameter in module.parameters(recurse)]

    def of_buffers(module: nn.Module) -> int:
        graph = [nodes.get(node, head) for node in returned[module]]
        return min(of_parameters(module, False) or graph or of_parameters(module, True), default=head)

    stages = {name: parameters.get(id(parameter), head) for name, parameter in network.named_parameters()}
    for name, _ in network.named_buffers():
        stages[name] = of_buffers(network.get_submodule(name.rpartition(".")[0]))
    found: list[list[str]] = [[] for _ in range(head + 1)]
    for name in network.state_dict():  # which leaves out the buffers that are computed anew wherever they are needed
        if name in stages:
            found[min(stages[name], head)].append(name)
    return found


def first_dependents(outputs: Iterable[Iterable[Tensor]]) -> tuple[dict[Any, int], dict[int, int]]:
    """For each node of the graph, and each parameter by ``id``, which group of outputs is the first to depend on it."""
    nodes: dict[Any, int] = {}
    parameters: dict[int, int] = {}
    for index, group in enumerate(outputs):
        ahead = [output.grad_fn for output in group]
        while ahead:
            node = ahead.pop()
            if node is None or node in nodes:
                continue
            nodes[node] = index
            if hasattr(node, "variable"):  # where a gradient would be accumulated
                parameters[id(node.variable)] = index
            ahead += [before for before, _ in node.next_functions]
    return nodes, parameters


@contextmanager
def all_training(network: nn.Module) -> Iterator[None]:
    """Every parameter asks for gradients, so that frozen ones are in the graph; afterwards those do that did before."""
    frozen = [p for p in network.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def noting_graph(network: nn.Module, returned: dict[nn.Module, list[Any]]) -> Iterator[None]:
    """Collect the graph's nodes that each layer returned in every call."""

    def note(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for value in output if isinstance(output, tuple | list) else [output]:
            if isinstance(value, Tensor) and value.grad_fn is not None:
                returned[layer].append(value.grad_fn)

    scripted = torch.jit.ScriptModule
    handles = [m.register_forward_hook(note) for m in network.modules() if not isinstance(m, scripted)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
