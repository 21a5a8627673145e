"""Batch norms of a frozen network put into the layers before them, where nothing else reads those layers."""

import copy
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from potstill.networks.features import ON_DEMAND, Features
from potstill.networks.probe import at_rest, probe_device, probe_images
from potstill.networks.recording import Recording, record
from potstill.networks.tapped import Tapped

__all__ = ["FoldReport", "fold_batchnorms"]

# What counts is the forward: a subclass with one of its own (standardised weights, say) may compute something else.
LAYERS = {kind.forward for kind in (nn.Conv2d, Conv2dSame, nn.ConvTranspose2d, nn.Linear)}
PLAIN_NORMS = {kind.forward for kind in (_BatchNorm, nn.SyncBatchNorm, FrozenBatchNorm2d)}
NORMS_WITH_ACTIVATION = {kind.forward for kind in (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)}
NORMS = PLAIN_NORMS | NORMS_WITH_ACTIVATION

TOLERANCE = 1e-9  # of the largest entry, in float64


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What became of a network's batch norms.

    Attributes:
        folded: the batch norms that are gone, by name, each with the layer that does their work.
        kept: the others, each with the reason.
    """

    folded: dict[str, str]
    kept: dict[str, str]


def fold_batchnorms(network: Tapped) -> FoldReport:
    r"""Put each batch norm, as it is in evaluation mode, into the layer whose output it alone reads; in place.

    .. math::
        \gamma \frac{W * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        = \frac{\gamma W}{\sqrt{\sigma^2 + \epsilon}} * x
        + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}} + \beta

    computed in float64 and rounded to the dtype of the weights. The batch norm becomes an ``nn.Identity`` of the same
    name, so that hooks on it see what they saw; of timm's layers of norm and activation in one, the activation stays.

    Which layer a batch norm reads is seen in passes of a copy over the probe, in which every operation is watched: the
    layer must run once, one operation may read what it returned, and no feature that the network can show may be
    that. Then the copy's passes in float64, with random batch norms, are compared before and after: they are the same
    to 1e-9, or nothing is folded.

    Args:
        network: its layers get new parameters; the tensors of the old ones are left as they are.

    Returns:
        Which batch norms were folded, and for each other one the reason why not.

    Example:
        >>> from potstill.networks.build import build_network
        >>> network = build_network("resnet8", classes=10, input_size=(3, 32, 32)).eval()
        >>> report = fold_batchnorms(network)
        >>> len(report.folded), report.folded["bn1"], report.kept
        (9, 'conv1', {})
    """
    norms = [name for name, layer in network.network.named_modules() if is_norm(layer)]
    if not norms:
        return FoldReport({}, {})
    try:
        copied = rehearsal(network)
        folded, kept = find_pairs(copied, norms)
        wrong = check(copied.double(), folded) if folded else ""
    except Exception as error:  # whatever layer trips over being watched, over float64 or over what is left of a norm
        reason, *_ = [*str(error).strip().splitlines(), "no reason given"]
        wrong = f"the rehearsal failed ({type(error).__name__}: {reason})"
    if wrong:
        return FoldReport({}, dict.fromkeys(norms, wrong))
    fold(network.network, folded)
    return FoldReport(folded, kept)


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) or type(layer).forward in NORMS


def rehearsal(network: Tapped) -> Tapped:
    """A copy that is ready to show all it can."""
    network = copy.deepcopy(network)
    if probe_device(network).type == "mps":  # which knows no float64
        network.cpu()
    for reads in all_reads(network):
        network.open(**reads)
    return network


def all_reads(network: Tapped) -> list[dict[str, bool]]:
    """The passes to look at: that of the vectors alone, and that of everything which the network can show."""
    return [{}, dict.fromkeys(sorted(ON_DEMAND), True)] if network.spec.maps else [{}]


def tensors(features: Features) -> list[Tensor]:
    return [features.logits, features.embedding, *features.maps, *features.preacts, *features.blocks]


class Readers(TorchDispatchMode):
    """How many operations read each piece of memory; none is given back, so that each is one tensor's or its views'."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.kept += [args, returned]
        self.counts.update(place(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return returned


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def find_pairs(network: Tapped, norms: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The batch norms that can be folded, each with its layer, and the others, each with the reason."""
    folded: dict[str, str] = {}
    kept: dict[str, str] = {}
    images = probe_images(network.network, network.input_size)
    for reads in all_reads(network):
        with at_rest(network):
            with record(network.network) as recording, Readers() as readers:
                features = network(images, **reads)
            shown = {place(tensor) for tensor in tensors(features)}
            for name in norms:
                layer, reason = layer_before(recording, name, readers.counts, shown)
                if layer is None:
                    kept.setdefault(name, reason)
                else:
                    folded[name] = layer
    pairs = {name: folded[name] for name in norms if name not in kept}
    return pairs, {name: kept[name] for name in norms if name in kept}


def layer_before(recording: Recording, name: str, reads: Counter[int], shown: set[int]) -> tuple[str | None, str]:
    """The layer that can do a batch norm's work in a recorded pass, or None and why not."""
    calls = [call for call in recording.calls if call.name == name]
    if len(calls) != 1:
        return None, f"it runs {len(calls)} times a pass"
    norm = calls[0]
    if not foldable_norm(norm.layer):
        return None, "it is no batch norm with fixed statistics as torch, torchvision or timm compute it"
    made = [call for call in recording.calls if norm.given is not None and call.returned == norm.given]
    layers = [call for call in made if not call.idle() and not recording.inside(call)]
    if not layers or not foldable_layer(layers[0].layer):
        return None, "it does not read a plain convolution or linear layer without hooks"
    layer = layers[0].name
    if sum(call.layer is layers[0].layer for call in recording.calls) != 1:
        return None, f"{layer} runs more than once a pass"
    assert norm.given is not None
    if reads[norm.given[0]] != 1 or norm.given[0] in shown:
        return None, f"something else reads what {layer} returns"
    return layer, ""


def foldable_norm(norm: nn.Module) -> bool:
    """Whether a norm is an affine of its input's channels, with an activation behind it or none."""
    known = type(norm).forward in NORMS and "forward" not in vars(norm)
    return known and not norm.training and norm.running_mean is not None and not norm._forward_pre_hooks


def foldable_layer(layer: nn.Module) -> bool:
    """Whether a layer is linear in the weight and bias that it holds."""
    kind = type(layer)
    known = kind.forward in LAYERS and "forward" not in vars(layer) and "weight" in layer._parameters
    if isinstance(layer, nn.Conv2d):
        known = known and kind._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]
    if isinstance(layer, nn.ConvTranspose2d):
        known = known and layer.groups == 1
    return known and not layer._forward_hooks and not layer._forward_pre_hooks


@torch.no_grad()
def fold(network: nn.Module, pairs: dict[str, str]) -> None:
    """Fold the batch norms, given by name with their layers."""
    for norm_name, layer_name in pairs.items():
        norm: Any = network.get_submodule(norm_name)
        layer: Any = network.get_submodule(layer_name)
        state = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        exact: list[Any] = [None if part is None else part.double() for part in state]
        weight, bias, mean, variance, scale, shift = exact
        transposed = isinstance(layer, nn.ConvTranspose2d)
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift, transposed)
        dtype = layer.weight.dtype
        layer.weight, layer.bias = (nn.Parameter(part.detach().to(dtype), requires_grad=False) for part in folded)
        network.set_submodule(norm_name, after_folding(norm))


def after_folding(norm: nn.Module) -> nn.Module:
    """What is left of a norm: the activation of those that have one, and the hooks."""
    left: nn.Module = nn.Identity()
    if type(norm).forward in NORMS_WITH_ACTIVATION:
        left = nn.Sequential(OrderedDict((name, part) for name, part in norm.named_children()))
    left._forward_hooks = norm._forward_hooks
    left._forward_hooks_with_kwargs = norm._forward_hooks_with_kwargs
    left._forward_hooks_always_called = norm._forward_hooks_always_called
    return left.train(norm.training)


@torch.no_grad()
def check(network: Tapped, pairs: dict[str, str]) -> str:
    """Fold a float64 copy whose batch norms are random; what is wrong with it then, or nothing."""
    generator = torch.Generator().manual_seed(0)
    for name in pairs:
        randomise(network.network.get_submodule(name), generator)
    images = probe_images(network.network, network.input_size)
    with at_rest(network):
        expected = [value for reads in all_reads(network) for value in tensors(network(images, **reads))]
        fold(network.network, pairs)
        ours = [value for reads in all_reads(network) for value in tensors(network(images, **reads))]
    for one, other in zip(ours, expected, strict=True):
        if other.numel() and not torch.allclose(one, other, rtol=0, atol=TOLERANCE * float(other.abs().max())):
            return "the network computes something else without its batch norms"
    return ""


def randomise(norm: Any, generator: torch.Generator) -> None:
    """Draw statistics of the size of its own, and an affine of order one."""

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(norm.running_mean.shape, generator=generator)).to(norm.running_mean)

    norm.running_mean += uniform(-1, 1) * norm.running_var.sqrt()
    norm.running_var *= uniform(0.5, 1.5)
    if norm.weight is not None:
        norm.weight.copy_(uniform(0.5, 1.5))
        norm.bias.copy_(uniform(-1, 1))
