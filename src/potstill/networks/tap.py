"""Any network seen as Features: by timm's contract where the network keeps it, by forward hooks elsewhere."""

import logging

from torch import nn

from potstill.errors import NetworkError
from potstill.networks.contract import BrokenContractError, has_contract, tap_by_contract
from potstill.networks.detection.tapped import DETECTORS, tap_detector
from potstill.networks.hooks import tap_by_hooks
from potstill.networks.probe import default_input_size, layer_name
from potstill.networks.segmentation.tapped import SEGMENTERS, tap_segmenter
from potstill.networks.tapped import Tapped, Taps

__all__ = ["Tapped", "Taps", "tap"]

log = logging.getLogger(__name__)


def tap(network: nn.Module, taps: Taps | None = None, *, input_size: tuple[int, int, int] | None = None) -> Tapped:
    """See ``network`` as :class:`potstill.networks.features.Features`.

    Networks of timm are read through timm's contract, in one pass without hooks, with the ends of their stages as
    maps; the contract is checked against the network's own output first. Any other network, and one of timm whose
    parts do not add up to its output, is read through hooks on named layers: then ``taps`` names the maps, and the
    classifier is the last ``nn.Linear`` of the pass unless it is named too. One probe in evaluation mode finds the
    shapes; weights, buffers, training flags and the random state stay as they were.

    Tap a network before compiling it: hooks added to a compiled one never fire. Every tapped network copies, pickles
    and compiles.

    Args:
        network: returns logits ``(B, C)`` for images ``(B, 3, H, W)``.
        taps: layers by name; None for timm's stages, or for no maps.
        input_size: ``(3, H, W)`` of the probe; None for what the network says of itself, else ``(3, 224, 224)``.

    Raises:
        NetworkError: a layer that does not exist, or values of the wrong shape (the message says what to name instead),
            or images of a size that the network cannot take.

    Example:
        >>> import torch
        >>> head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *head)
        >>> tapped = tap(network, Taps(maps=("0",)), input_size=(3, 32, 32))
        >>> tapped.spec
        FeatureSpec(classes=10, embedding_dim=8, maps=(MapSpec(name='0', channels=8, stride=2),))
        >>> features = tapped(torch.zeros(4, 3, 32, 32), maps=True)
        >>> features.embedding.shape, features.maps[0].shape
        (torch.Size([4, 8]), torch.Size([4, 8, 15, 15]))
    """
    if hasattr(network, "_orig_mod"):
        raise NetworkError("the network is compiled already, and hooks on it would never fire; tap it, then compile")
    size = input_size or default_input_size(network)
    if isinstance(network, (*DETECTORS, *SEGMENTERS)):
        if taps is not None:
            raise NetworkError(f"a {type(network).__name__} shows its backbone's stages by itself; leave taps out")
        return tap_detector(network, size) if isinstance(network, DETECTORS) else tap_segmenter(network, size)
    taps = taps or Taps()
    if has_contract(network) and taps.embedding is None:
        head = network.get_classifier()  # type: ignore[operator]
        head_name = layer_name(network, head) if isinstance(head, nn.Module) else None
        if taps.classifier in (None, head_name):
            try:
                return tap_by_contract(network, size, taps.maps or None)
            except BrokenContractError as broken:
                taps = fall_back(network, taps, head_name, str(broken))
    return tap_by_hooks(network, taps, size)


def fall_back(network: nn.Module, taps: Taps, head_name: str | None, reason: str) -> Taps:
    """The taps for the second way, by hooks, of a network that has timm's contract and does not keep it."""
    name = type(network).__name__
    if head_name is None:
        raise NetworkError(
            f"{name} is not read as timm's networks are, since {reason}; name in taps.classifier the layer whose input "
            "is the embedding, and in taps.maps the layers of the maps"
        )
    maps = taps.maps
    log.info("%s is read through hooks, since %s; classifier %r, maps %s", name, reason, head_name, maps or "none")
    return Taps(classifier=head_name, maps=maps)
