"""Class means beside a store: what methods that read them need, without a pass of the teacher."""

import zlib
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.errors import RunError
from potstill.files import write_whole

__all__ = ["MEANS_FILE", "read_means", "write_means"]

MEANS_FILE = "class_means.safetensors"
_NAME = "class_means"


def write_means(folder: Path, means: Tensor, policy: str, digest: str) -> None:
    """Write ``class_means.safetensors``, whole or not at all, in the place of the one before.

    Args:
        folder: the store's.
        means: ``(C, D)``, kept as float32.
        policy: how the images were seen, such as 'augmented' or 'clean'.
        digest: of the store's key.

    Raises:
        RunError: means that are no table or not finite; or the file cannot be written.
    """
    means = means.detach().to("cpu", torch.float32).contiguous()
    if means.ndim != 2 or not means.isfinite().all():
        raise RunError(f"class means are a finite number for each class and dimension; got {tuple(means.shape)}")
    made_of = {"policy": policy, "key": digest, "crc32": str(crc(means))}
    write_whole(folder / MEANS_FILE, safetensors.torch.save({_NAME: means}, metadata=made_of))


def read_means(folder: Path, policy: str, digest: str) -> Tensor | None:
    """Class means ``(C, D)`` float32 of this policy; None where none were kept, or those of another policy.

    Raises:
        RunError: the file is damaged, or another store's.
    """
    path = folder / MEANS_FILE
    if not path.is_file():
        return None
    advice = "Delete that file, and the means are collected again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            means: Tensor = file.get_tensor(_NAME)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged ({' '.join(str(error).split())}). {advice}") from None
    if metadata.get("key") != digest:
        raise RunError(f"{path} belongs to another store. {advice}")
    if metadata.get("crc32") != str(crc(means)):
        raise RunError(f"{path} is damaged: its numbers are not those that were written. {advice}")
    return means if metadata.get("policy") == policy else None


def crc(means: Tensor) -> int:
    return zlib.crc32(means.numpy().tobytes())
