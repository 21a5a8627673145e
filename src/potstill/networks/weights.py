"""Weights in files: read without running code, loaded whole or not at all, written in one move."""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from potstill.errors import NetworkError
from potstill.files import write_whole
from potstill.networks.tapped import Tapped

__all__ = ["first_line", "load_weights", "read_weights", "save_weights"]

_PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "student")
_PREFIXES = ("module.", "_orig_mod.")
# torchvision's DenseNet files are older than its layer names: denselayer1.norm.1 is denselayer1.norm1 now.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# The names by which tensors and arrays are pickled.
_OF_TENSORS = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\.(_utils|_tensor|storage|nn\.parameter)\.\w+|torch\.(\w*Storage|Size)|"
    r"numpy(\._?core\.(multiarray|numeric))?\.(_reconstruct|scalar|dtype|ndarray|_frombuffer)"
)
_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # the mark of torch.save's files before they were zip archives


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
            return _strip_prefixes(safetensors.torch.load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise NetworkError(
                f"{path} is no readable safetensors file ({first_line(error)}); it may be cut short"
            ) from error
    if path.suffix in _PICKLES:
        return _strip_prefixes(_unwrap(_read_pickle(path), path), path)
    raise NetworkError(f"weights {path} end in {path.suffix!r}; expected .safetensors or one of {', '.join(_PICKLES)}")


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of how the file was written
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file may make the reader stumble anywhere. PyTorch's own words would advise to run the code.
    except Exception as error:
        raise NetworkError(_why_unread(path, error)) from None


def _why_unread(path: Path, error: Exception) -> str:
    """What is wrong with a file that PyTorch did not read safely, and what to do."""
    by_torch, names = _names_in_file(path)
    found = re.search(r"GLOBAL (\S+)", str(error)) if by_torch else None
    refused = not by_torch or "weights_only" in str(error)  # else PyTorch stumbled over damage, whatever the names
    code = found[1] if found else next((name for name in names if refused and not _OF_TENSORS.fullmatch(name)), None)
    if code is not None:
        if any(name.startswith(("torch.nn.modules.", "__torch__.")) for name in names):
            advice = (
                "It holds a whole network; where it was made, torch.save(network.state_dict(), path) saves its weights"
            )
        elif by_torch:
            advice = (
                "Where you trust its author, convert it once with torch.load(path, weights_only=False) and "
                "safetensors.torch.save_file(state, new_path)"
            )
        else:
            advice = "It is no file of torch.save; get the weights in such a file, or as .safetensors"
        return f"{path} is refused: to load it would run code ({code}). {advice}"
    if by_torch is False:
        return f"{path} is no file of torch.save; where it was made, torch.save(network.state_dict(), path) writes one"
    if "weights_only" not in str(error):
        return f"{path} is no readable checkpoint ({first_line(error)}); it may be cut short"
    if by_torch:
        return (
            f"{path} is no checkpoint that PyTorch reads without running code; where it was made, "
            "torch.save(network.state_dict(), path) writes one"
        )
    return f"{path} is no readable checkpoint (its pickle is damaged); it may be cut short"


def _names_in_file(path: Path) -> tuple[bool | None, list[str]]:
    """Whether ``torch.save`` wrote a file, None for one that is no whole pickle; and the names that it would import."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
                if inner is None:
                    return False, []
                with archive.open(inner) as file:
                    return True, _names_in(file)
        with open(path, "rb") as file:
            old = _MAGIC in file.read(64)
            file.seek(0)
            # Before the content, PyTorch's old files hold the mark, a version and what machine wrote them.
            return old, [name for _ in range(4 if old else 1) for name in _names_in(file)]
    except Exception:  # damaged, so that it may fail anywhere
        return None, []


def _names_in(file: IO[bytes]) -> list[str]:
    """The names that one pickle would import, in order, read off its instructions; none of them is carried out."""
    names: list[str] = []
    texts: list[str] = []
    memory: dict[Any, Any] = {}
    last: Any = None
    for instruction, argument, _ in pickletools.genops(file):
        kind = instruction.name
        if kind in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif kind == "STACK_GLOBAL":
            names.append(".".join(texts[-2:]))
        elif kind == "MEMOIZE":
            memory[len(memory)] = last
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT"):
            memory[argument] = last
        else:
            last = memory.get(argument) if kind in ("GET", "BINGET", "LONG_BINGET") else argument
            if isinstance(last, str):
                texts.append(last)
    return names


def first_line(error: Exception) -> str:
    """An error's first line without its full stop, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    """The one dict of tensors in a checkpoint."""
    if not isinstance(value, Mapping):
        raise NetworkError(f"{path} holds a {type(value).__name__}; expected a state dict of tensors by name")
    if value and all(isinstance(tensor, Tensor) for tensor in value.values()):
        return dict(value)
    inner = [key for key in _WRAPPERS if isinstance(value.get(key), Mapping)]
    keys = ", ".join(map(str, list(value)[:8])) or "none"
    if not inner:
        raise NetworkError(
            f"{path} holds no state dict: expected tensors by name or one of {_WRAPPERS}, got keys {keys}"
        )
    if len(inner) > 1:
        raise NetworkError(
            f"{path} holds several state dicts ({', '.join(inner)}); save the one that is meant by itself"
        )
    return _unwrap(value[inner[0]], path)


def _strip_prefixes(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    while state and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)):
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
    module = _plain_network(module)
    own = module.state_dict()
    if any(_OLD_DENSENET.search(key) for key in state) and not any(_OLD_DENSENET.search(key) for key in own):
        state = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
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


def _plain_network(module: nn.Module) -> nn.Module:
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
    state = _plain_network(weights).state_dict() if isinstance(weights, nn.Module) else weights
    # clone: safetensors refuses tensors that share memory. Sorted: the order of a dict must not reach the file.
    plain = {key: state[key].detach().to("cpu").contiguous().clone() for key in sorted(state)}
    write_whole(Path(path), safetensors.torch.save(plain, metadata={"format": "pt"}))
