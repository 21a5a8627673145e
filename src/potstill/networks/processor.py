"""What a processor is good at."""

import platform

import torch

__all__ = ["native_bf16"]


def native_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 numbers by instructions of its own; elsewhere float32 is the faster one.

    Of processors these are the ones with AVX512-BF16, AMX or Arm's BF16, as long as torch has oneDNN, which uses them;
    of CUDA devices those from Ampere on. Of any other kind of device nothing is known, so it is not relied on.

    Example:
        >>> native_bf16("mps")
        False
    """
    device = torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # on x86 it says no more than AVX512
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
