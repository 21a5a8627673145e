import platform

import pytest
import torch

from potstill.networks.processor import native_bf16


@pytest.fixture
def processor(monkeypatch):
    """Set what torch says of the processor."""

    def be(machine, avx512_bf16=False, amx=False, arm=False, onednn=True):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: arm)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)

    return be


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"machine": "x86_64", "arm": True}, False),  # torch runs bfloat16 on any AVX512, in float32's units
        ({"machine": "x86_64", "avx512_bf16": True}, True),
        ({"machine": "AMD64", "amx": True}, True),
        ({"machine": "x86_64", "avx512_bf16": True, "onednn": False}, False),
        ({"machine": "aarch64", "arm": True}, True),
        ({"machine": "aarch64", "avx512_bf16": True}, False),
        ({"machine": "arm64", "arm": True, "onednn": False}, False),
    ],
)
def test_processors(processor, facts, expected):
    processor(**facts)
    assert native_bf16("cpu") is native_bf16(torch.device("cpu")) is expected


def test_the_functions_that_are_asked_are_there():
    assert native_bf16("cpu") in (True, False)
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() in (True, False)


@pytest.mark.parametrize(("capability", "expected"), [(7, False), (8, True)])
def test_cuda_devices(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_bf16("cuda") is False
    asked = []

    class Entered:
        def __init__(self, device):
            asked.append(device)

        def __enter__(self):
            return None

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= 8)
    assert native_bf16("cuda:1") is expected
    assert asked == [torch.device("cuda:1")]


def test_of_other_devices_nothing_is_known():
    assert [native_bf16(kind) for kind in ("mps", "xpu", "meta")] == [False] * 3
