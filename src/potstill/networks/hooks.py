"""Any nn.Module seen as Features, through forward hooks on layers chosen by name."""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import NetworkError, nearest
from potstill.networks.affine import linear_of
from potstill.networks.blocks import blocks_of_maps
from potstill.networks.catch import Catch, CatchInput, CatchOutput, Store, protect_where_changed
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.networks.preacts import End, find_end
from potstill.networks.probe import at_rest, probe_images, run_probe, stride_of
from potstill.networks.recording import key_of, record
from potstill.networks.tapped import Tapped, Taps

__all__ = ["HookTapped", "tap_by_hooks"]

log = logging.getLogger(__name__)

EMBEDDING = "embedding"


class HookTapped(Tapped):
    """A network read through hooks, registered before any compile: later ones would never fire."""

    def __init__(
        self,
        network: nn.Module,
        spec: FeatureSpec,
        input_size: tuple[int, int, int],
        taps: Taps,
        store: Store,
        ends: tuple[End, ...] = (),
    ) -> None:
        super().__init__(network, spec, input_size, ends, blocks_of_maps(spec.maps))
        self.taps = taps
        self.store = store
        self.keys = [map_key(name) for name in taps.maps]

    def read(self, images: Tensor, maps: bool) -> Features:
        """The pass itself; see :meth:`Tapped.read`."""
        store = self.store
        store.active = True
        try:
            logits = self.network(images)
            caught = store.values
        finally:
            store.clear()
        if not isinstance(logits, Tensor):
            raise NetworkError(not_a_tensor(self.network, logits))
        embedding = caught[EMBEDDING]
        if self.spec.classes == 0:
            logits = embedding[:, :0]
        return Features(logits, embedding, tuple(caught[key] for key in self.keys) if maps else ())

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """The last linear layer, where there is one; see :meth:`Tapped.classifier`."""
        images = probe_images(self.network, self.input_size)
        with at_rest(self.network), record(self.network) as recording:
            logits = key_of(self.network(images))
        read, made = self.taps.classifier, self.taps.embedding
        source = recording.last_of(read or made or "")
        embedding = source and (source.given if read else source.returned)
        for call in recording.calls:
            if call.given == embedding and call.returned == logits and (found := linear_of(call.layer)):
                return found
        return None


def tap_by_hooks(network: nn.Module, taps: Taps, input_size: tuple[int, int, int]) -> HookTapped:
    """Register hooks on the named layers and measure their shapes with one probe.

    Raises:
        NetworkError: a layer that does not exist or is not run, or whose values are not ``(B, D)`` (embedding) or
            ``(B, C, H, W)`` (maps); no classifier named and none found.
    """
    named = [n for n in (taps.classifier, taps.embedding, *taps.maps) if n is not None]
    layers = {name: find_layer(network, name) for name in named}
    with at_rest(network):
        images = probe_images(network, input_size)
        classifier = taps.classifier
        if classifier is None and taps.embedding is None:
            classifier = find_classifier(network, images)
            layers[classifier] = network.get_submodule(classifier)

        store = Store()
        catches: dict[str, Catch] = {}
        if classifier is not None:
            catches[EMBEDDING] = CatchInput(store, EMBEDDING)
            catches[EMBEDDING].register(layers[classifier])
        ends = {map_key(name): layers[name] for name in taps.maps}
        if taps.embedding is not None:
            ends[EMBEDDING] = layers[taps.embedding]
        for key, layer in ends.items():
            catches[key] = CatchOutput(store, key)
            catches[key].register(layer)

        values, logits = probe_catches(network, images, store, catches)

    source = f"the input of {classifier!r}" if classifier is not None else f"the output of {taps.embedding!r}"
    embedding = check_embedding(values, source)
    # An embedding that is itself the network's output has no classifier after it.
    headless = taps.embedding is not None and logits.shape == embedding.shape and torch.equal(logits, embedding)
    if logits.ndim != 2:
        raise NetworkError(
            f"{type(network).__name__} returns a tensor of shape {tuple(logits.shape)}; expected logits (B, C)"
        )
    maps = tuple(measure_map(name, values.get(map_key(name)), images) for name in taps.maps)
    spec = FeatureSpec(0 if headless else logits.shape[1], embedding.shape[1], maps)
    taps = replace(taps, classifier=classifier)
    return HookTapped(network, spec, input_size, taps, store, find_ends(network, images, taps.maps))


def find_ends(network: nn.Module, images: Tensor, maps: tuple[str, ...]) -> tuple[End, ...]:
    """The ends of the stages that the layers named in ``maps`` close."""
    if not maps:
        return ()
    with at_rest(network), record(network) as recording:
        run_probe(network, images)
    keys = [call.returned for name in maps if (call := recording.last_of(name))]
    return tuple(find_end(recording, key) for key in keys if key is not None)


