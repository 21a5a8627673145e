"""timm networks seen as Features through timm's own contract: one pass, no hooks.

The contract is ``forward_features`` or ``forward_intermediates``, then ``forward_head(pre_logits=True)``, then the
module that ``get_classifier`` returns. Not every network of timm keeps it, so it is checked on a probe first.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from potstill.networks.affine import linear_of
from potstill.networks.blocks import Block, find_blocks
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.networks.preacts import End, find_end
from potstill.networks.probe import at_rest, probe_images, run_probe, stride_of
from potstill.networks.recording import key_of, record
from potstill.networks.tapped import Tapped

__all__ = ["BrokenContractError", "ContractTapped", "has_contract", "tap_by_contract"]

PARTS = ("forward_features", "forward_intermediates", "forward_head", "get_classifier")
LONGEST_STAGE = 4  # maps of one stride that are kept; a plain transformer's blocks all have the same


class BrokenContractError(Exception):
    """A network has the contract's methods, and they do not add up to its forward; the message says where."""


class ContractTapped(Tapped):
    """A network read through timm's contract."""

    def __init__(
        self,
        network: Any,
        spec: FeatureSpec,
        input_size: tuple[int, int, int],
        available: tuple[MapSpec, ...],
        indices: tuple[int, ...],
        ends: tuple[End, ...] = (),
        blocks: tuple[Block, ...] = (),
    ) -> None:
        super().__init__(network, spec, input_size, ends, blocks)
        self.available = available
        self.indices = list(indices)  # of the maps, among those that forward_intermediates can return

    def read(self, images: Tensor, maps: bool) -> Features:
        """The pass itself; see :meth:`Tapped.read`."""
        network: Any = self.network
        ends: list[Tensor] = []
        if maps and self.indices:
            final, ends = network.forward_intermediates(images, indices=self.indices)
        else:
            final = network.forward_features(images)
        embedding = network.forward_head(final, pre_logits=True)
        logits = classify(network, embedding) if self.spec.classes else embedding[:, :0]
        return Features(logits, embedding, tuple(ends))

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """The last linear layer, where there is one; see :meth:`Tapped.classifier`."""
        network: Any = self.network
        return linear_of(network.get_classifier()) if self.spec.classes else None


def has_contract(network: nn.Module) -> bool:
    """Whether the network has every method of the contract."""
    return all(callable(getattr(network, part, None)) for part in PARTS)


def tap_by_contract(
    network: Any, input_size: tuple[int, int, int], maps: tuple[str, ...] | None = None
) -> ContractTapped:
    """See a timm network as Features.

    Args:
        network: a network for which :func:`has_contract` holds.
        input_size: the probe's ``(3, H, W)``.
        maps: names out of the network's ``feature_info``; None takes the ends of the stages.

    Raises:
        BrokenContractError: the parts do not add up to the network's own forward, or ``maps`` names other layers.
    """
    with at_rest(network):
        images = probe_images(network, input_size)
        output = run_probe(network, images)
        try:
            embedding, ends = check_parts(network, images, output)
        except BrokenContractError:
            raise
        except Exception as error:  # whatever a part trips over, the other way may still work
            raise BrokenContractError(f"its parts do not run one by one ({error})") from error
    classes = int(network.num_classes)
    available = measure_maps(network, ends, images)
    if maps is None:
        indices = ends_of_stages(available)
    else:
        names = [m.name for m in available]
        if missing := [name for name in maps if name not in names]:
            raise BrokenContractError(f"{', '.join(missing)} is no stage of its feature_info")
        indices = tuple(names.index(name) for name in maps)
        if list(indices) != sorted(indices):
            raise BrokenContractError("the maps are named in another order than the pass's")
    spec = FeatureSpec(classes, embedding.shape[1], tuple(available[i] for i in indices))
    with at_rest(network), record(network) as recording:
        final, ends = network.forward_intermediates(images, indices=list(indices)) if indices else (None, [])
        if indices:  # the head's first layers may be the last stage's norm and activation
            network.forward_head(final, pre_logits=True)
    keys = [key_of(end) for end in ends]
    return ContractTapped(
        *(network, spec, input_size, available, indices),
        ends=tuple(find_end(recording, key) for key in keys),
        blocks=find_blocks(recording, keys, spec.maps, images.shape[2]),
    )


