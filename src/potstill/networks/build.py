"""Networks by name: of timm, of the CIFAR zoo, of torchvision, or a user's own factory; with their weights."""

import fnmatch
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.networks.card import WEIGHTS_FILE, NetworkCard, read_card
from potstill.networks.origins import make_network
from potstill.networks.tap import Tapped, Taps, tap
from potstill.networks.weights import load_weights, read_weights
from potstill.networks.zoo import ZOOS

__all__ = ["NetworkCard", "build_network", "list_models", "read_card"]

log = logging.getLogger(__name__)


def build_network(
    model: str | None,
    *,
    classes: int | None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    args: Mapping[str, Any] | None = None,
    taps: Taps | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> Tapped:
    """Build a network by name, load its weights and tap it.

    Args:
        model: ``timm/NAME``, ``cifar/NAME`` (the CIFAR zoo), ``torchvision/NAME``, ``package.module:factory``, or a
            plain ``NAME`` of timm or the zoo; None takes the name from the run's folder in ``weights``,
            unless that is a factory: only the caller may choose which code runs.
        classes: the number of logits; 0 for a network without a classifier; None for what the weights, or else the
            model, have.
        weights: a file (:func:`potstill.networks.weights.read_weights`) or a run's folder. A run's folder also gives
            what is left out of ``args``, ``taps``, ``classes`` and ``input_size``.
        pretrained: download timm's or torchvision's weights.
        args: keyword arguments of the model's own.
        taps: layers to read, by name; see :func:`potstill.networks.tap.tap`.
        input_size: ``(3, H, W)`` of the images; None for the model's own.

    Raises:
        NetworkError: an unknown model or argument, weights that do not fit or cannot be had, another number of classes.

    Example:
        >>> build_network("resnet8x4", classes=10, input_size=(3, 32, 32)).spec.embedding_dim
        256
    """
    if weights is not None and pretrained:
        raise NetworkError(f"both weights ({weights}) and pretrained=True are given; choose one of them")
    card = read_card(weights) if weights is not None and Path(weights).is_dir() else None
    if card is not None:
        check_against(card, model, args, classes)
        model, args = card.model, card.args
        classes, taps, input_size = card.num_classes, taps or card.taps, input_size or card.input_size
        weights = Path(str(weights)) / WEIGHTS_FILE
    if model is None:
        raise NetworkError("no model is named; name one, or give a run's folder as weights to take its model")
    if classes is not None and classes < 0:
        raise NetworkError(f"a network of {classes} classes is asked for; expected 1 or more, or 0 for no classifier")

    state = read_weights(weights) if weights is not None else None
    network = make_network(model, classes, pretrained, dict(args or {}))
    if state is not None:
        if classes is None and (found := classes_in(state, network)) is not None:
            log.info("%s: %d classes, as in %s", model, found, weights)
            network = make_network(model, found, False, dict(args or {}))
        try:
            load_weights(network, state)
        except NetworkError as error:
            raise NetworkError(f"{weights} for model {model!r}: {error}") from error
    tapped = tap(network, taps, input_size=input_size)
    if classes is not None and tapped.classes != classes:
        raise NetworkError(
            f"{model!r} returns {tapped.classes} logits, and {classes} classes are asked for; let its factory "
            "take num_classes"
        )
    if card is not None:
        tapped.normalisation = (card.mean, card.std)
    elif pretrained:
        config = getattr(network, "pretrained_cfg", None) or {}
        tapped.normalisation = (tuple(config["mean"]), tuple(config["std"])) if "mean" in config else None
    return tapped


def check_against(card: NetworkCard, model: str | None, args: Mapping[str, Any] | None, classes: int | None) -> None:
    """What is asked for must be what the run's folder holds, and code that is run must be asked for."""
    if model is None and ":" in card.model:
        raise NetworkError(
            f"the run's folder in weights holds a network made by {card.model!r}, and a file may not choose by itself "
            f"which code runs; if you trust that factory, name it as the model: {card.model}"
        )
    asked = {"model": (model, card.model), "args": (args or None, card.args), "classes": (classes, card.num_classes)}
    ways = {
        "model": f"leave the model {model!r} out, or give weights of that model",
        "args": "leave args out, or give weights of a network that was made with them",
        "classes": "give weights of a network with as many classes",
    }
    for name, (wanted, held) in asked.items():
        if wanted is not None and wanted != held:
            raise NetworkError(
                f"the run's folder in weights holds {name} {held!r}, and {wanted!r} is asked for; {ways[name]}"
            )


def classes_in(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """The number of classes that weights were trained for, where it differs from that of ``network``; else None.

    It is the one leading size in which the weights differ from a network of the model's own number of classes; 0 where
    nothing but the classifier is missing from them.
    """
    own = network.state_dict()
    others = {
        state[key].shape[0]
        for key in own
        if key in state
        and state[key].ndim > 0
        and state[key].shape != own[key].shape
        and state[key].shape[1:] == own[key].shape[1:]
    }
    if len(others) == 1:
        return int(others.pop())
    missing = {key for key in own if key not in state}
    get_classifier: Any = getattr(network, "get_classifier", None)
    head = get_classifier() if callable(get_classifier) else None
    if not missing or not isinstance(head, nn.Module):
        return None
    inside = {
        key for key in own for name, part in network.named_modules() if part is head and key.startswith(f"{name}.")
    }
    return 0 if missing == inside else None


def list_models(pattern: str = "*") -> list[str]:
    """Names for :func:`build_network` that match a shell pattern: the zoos as ``cifar/NAME`` and ``faces/NAME``.

    Those of timm stand plain. One that the zoo has too stands as ``timm/NAME``: plain it would be ambiguous.

    Example:
        >>> list_models("*/vgg11")
        ['cifar/vgg11', 'timm/vgg11']
    """
    zoo = [f"{origin}/{name}" for origin, models in ZOOS.items() for name in models]
    own = {known for models in ZOOS.values() for known in models.values()}
    others = [
        f"timm/{name}" if name in ZOOS["cifar"] else name  # timm has no other network of any of these names
        for name in timm.list_models()
        if name not in own
    ]
    return [name for name in (*zoo, *others) if fnmatch.fnmatchcase(name, pattern)]