def map_key(name: str) -> str:
    return f"map {name}"


def find_layer(network: nn.Module, name: str) -> nn.Module:
    layers = dict(network.named_modules())
    layers.pop("")
    if name not in layers:
        some = ", ".join(list(layers)[:12]) or "no layers at all"
        more = f" and {len(layers) - 12} more (the command `potstill taps` lists them)" if len(layers) > 12 else ""
        hint = nearest(name, layers)
        raise NetworkError(f"{type(network).__name__} has no layer {name!r}; it has {some}{more}.{hint}")
    return layers[name]


def find_classifier(network: nn.Module, images: Tensor) -> str:
    """The last nn.Linear of the pass, where its output is what the network returns."""
    ran: list[tuple[str, Tensor]] = []
    names: dict[nn.Module, str] = {
        layer: name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)
    }

    def note(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        ran.append((names[layer], output))

    handles = [layer.register_forward_hook(note) for layer in names]
    try:
        logits = run_probe(network, images)
    finally:
        for handle in handles:
            handle.remove()
    advice = (
        "name the layer whose input is the embedding in taps.classifier, or the one that returns it in taps.embedding"
    )
    if not isinstance(logits, Tensor):
        raise NetworkError(not_a_tensor(network, logits))
    if not ran:
        raise NetworkError(f"{type(network).__name__} has no nn.Linear to take for its classifier; {advice}")
    name, output = ran[-1]
    if output.shape != logits.shape or not torch.equal(output, logits):
        raise NetworkError(
            f"the last nn.Linear of {type(network).__name__}, {name!r}, does not return the network's output; {advice}"
        )
    log.info("classifier of %s: %r, the last nn.Linear of the pass", type(network).__name__, name)
    return name


def probe_catches(
    network: nn.Module, images: Tensor, store: Store, catches: dict[str, Catch]
) -> tuple[dict[str, Any], Tensor]:
    """Run the hooks once, find which catches need protection, and return what they hold then."""
    store.active, store.journal = True, []
    try:
        logits = run_probe(network, images)
        keys = protect_where_changed(store, catches)
        if any(catch.protect for catch in catches.values()):
            logits = run_probe(network, images)
        values = store.values
    finally:
        store.clear()
    if not isinstance(logits, Tensor):
        raise NetworkError(not_a_tensor(network, logits))
    for key in catches:
        if keys.count(key) > 1 and key == EMBEDDING:
            raise NetworkError(
                f"the layer that taps name for the embedding runs {keys.count(key)} times a pass in "
                f"{type(network).__name__}; name one that runs once"
            )
        if keys.count(key) > 1:
            log.info("%r runs %d times a pass; its last output is the map", key, keys.count(key))
    return values, logits


def check_embedding(values: dict[str, Any], source: str) -> Tensor:
    embedding = values.get(EMBEDDING)
    if embedding is None:
        raise NetworkError(f"{source} cannot be the embedding: the layer is not run; name one that is")
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        got = f"shape {tuple(embedding.shape)}" if isinstance(embedding, Tensor) else type(embedding).__name__
        raise NetworkError(
            f"{source} cannot be the embedding: expected a tensor (B, D), got {got}. Name in taps.classifier a layer "
            "that reads pooled vectors, or in taps.embedding the layer that pools and flattens them"
        )
    return embedding


def measure_map(name: str, value: Any, images: Tensor) -> MapSpec:
    if value is None:
        raise NetworkError(f"layer {name!r} cannot be a map: it is not run when the network is called")
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.ndim != 4:
        raise NetworkError(f"layer {name!r} cannot be a map: expected an output (B, C, H, W), got {shape}")
    down, across = images.shape[2] / value.shape[2], images.shape[3] / value.shape[3]
    # Transformers written channels-last return (B, H, W, C), which this tells from (B, C, H, W).
    if max(down, across) > 1.5 * min(down, across):
        raise NetworkError(
            f"layer {name!r} cannot be a map: its output {shape} shrinks the image by {down:.3g} down and {across:.3g} "
            "across; expected (B, C, H, W), and here the channels seem to come last"
        )
    return MapSpec(name, value.shape[1], stride_of(images.shape[2], value.shape[2]))


def not_a_tensor(network: nn.Module, output: Any) -> str:
    return (
        f"{type(network).__name__} returns {type(output).__name__}; expected one tensor of logits (B, C). "
        "Wrap the network so that it returns the logits alone, or switch its auxiliary outputs off in args"
    )
