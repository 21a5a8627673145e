"""Where networks come from: one function an origin, each of which makes a bare ``nn.Module``."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from potstill.errors import NetworkError, nearest
from potstill.networks.detection.build import IMAGENET_MEAN, IMAGENET_STD
from potstill.networks.detection.build import KINDS as DETECTORS
from potstill.networks.named import import_named
from potstill.networks.segmentation.build import KINDS as SEGMENTERS
from potstill.networks.zoo import ZOOS

__all__ = ["make_network"]

# Heads on a backbone of timm's, by the names that stand before the backbone's.
KINDS: dict[str, Callable[..., nn.Module]] = {**DETECTORS, **SEGMENTERS}

# What a detector of torchvision's does to its images; the loader does that here.
_TRANSFORM = ("min_size", "max_size", "image_mean", "image_std")

# What a factory that insists on num_classes gets where the weights are to say it: only to be told from theirs, so a
# number that no data set has.
_ANY_NUMBER = 1009


def make_network(model: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """Build the bare network that ``model`` names; see :func:`potstill.networks.build.build_network`."""
    if ":" in model:
        return make_own(model, classes, pretrained, args)
    origin, _, name = model.rpartition("/")
    if origin in KINDS:
        return make_headed(origin, name, classes, pretrained, args)
    if origin not in ("", "timm", *ZOOS, "torchvision"):
        known = ["timm", *ZOOS, "torchvision", *KINDS]
        raise NetworkError(
            f"unknown model {model!r}: expected timm/NAME, cifar/NAME, faces/NAME, torchvision/NAME, a plain NAME, "
            f"{', '.join(f'{kind}/BACKBONE' for kind in KINDS)} or package.module:factory, got the origin {origin!r}."
            f"{nearest(origin, known)}"
        )
    if origin == "torchvision":
        return make_torchvision(name, classes, pretrained, args)
    return make_timm(timm_name(origin, name), classes, pretrained, args)


def timm_name(origin: str, name: str) -> str:
    """The name under which timm knows a network of timm or of the zoo.

    Example:
        >>> timm_name("cifar", "resnet8"), timm_name("", "resnet18")
        ('resnet8', 'resnet18')
    """
    if origin in ZOOS:
        models = ZOOS[origin]
        if name not in models:
            raise NetworkError(
                f"unknown model '{origin}/{name}'; the zoo has {', '.join(models)}.{nearest(name, models)}"
            )
        return models[name]
    in_zoo = next((models[name] for models in ZOOS.values() if name in models), None)
    in_timm = timm.is_model(name)
    if origin == "" and in_zoo is not None:
        if in_zoo != name and in_timm:
            raise NetworkError(f"model {name!r} is in both timm and the CIFAR zoo; say 'timm/{name}' or 'cifar/{name}'")
        return in_zoo
    if not in_timm:
        known = [*timm.list_models(), *(name for models in ZOOS.values() for name in models)]
        raise NetworkError(
            f"unknown model {name!r}: neither timm nor the CIFAR zoo has it (the command `potstill models` lists them)."
            f"{own_module(name) or nearest(name, known)}"
        )
    return name


def own_module(name: str) -> str:
    """A hint where a model's name is that of a file or package in the working directory; else nothing."""
    module = name.removesuffix(".py")
    if not all(part.isidentifier() for part in module.split(".")):
        return ""
    path = Path(*module.split("."))
    if not (path.with_name(path.name + ".py").is_file() or (path / "__init__.py").is_file()):
        return ""
    return f" A network of your own is named with the function that makes it: {module}:FACTORY."


