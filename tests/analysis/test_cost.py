"""Counts against hand counts; whatever is measured stays as it was."""

import re
import time

import pytest
import timm
import torch
from torch import nn

from potstill.analysis.cost import (
    count_macs,
    count_parameters,
    latency,
    measure_cost,
    size_of_weights,
    size_on_disk,
)
from potstill.errors import DataError, NetworkError
from potstill.networks.build import build_network
from potstill.networks.weights import save_weights


def conv(kernel: int, inputs: int, outputs: int, side: int) -> int:
    return kernel * kernel * inputs * outputs * side * side


# One block a stage; the last two stages halve the side and begin with a 1x1 shortcut.
RESNET8_MACS = (
    conv(3, 3, 16, 32)
    + 2 * conv(3, 16, 16, 32)
    + conv(3, 16, 32, 16)
    + conv(3, 32, 32, 16)
    + conv(1, 16, 32, 16)
    + conv(3, 32, 64, 8)
    + conv(3, 64, 64, 8)
    + conv(1, 32, 64, 8)
    + 64 * 100
)


@pytest.fixture(scope="module")
def resnet8() -> nn.Module:
    return build_network("resnet8", classes=100, input_size=(3, 32, 32))


def test_the_macs_of_a_resnet_are_those_counted_by_hand(resnet8):
    assert count_macs(resnet8.network, (3, 32, 32)) == RESNET8_MACS


def test_groups_divide_the_macs():
    assert count_macs(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), (8, 6, 6)) == 9 * 8 * 36


def test_attention_counts_whether_or_not_it_is_fused():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1)
    tokens, width = 5, 192
    block = tokens * (width * 3 * width + width * width + 2 * width * 4 * width) + 2 * tokens * tokens * width
    expected = 4 * (16 * 16 * 3 * width) + block + width * 10
    assert count_macs(network, (3, 32, 32)) == expected
    network.blocks[0].attn.fused_attn = False
    assert count_macs(network, (3, 32, 32)) == expected


def test_macs_are_of_one_image_whatever_the_mode():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(), nn.Linear(16, 10)).train()
    assert count_macs(network, (3, 4, 4)) == 48 * 16 + 16 * 10


def test_parameters_count_frozen_ones_and_shared_ones_once():
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm1d(4))) == 20 + 8


def test_measuring_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    network.train()
    network[1].eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    measure_cost(network, (3, 8, 8), seconds=0.01)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network] == [True, False, True, True, True]
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


class Sleeper(nn.Module):
    """Takes 2 ms a pass, and 50 ms one time."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images):
        self.batches.append(len(images))
        assert torch.is_inference_mode_enabled()
        assert not self.training
        time.sleep(0.05 if len(self.batches) == 6 else 0.002)
        return images.flatten(1)


def test_latency_is_the_median_of_passes_in_inference_mode():
    network = Sleeper()
    measured = latency(network, (3, 2, 2), batch=4, seconds=0)
    assert 0.002 <= measured < 0.04  # the mean of five passes, one of them 50 ms, is over 11 ms
    assert network.batches == [4] * 8  # three to warm up, five timed


def test_latency_takes_more_passes_in_more_time():
    few, many = Sleeper(), Sleeper()
    latency(few, (3, 2, 2), seconds=0)
    latency(many, (3, 2, 2), seconds=0.2)
    assert len(many.batches) > len(few.batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_latency_on_a_gpu_measures_a_copy():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert latency(network, (3, 2, 2), device="cuda", seconds=0.01) > 0
    assert network[1].weight.device == torch.device("cpu")


def test_the_cost_of_a_student(resnet8, tmp_path):
    cost = measure_cost(resnet8, seconds=0.01)
    assert (cost.parameters, cost.macs) == (83_892, RESNET8_MACS)
    assert 0 < cost.latency_ms < 5000
    # 13 batch norms hold mean, variance and an int64 counter beside their parameters.
    statistics = sum(m.num_features * 8 + 8 for m in resnet8.network.modules() if isinstance(m, nn.BatchNorm2d))
    assert cost.bytes == 83_892 * 4 + statistics == size_of_weights(resnet8)
    path = tmp_path / "student.safetensors"
    save_weights(resnet8, path)
    assert measure_cost(resnet8, seconds=0, weights=path).bytes == size_on_disk(path) == path.stat().st_size
    assert 0 < size_on_disk(path) - cost.bytes < 120 * len(resnet8.network.state_dict())


def test_what_cannot_be_measured_is_said(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(NetworkError, match=re.escape("give input_size=(3, H, W)")):
        measure_cost(network)
    with pytest.raises(NetworkError, match="a batch of 0 images is asked for; expected 1 or more"):
        latency(network, (3, 2, 2), batch=0)
    for measure in (latency, count_macs):
        with pytest.raises(NetworkError, match=re.escape("Sequential does not run on images of (3, 3, 3)")):
            measure(network, (3, 3, 3))
    with pytest.raises(DataError, match=r"no\.safetensors is no file whose size can be read"):
        size_on_disk(tmp_path / "no.safetensors")
