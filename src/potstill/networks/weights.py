"""Weights in files: read without running code, loaded whole or not at all, written in one move."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.files import write_whole
from potstill.networks.tapped import Tapped

__all__ = ["load_weights", "read_weights", "save_weights"]

PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict", "student")
PREFIXES = ("module.", "_orig_mod.")
# torchvision's DenseNet files are older than its layer names: denselayer1.norm.1 is denselayer1.norm1 now.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; reading it runs no code.

    A ``.safetensors`` file, or a checkpoint of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.tar``) whose
    state dict may lie under ``state_dict``, ``model``, ``model_state_dict`` or ``student``. The prefixes that data
    parallel and compiled networks add to every key (``module.``, ``_orig_mod.``) are taken off.

    Raises:
        NetworkError: no such file, another kind of file, a corrupt one, one that would run code, or one that holds no
            state dict or several.
    """
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"no weights at {path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return strip_prefixes(safetensors.torch.load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise NetworkError(
                f"{path} is no readable safetensors file ({first_line(error)}); it may be cut short"
            ) from error
    if path.suffix in PICKLES:
        return strip_prefixes(unwrap(read_pickle(path), path), path)
    raise NetworkError(f"weights {path} end in {path.suffix!r}; expected .safetensors or one of {', '.join(PICKLES)}")


def read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise NetworkError(f"{path} is no readable checkpoint ({first_line(error)}); it may be corrupt") from error
        raise NetworkError(
            f"{path} is refused: to load it would run code ({found[1]}). Where you trust its author, convert it "
            "once with torch.load(path, weights_only=False) and safetensors.torch.save_file(state, new_path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise NetworkError(f"{path} is no readable checkpoint ({first_line(error)}); it may be cut short") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    """The one dict of tensors in a checkpoint."""
    if not isinstance(value, Mapping):
        raise NetworkError(f"{path} holds a {type(value).__name__}; expected a state dict of tensors by name")
    if value and all(isinstance(tensor, Tensor) for tensor in value.values()):
        return dict(value)
    inner = [key for key in WRAPPERS if isinstance(value.get(key), Mapping)]
    keys = ", ".join(map(str, list(value)[:8])) or "none"
    if not inner:
        raise NetworkError(
            f"{path} holds no state dict: expected tensors by name or one of {WRAPPERS}, got keys {keys}"
        )
    if len(inner) > 1:
        raise NetworkError(
            f"{path} holds several state dicts ({', '.join(inner)}); save the one that is meant by itself"
        )
    return unwrap(value[inner[0]], path)


def strip_prefixes(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    while state and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    # A compiled part of a network leaves its mark in the middle of the names.
    plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    if len(plain) < len(state):
        raise NetworkError(f"{path} holds both compiled and plain weights under one name; save one of the two")
    if not plain:
        raise NetworkError(f"{path} holds no tensors")
    return plain


def load_weights(module: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Load weights that fit exactly; where they do not, say what differs and change nothing.

    Args:
        module: the network (of a :class:`Tapped` one, the network inside).
        weights: a file for :func:`read_weights`, or a state dict.

    Raises:
        NetworkError: with the number of missing, unexpected and wrongly shaped keys, and the first five of each.
    """
    source = "the weights" if isinstance(weights, Mapping) else str(weights)
    state = dict(weights) if isinstance(weights, Mapping) else read_weights(weights)
    module = plain_network(module)
    own = module.state_dict()
    if any(OLD_DENSENET.search(key) for key in state) and not any(OLD_DENSENET.search(key) for key in own):
        state = {OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    # Files older than BatchNorm's step counter have none of them; the counter is not read in evaluation.
    if not any(key.endswith("num_batches_tracked") for key in state):
        state |= {key: tensor for key, tensor in own.items() if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if isinstance(own[key], Tensor) and key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise NetworkError(
            f"{source} do not fit {type(module).__name__}, which has {len(own)} keys: {'; '.join(faults)}"
        )
    module.load_state_dict(state)


def plain_network(module: nn.Module) -> nn.Module:
    return module.network if isinstance(module, Tapped) else module


def save_weights(weights: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file: whole under its name or not at all, and the same bytes for the same weights.

    Args:
        weights: a network (of a :class:`Tapped` one, the network inside) or a state dict. Tensors that share memory are
            each written in full.
        path: the file; what it held before stays until the new one is complete.

    Raises:
        RunError: the file cannot be written.
    """
    state = plain_network(weights).state_dict() if isinstance(weights, nn.Module) else weights
    # clone: safetensors refuses tensors that share memory. Sorted: the order of a dict must not reach the file.
    plain = {key: state[key].detach().to("cpu").contiguous().clone() for key in sorted(state)}
    write_whole(Path(path), safetensors.torch.save(plain, metadata={"format": "pt"}))