def check_parts(network: Any, images: Tensor, output: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The embedding and all maps of the probe, once the parts have been found to add up to ``output``."""
    final, ends = network.forward_intermediates(images)
    features = network.forward_features(images)
    if not same(final, features):
        raise BrokenContractError("forward_intermediates and forward_features end differently")
    embedding = network.forward_head(features, pre_logits=True)
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        raise BrokenContractError("forward_head(pre_logits=True) does not return (B, D)")
    if not same(classify(network, embedding) if network.num_classes else embedding, output):
        raise BrokenContractError("classifier(forward_head(pre_logits=True)) is not what the network returns")
    if network.num_classes and not head_trains_alike(network, features):
        raise BrokenContractError("its head draws other dropout in one piece than by parts")
    return embedding, ends


def classify(network: Any, embedding: Tensor) -> Tensor:
    """Logits ``(B, C)`` of an embedding ``(B, D)``: of two heads their mean, as timm's distilled networks have it."""
    heads = network.get_classifier()
    if isinstance(heads, tuple):
        return torch.stack([apply_head(head, embedding) for head in heads]).mean(0)
    return apply_head(heads, embedding)


def apply_head(head: nn.Module, embedding: Tensor) -> Tensor:
    if isinstance(head, nn.Conv2d):  # a 1x1 convolution over the pooled map
        return head(embedding[:, :, None, None]).flatten(1)
    return head(embedding)


def measure_maps(network: Any, ends: list[Tensor], images: Tensor) -> tuple[MapSpec, ...]:
    """Names from feature_info, shapes from the probe: what the network does counts, not what it says."""
    if any(end.ndim != 4 for end in ends):
        raise BrokenContractError("forward_intermediates does not return maps (B, C, H, W)")
    info = list(getattr(network, "feature_info", None) or [])
    if len(info) != len(ends):
        info = [{"module": f"intermediate{i}"} for i in range(len(ends))]
    pixels = images.shape[2]
    specs = []
    for row, end in zip(info, ends, strict=True):
        cells, stride = end.shape[2], row.get("reduction", 0)
        fits = stride > 0 and abs(cells - pixels / stride) < 1
        specs.append(MapSpec(str(row["module"]), end.shape[1], stride if fits else stride_of(pixels, cells)))
    return tuple(specs)


def ends_of_stages(maps: tuple[MapSpec, ...]) -> tuple[int, ...]:
    """Indices of the maps to keep: all, but of more than four with one stride four, evenly spaced, the last among them.

    Example:
        >>> ends_of_stages(tuple(MapSpec(f"blocks.{i}", 192, 16) for i in range(12)))
        (2, 5, 8, 11)
    """
    kept: list[int] = []
    for stride in dict.fromkeys(m.stride for m in maps):
        stage = [i for i, m in enumerate(maps) if m.stride == stride]
        count = min(len(stage), LONGEST_STAGE)
        kept += [stage[round(len(stage) * (k + 1) / count) - 1] for k in range(count)]
    return tuple(sorted(kept))


def head_trains_alike(network: Any, features: Tensor) -> bool:
    """Whether the head by parts draws the same dropout as the head in one piece.

    Everything but the layers with running statistics is set to train (:func:`at_rest` sets it back), and both ways run
    from the same random state.
    """
    for module in network.modules():
        module.training = not isinstance(module, _NormBase)
    torch.manual_seed(0)
    whole = network.forward_head(features)
    torch.manual_seed(0)
    parts = classify(network, network.forward_head(features, pre_logits=True))
    network.eval()
    return same(whole, parts)


def same(one: Any, other: Any) -> bool:
    """Whether two outputs are the same up to rounding."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4 * float(other.float().abs().max()) + 1e-7)
