import timm
import torch
from torch import nn

from potstill.networks.build import build_network
from potstill.networks.features import FeatureSpec, MapSpec
from potstill.networks.inspect import TapRow, describe_taps, propose_pairs
from potstill.networks.tap import Taps, tap


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.unused = nn.Linear(1, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.act(self.conv(x))
        return self.fc(self.act(x + self.block(x)).mean((2, 3)))


def test_the_stages_of_a_timm_network():
    rows = describe_taps(build_network("resnet8x4", classes=10, input_size=(3, 32, 32)))
    assert rows == [
        TapRow("relu", "ReLU", 32, 1, (32, 32), True),
        TapRow("layer1", "Sequential", 64, 1, (32, 32), True),
        TapRow("layer2", "Sequential", 128, 2, (16, 16), True),
        TapRow("layer3", "Sequential", 256, 4, (8, 8), True),
        TapRow("embedding", "vector", 256, None, None, True),
        TapRow("logits", "vector", 10, None, None, True),
    ]


def test_a_transformer_shows_every_block_and_which_are_used():
    rows = describe_taps(tap(timm.create_model("test_vit", num_classes=0, img_size=32)))
    assert [(row.name, row.used) for row in rows] == [
        ("blocks.0", False),
        ("blocks.1", True),
        ("blocks.2", True),
        ("blocks.3", True),
        ("blocks.4", False),
        ("blocks.5", True),
        ("embedding", True),
    ]
    assert {row.size for row in rows[:-1]} == {(2, 2)}


def test_every_layer_of_a_users_network_in_the_order_of_the_pass():
    network = Residual().train()
    rows = describe_taps(network, (3, 16, 16))
    assert [(row.name, row.kind, row.channels, row.stride, row.size) for row in rows] == [
        ("conv", "Conv2d", 6, 2, (8, 8)),
        ("block.0", "Conv2d", 6, 2, (8, 8)),
        ("block.1", "BatchNorm2d", 6, 2, (8, 8)),
        ("block", "Sequential", 6, 2, (8, 8)),
        ("act", "ReLU", 6, 2, (8, 8)),
        ("fc", "Linear", 2, None, None),
    ]
    assert not any(row.used for row in rows)
    assert network.block.training
    assert network.block[1].num_batches_tracked == 0
    assert not any(layer._forward_hooks for layer in network.modules())


def test_the_layers_in_use_are_marked():
    tapped = tap(Residual(), Taps(maps=("block",)), input_size=(3, 16, 16))
    assert [row.name for row in describe_taps(tapped) if row.used] == ["block"]
    assert tapped(torch.ones(1, 3, 16, 16), maps=True).maps[0].shape == (1, 6, 8, 8)


def test_pairs_are_the_last_layers_of_common_strides():
    student = FeatureSpec(10, 64, (MapSpec("a", 16, 1), MapSpec("b", 16, 2), MapSpec("c", 64, 4)))
    teacher = FeatureSpec(9, 64, (MapSpec("p", 8, 2), MapSpec("q", 32, 2), MapSpec("r", 64, 4), MapSpec("s", 64, 8)))
    assert [(s.name, t.name, note) for s, t, note in propose_pairs(student, teacher)] == [
        ("b", "q", "channels differ: 16 and 32"),
        ("c", "r", "64 channels in both"),
    ]
    assert propose_pairs(student, FeatureSpec(10, 64)) == []
