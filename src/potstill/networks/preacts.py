"""Where a map stands before its last activation, and the batch norm behind it, found from one recorded pass."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from potstill.networks.recording import Call, Key, Recording

__all__ = ["End", "find_end"]

# Every class that these modules define is an activation, but for a few of torch's.
ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
NO_ACTIVATIONS = ("GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax")
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True)
class End:
    """The end of a stage.

    Attributes:
        activation: the layer whose input is the preact; None where no activation is seen and the map is its own.
        call: which call of that layer in a pass, counted from 0.
        norm: the batch norm behind the preact; None where there is none.
    """

    activation: str | None = None
    call: int = 0
    norm: str | None = None


def find_end(recording: Recording, key: Key) -> End:
    """The end that a map has, by the map's key.

    If an activation returned the map, the preact is what it was given; else if the map goes into a norm and from there
    into an activation, as in networks whose blocks begin with both, it is what that norm returned; else it is the map.
    """
    activation = activation_before(recording, key) or activation_behind_norm(recording, key)
    if activation is None:
        return End(norm=name_of(norm_of_output(recording, key), key))
    return End(activation.name, activation.number, name_of(norm_before(recording, activation), key))


def activation_before(recording: Recording, key: Key) -> Call | None:
    returned = (call for call in reversed(recording.calls) if call.returned == key)
    return next((call for call in returned if is_activation(call)), None)


def activation_behind_norm(recording: Recording, key: Key) -> Call | None:
    for norm in recording.calls:
        if norm.given != key or norm.returned is None or not isinstance(norm.layer, NORMS):
            continue
        for call in recording.calls:
            # timm's layers of norm and activation in one return what the activation inside them does.
            inside = call.parent is norm and call.returned == norm.returned
            if is_activation(call) and (inside or call.given == norm.returned):
                return call
    return None


def norm_before(recording: Recording, activation: Call) -> Call | None:
    """The batch norm behind what an activation was given."""
    block = activation.parent
    if block is not None and is_batch_norm(block):  # norm and activation in one layer
        return block
    assert activation.given is not None
    if makers(recording, activation.given):
        return norm_of_output(recording, activation.given)
    return last_norm(recording.calls[: recording.calls.index(activation)], block)


def norm_of_output(recording: Recording, key: Key) -> Call | None:
    """The batch norm that returned a tensor, or that ends the block which did."""
    made = makers(recording, key)
    norms = [call for call in made if is_batch_norm(call)]
    blocks = [call for call in made if recording.inside(call)]
    if norms or not blocks:
        return norms[-1] if norms else None
    return last_norm(recording.calls, blocks[-1])


def makers(recording: Recording, key: Key) -> list[Call]:
    """The calls that made a tensor."""
    return [call for call in recording.calls if call.returned == key and not call.idle()]


def last_norm(calls: list[Call], block: Call | None) -> Call | None:
    """The last batch norm of a block's main path.

    That is the last of the block's own batch norms, or else of those within its children; what reads the block's input
    is taken for the shortcut, unless there is nothing else.
    """
    if block is None:
        return next((call for call in reversed(calls) if call.parent is None and is_batch_norm(call)), None)
    norms = [call for call in calls if is_batch_norm(call) and call.within(block)]
    children = [call for call in calls if call.parent is block]
    holders = [child for child in children if any(norm is child or norm.within(child) for norm in norms)]
    main = [child for child in holders if child.given != block.given] or holders
    own = [norm for norm in norms if norm.parent is block]
    found = (norm for norm in [*reversed(own), *reversed(norms)] if any(norm is c or norm.within(c) for c in main))
    return next(found, None)


def name_of(norm: Call | None, key: Key) -> str | None:
    """A norm's name if it has an affine of one number a channel of the map."""
    weight, bias = (getattr(norm.layer, part, None) for part in ("weight", "bias")) if norm else (None, None)
    fits = weight is not None and bias is not None and weight.numel() == bias.numel() == key[2][1]
    return norm.name if norm is not None and fits else None


def is_activation(call: Call) -> bool:
    """Whether the layer is an activation, called in a way that a hook can read its input."""
    kinds = type(call.layer).__mro__
    if not any(kind.__module__ in ACTIVATION_MODULES for kind in kinds):
        return False
    if any(kind.__name__ in NO_ACTIVATIONS for kind in kinds) or call.given is None or call.returned is None:
        return False
    return call.given[2] == call.returned[2]


def is_batch_norm(call: Call) -> bool:
    """Whether the layer is a batch norm, frozen ones of torchvision and timm included."""
    frozen = any(kind.__name__.startswith("FrozenBatchNorm") for kind in type(call.layer).__mro__)
    return frozen or isinstance(call.layer, _BatchNorm)
