import pytest
import timm
import torch
from torch import nn

import potstill.networks.cifar  # noqa: F401  (registers the zoo with timm)
from potstill.networks.features import MapSpec
from potstill.networks.recording import key_of, record
from potstill.networks.tap import Taps, tap

SIZE = (3, 32, 32)


def images(n=2, size=SIZE):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1))


def named(prefixes, count):
    return [f"{prefix}.{index}" for prefix in prefixes for index in range(count)]


NAMES = {
    "resnet8x4": named(("layer1", "layer2", "layer3"), 1),
    "resnet20": named(("layer1", "layer2", "layer3"), 3),
    "wrn_16_2": named(("block1.layer", "block2.layer", "block3.layer"), 2),
    "ShuffleV2": [*named(["layer1"], 4), *named(["layer2"], 8), *named(["layer3"], 4)],
    "vgg8": [f"relu{stage}" for stage in range(5)],  # stages without blocks are one each
    # Two of its seven stages end at no map, and their blocks count with those of the next one.
    "MobileNetV2": [f"blocks.{stage}.{index}" for stage, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for index in range(n)],
    "resnet18": named(("layer1", "layer2", "layer3", "layer4"), 2),
    "convnext_atto": [f"stages.{stage}.blocks.{index}" for stage, n in enumerate((2, 2, 6, 2)) for index in range(n)],
    "test_vit": ["blocks.1", "blocks.2", "blocks.3", "blocks.5"],  # tokens put back in rows: the maps themselves
    # Stages that run their blocks without an nn.Sequential; one of a single block goes by its own name.
    "regnety_002": ["s1", "s2", *(f"s3.b{n}" for n in range(1, 5)), *(f"s4.b{n}" for n in range(1, 8))],
    # Its residual blocks have empty Sequentials for shortcuts, which return the map before as it is.
    "ghostnet_100": [f"blocks.{s}.{n}" for s, count in enumerate((1, 1, 1, 1, 1, 1, 5, 1)) for n in range(count)],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_every_block(name):
    torch.manual_seed(0)
    size = (3, 64, 64) if name == "test_vit" else SIZE
    network = timm.create_model(name, num_classes=5, **({"img_size": 64} if name == "test_vit" else {})).eval()
    tapped = tap(network, input_size=size)
    assert [spec.name for spec in tapped.spec.blocks] == NAMES[name]
    features = tapped(images(size=size), maps=True, blocks=True)
    returned = outputs(network, NAMES[name], images(size=size))
    assert len(features.blocks) == len(NAMES[name])
    for spec, block in zip(tapped.spec.blocks, features.blocks, strict=True):
        assert (block.shape[1], size[1] // block.shape[2]) == (spec.channels, spec.stride)
        if returned[spec.name].shape == block.shape:
            torch.testing.assert_close(block, returned[spec.name])
    assert {id(value) for value in features.maps[1:]} <= {id(value) for value in features.blocks}
    torch.testing.assert_close(features.logits, network(images(size=size)))
    assert tapped(images(size=size)).blocks == ()


def outputs(network, names, x):
    """What the layers of these names return."""
    returned = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda layer, args, output, name=name: returned.update({name: output.clone()})
        )
        for name in names
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return returned


def test_strides_and_channels():
    tapped = tap(timm.create_model("MobileNetV2"), input_size=SIZE)
    assert tapped.spec.blocks[:3] == (
        MapSpec("blocks.0.0", 8, 2),
        MapSpec("blocks.1.0", 12, 2),
        MapSpec("blocks.1.1", 12, 2),
    )
    assert tapped.spec.blocks[-1] == MapSpec("blocks.6.0", 160, 16)
    assert "blocks" not in repr(tapped.spec).replace("blocks.", "")


def test_through_hooks_they_are_the_maps():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    tapped = tap(network, Taps(maps=("0", "2")), input_size=SIZE)
    assert tapped.spec.blocks == tapped.spec.maps
    features = tapped(images(), maps=True, blocks=True)
    assert all(one is other for one, other in zip(features.blocks, features.maps, strict=True))


class Block(nn.Module):
    """Adds to its input, which the next block's activation changes in place."""

    def __init__(self):
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.act(x)) - 1


class Own(nn.Module):
    """A network that keeps timm's contract, with all its stages in one Sequential."""

    num_classes = 5

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        first, between = nn.Sequential(Block(), Block(), Block()), nn.Conv2d(4, 4, 1)
        self.stages = nn.Sequential(first, nn.Sequential(between, Block(), Block()))
        self.fc = nn.Linear(4, 5)
        self.feature_info = [{"module": name} for name in ("stages.0", "stages.1")]

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return self.stages(self.stem(x))

    def forward_intermediates(self, x, indices=None, stop_early=False, intermediates_only=False):
        ends = []
        handles = [stage.register_forward_hook(lambda *given: ends.append(given[2])) for stage in self.stages]
        x = self.forward_features(x)
        for handle in handles:
            handle.remove()
        ends = ends if indices is None else [ends[index] for index in indices]
        return ends if intermediates_only else (x, ends)

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_what_a_later_layer_changes_in_place_is_kept():
    torch.manual_seed(0)
    network = Own().eval()
    tapped = tap(network, input_size=SIZE)
    assert [spec.name for spec in tapped.spec.blocks] == [*named(["stages.0"], 3), "stages.1.1", "stages.1.2"]
    features = tapped(images(), maps=True, blocks=True)
    with torch.no_grad():
        x, ends = network.stem(images()), []
        for stage in network.stages:
            for layer in stage:
                x = layer.conv(x.relu()) - 1 if isinstance(layer, Block) else layer(x)
                ends.append(x)
    for block, end in zip(features.blocks, ends[:3] + ends[4:], strict=True):
        torch.testing.assert_close(block, end)
        assert (block < 0).any()
    torch.testing.assert_close(features.logits, network(images()))


def test_a_recording_tells_the_calls_of_a_pass():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Identity())
    network = nn.Sequential(inner, inner[1])
    x = images()
    with torch.no_grad(), record(network) as recording:
        returned = network(x)
    outer, convolution, relu, identity, again = recording.calls
    assert [call.name for call in recording.calls] == ["0", "0.0", "0.1", "0.2", "0.1"]
    assert [call.number for call in recording.calls] == [0, 0, 0, 0, 1]
    assert outer.given == convolution.given == key_of(x)
    assert convolution.returned == relu.given != relu.returned  # the same tensor, changed in place
    assert identity.idle()
    assert not relu.idle()
    assert identity.returned == outer.returned == again.given != again.returned == key_of(returned)
    assert recording.inside(outer) == [convolution, relu, identity]
    assert relu.within(outer)
    assert not again.within(outer)
    assert recording.last_of("0.1") is again
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