def make_timm(name: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    number: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    refuse_own(args, "num_classes", "pretrained")
    try:
        with hub_is_quiet():
            return timm.create_model(name, pretrained=pretrained, **number, **args)
    except Exception as error:
        raise NetworkError(why_not(name, "timm", args, pretrained, error)) from error


@contextlib.contextmanager
def hub_is_quiet() -> Iterator[None]:
    """Keep back what the hub's client logs of each attempt to download; the error at the end says why it failed."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def make_torchvision(name: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    models = torchvision.models
    dense = [*models.list_models(module=models.detection), *models.list_models(module=models.segmentation)]
    known = [*models.list_models(module=models), *dense]
    refuse_own(args, "num_classes", "weights")
    if name not in known:
        raise NetworkError(f"torchvision has no model {name!r}.{nearest(name, known)}")
    if name in dense:
        return make_torchvision_dense(name, classes, pretrained, args)
    if classes == 0:
        raise NetworkError(
            "torchvision's models come with a classifier; name their embedding in taps.embedding instead"
        )
    number: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        network = models.get_model(name, weights=None, **number, **args)
        if pretrained:
            weights = models.get_model_weights(name).DEFAULT
            state = weights.get_state_dict(progress=False, check_hash=True)
            seen = weights.transforms()  # how the images were prepared on which these weights are judged
            # Kept where timm's networks keep theirs, so that whoever taps a network looks in one place.
            network.pretrained_cfg = {
                "input_size": (3, *(seen.crop_size * 2)[:2]), "mean": tuple(seen.mean), "std": tuple(seen.std)
            }  # fmt: skip
            own = network.state_dict()
            # A head for another number of classes starts afresh, as it does with timm.
            network.load_state_dict(
                {
                    key: own[key] if own[key].shape[1:] == value.shape[1:] and own[key].shape != value.shape else value
                    for key, value in state.items()
                }
            )
    except Exception as error:
        raise NetworkError(why_not(name, "torchvision", args, pretrained, error)) from error
    return network


def make_torchvision_dense(name: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """A detector or segmenter of torchvision's own; with ``pretrained`` COCO's weights, but where classes differ."""
    models = torchvision.models
    if name.startswith(("maskrcnn", "keypointrcnn", "ssd")):
        raise NetworkError(
            f"torchvision/{name} is none of the detectors that are known here: Faster R-CNN, RetinaNet and FCOS on a "
            "feature pyramid"
        )
    refuse_own(args, *_TRANSFORM)
    counts_background = name.startswith("fasterrcnn")
    number = {} if classes is None else {"num_classes": classes + counts_background}
    try:
        network = models.get_model(name, weights=None, weights_backbone=None, **number, **args)
        if pretrained:
            own = network.state_dict()
            state = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
            network.load_state_dict(
                {key: value if value.shape == own[key].shape else own[key] for key, value in state.items()}
            )
            network.pretrained_cfg = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    except Exception as error:
        raise NetworkError(why_not(name, "torchvision", args, pretrained, error)) from error
    return network


def make_headed(kind: str, backbone: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """A head of torchvision's on a backbone of timm's; with ``pretrained`` the backbone's weights are ImageNet's."""
    refuse_own(args, "num_classes", "pretrained_backbone", *(_TRANSFORM if kind in DETECTORS else ()))
    if not timm.is_model(backbone):
        raise NetworkError(
            f"unknown model '{kind}/{backbone}': timm has no backbone {backbone!r}."
            f"{nearest(backbone, timm.list_models())}"
        )
    if classes == 0:
        raise NetworkError(f"'{kind}/{backbone}' is asked for without classes, and it has nothing else to say")
    number = _ANY_NUMBER if classes is None else classes
    try:
        with hub_is_quiet():
            return KINDS[kind](backbone, number, pretrained_backbone=pretrained, **args)
    except Exception as error:
        raise NetworkError(why_not(f"{kind}/{backbone}", "torchvision", args, pretrained, error)) from error


def make_own(model: str, classes: int | None, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """Import and call a user's factory; modules in the working directory count as importable."""
    if pretrained:
        raise NetworkError(f"pretrained=True is for timm and torchvision; give the weights of {model!r} as a file")
    factory = find_factory(model)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise NetworkError(f"{model!r} has no signature that Python can read; wrap it in a function") from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    number = signature.parameters.get("num_classes")
    if classes is None and number is not None and number.default is number.empty and "num_classes" not in args:
        classes = _ANY_NUMBER
    if classes is not None and (takes_any or number is not None):
        refuse_own(args, "num_classes")
        args = {"num_classes": classes, **args}
    try:
        signature.bind(**args)
    except TypeError as error:
        raise NetworkError(f"{model!r} cannot be called with {args}: {error}; its signature is {signature}") from error
    network = factory(**args)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{model!r} returns {type(network).__name__}; expected an nn.Module")
    return network


def find_factory(model: str) -> Callable[..., Any]:
    path, _, name = model.partition(":")
    if not path or not name or path.startswith("."):
        raise NetworkError(f"unknown model {model!r}: a factory of your own is named package.module:factory")
    try:
        module = import_named(path)
    except ImportError as error:
        raise NetworkError(
            f"cannot import {path!r} for model {model!r}: {error}. It must be installed or lie in the working directory"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise NetworkError(f"module {path!r} has no factory {name!r}.{nearest(name, dir(module))}")
    return factory


def refuse_own(args: dict[str, Any], *names: str) -> None:
    if taken := [name for name in names if name in args]:
        raise NetworkError(f"args may not set {', '.join(taken)}: that has a key of its own beside args")


def why_not(name: str, library: str, args: dict[str, Any], pretrained: bool, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    if pretrained:
        return (
            f"no pretrained weights for {library}/{name}: {reason}. They are downloaded, which needs the net once; "
            "without it, copy the file here and give it as weights"
        )
    return f"{library} cannot build {name!r} with args {args}: {reason}"
