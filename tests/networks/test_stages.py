import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

import potstill.networks.cifar  # noqa: F401  (registers the zoo with timm)
from potstill.errors import NetworkError
from potstill.networks.stages import forward_to, stage_parameters
from potstill.networks.tap import Taps, tap

SIZE = (3, 32, 32)
LAYERS = ("layer1", "layer2", "layer3", "layer4")


def images(n=2, size=SIZE):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1))


def timm_network(name):
    return lambda: tap(timm.create_model(name, num_classes=5), input_size=SIZE)


def torchvision_resnet():
    return tap(torchvision.models.resnet18(num_classes=5), Taps(maps=("relu", *LAYERS)), input_size=SIZE)


class Functional(nn.Module):
    """Functional activations, a parameter outside any layer, and layers whose order of definition is another."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shift = nn.Parameter(torch.zeros(4, 1, 1))
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.a, self.b = nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.a(nn.functional.relu(self.first(x - self.mean)))
        x = self.b(nn.functional.relu(self.plain(self.second(x)) + self.shift))
        return self.head(x.mean((2, 3)))


def functional():
    return tap(Functional(), Taps(maps=("a", "b")), input_size=SIZE)


BUILDS = {name: timm_network(name) for name in ("resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2")}
BUILDS |= {name: timm_network(name) for name in ("resnet18", "convnext_atto")}
BUILDS |= {"torchvision": torchvision_resnet, "functional": functional}

PREFIXES = {
    "resnet8x4": [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("fc.",)],
    # The first batch norm of a block belongs to what follows: the map before it is raw.
    "wrn_16_2": [("conv1.",), ("block1.",), ("block2.",), ("block3.",), ("bn1.", "fc.")],
    "vgg8": [*((f"block{stage}.",) for stage in range(5)), ("classifier.",)],
    "MobileNetV2": [
        *(("conv1.",), ("blocks.0.", "blocks.1."), ("blocks.2.",), ("blocks.3.", "blocks.4.")),
        *(("blocks.5.", "blocks.6."), ("conv2.", "classifier.")),
    ],
    "ShuffleV2": [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("conv2.", "bn2.", "linear.")],
    "resnet18": [("conv1.", "bn1."), *((f"{layer}.",) for layer in LAYERS), ("fc.",)],
    "convnext_atto": [("stem.", "stages.0."), ("stages.1.",), ("stages.2.",), ("stages.3.",), ("head.",)],
    "torchvision": [("conv1.", "bn1."), *((f"{layer}.",) for layer in LAYERS), ("fc.",)],
    # The network's own buffer goes with its own parameter.
    "functional": [("first.",), ("second.", "shift", "plain.", "mean"), ("head.",)],
}


@pytest.mark.parametrize("name", BUILDS)
def test_every_name_is_in_one_stage(name):
    tapped = BUILDS[name]()
    names = list(tapped.network.state_dict())
    stages = stage_parameters(tapped)
    assert len(stages) == len(tapped.spec.maps) + 1
    assert sorted(name for stage in stages for name in stage) == sorted(names)
    assert stages == [[key for key in names if key.startswith(prefixes)] for prefixes in PREFIXES[name]]


@pytest.mark.parametrize("name", BUILDS)
def test_a_stage_is_what_changes_its_map_and_no_earlier_one(name):
    """By gradients: the first map with a gradient for a parameter is the one that its stage ends with."""
    tapped = BUILDS[name]().eval()
    maps = tapped(images(), maps=True).maps
    parameters = dict(tapped.network.named_parameters())
    first = dict.fromkeys(parameters, len(maps))
    for index in reversed(range(len(maps))):
        shares = torch.autograd.grad(maps[index].sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        first |= {key: index for key, share in zip(parameters, shares, strict=True) if share is not None}
    found = {key: index for index, stage in enumerate(stage_parameters(tapped)) for key in stage if key in parameters}
    assert found == first


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_pass_up_to_a_map(name, training):
    tapped = BUILDS[name]().train(training)
    for index in (0, 1, -1):
        expected = copy.deepcopy(tapped)(images(), maps=True).maps[index]
        torch.testing.assert_close(forward_to(copy.deepcopy(tapped), images(), index), expected)


def test_later_layers_do_not_run():
    tapped = BUILDS["resnet8x4"]().train()
    ran = []
    for name, layer in tapped.network.named_children():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    forward_to(tapped, images(), 1)
    assert ran == ["conv1", "bn1", "relu", "layer1"]
    trained = {name for name, buffer in tapped.network.named_buffers() if name.endswith("tracked") and buffer > 0}
    stages = stage_parameters(tapped)
    assert trained == {name for name in stages[0] + stages[1] if name.endswith("tracked")}


@pytest.mark.parametrize("name", ["resnet8x4", "torchvision", "functional"])
def test_it_compiles(name):
    torch.compiler.reset()
    tapped = BUILDS[name]().eval()
    compiled = torch.compile(forward_to, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tapped, images(), 1), tapped(images(), maps=True).maps[1])


def test_the_probe_leaves_no_trace():
    tapped = BUILDS["torchvision"]().train()
    frozen = [name for name, _ in tapped.network.named_parameters() if name.startswith("layer2.")]
    for name in frozen:
        tapped.network.get_parameter(name).requires_grad_(False)
    state = copy.deepcopy(tapped.network.state_dict())
    hooks = [len(module._forward_hooks) for module in tapped.modules()]
    stages = stage_parameters(tapped)
    assert set(frozen) <= set(stages[2])  # frozen parameters have a stage too
    assert [name for name, p in tapped.network.named_parameters() if not p.requires_grad] == frozen
    assert all(parameter.grad is None for parameter in tapped.parameters())
    assert all(module.training for module in tapped.modules())
    assert [len(module._forward_hooks) for module in tapped.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in tapped.network.state_dict().items())


def test_an_unused_parameter_must_be_frozen():
    network = Functional()
    network.spare = nn.Linear(2, 2)
    tapped = tap(network, Taps(maps=("a", "b")), input_size=SIZE)
    with pytest.raises(NetworkError, match=r"no output of Functional depends on its parameter 'spare.weight', so"):
        stage_parameters(tapped)
    network.spare.requires_grad_(False)
    assert stage_parameters(tapped)[-1] == ["head.weight", "head.bias", "spare.weight", "spare.bias"]


def test_shared_parameters_belong_to_the_first_stage_that_uses_them():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    body = (nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, nn.ReLU())
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    tapped = tap(network, Taps(maps=("2", "4")), input_size=SIZE)
    stages = stage_parameters(tapped)
    assert stages == [["0.weight", "0.bias", "1.weight", "1.bias"], [], ["7.weight", "7.bias"]]


def test_a_network_that_changes_its_images_in_place():
    class Normalised(Functional):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    assert stage_parameters(tap(Normalised(), Taps(maps=("a", "b")), input_size=SIZE)) == stage_parameters(functional())


def test_what_has_no_stages_is_said():
    bare = tap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), input_size=SIZE)
    with pytest.raises(NetworkError, match=r"Sequential shows no maps to cut it at; .* in taps\.maps"):
        stage_parameters(bare)
    with pytest.raises(NetworkError, match="stage is 4, and CifarResNet shows 4 maps, counted from 0"):
        forward_to(BUILDS["resnet8x4"](), images(), 4)
