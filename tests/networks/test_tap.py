import copy
import logging
import pickle

import pytest
import timm
import torch
from torch import nn

import potstill.networks.cifar  # noqa: F401  (registers the zoo with timm)
from potstill.errors import NetworkError
from potstill.networks.contract import ContractTapped, ends_of_stages
from potstill.networks.features import MapSpec
from potstill.networks.hooks import HookTapped
from potstill.networks.probe import stride_of
from potstill.networks.tap import Taps, tap

SIZE = (3, 64, 64)
STAGES = {
    "test_resnet": [(32, 2), (32, 4), (48, 8), (192, 16), (96, 32)],
    "test_convnext": [(24, 4), (32, 8), (48, 16), (64, 32)],
    "mobilenetv3_small_050": [(16, 2), (8, 4), (16, 8), (24, 16), (288, 32)],
    "resnet8x4": [(32, 1), (64, 1), (128, 2), (256, 4)],
}


class Small(nn.Module):
    """A user's own network: convolutions with an in-place activation, and two linear layers."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(6, 8)
        self.fc = nn.Linear(8, classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.body(self.act(self.norm(self.stem(x))))
        return self.fc(self.drop(self.hidden(x.mean((2, 3)))))


def images(n=3, size=SIZE):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1))


def untapped(build):
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize("name", STAGES)
def test_timm_networks_are_read_without_hooks_and_give_their_own_logits(name):
    network = timm.create_model(name, num_classes=7).eval()
    tapped = tap(network, input_size=SIZE)
    assert isinstance(tapped, ContractTapped)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert [(m.channels, m.stride) for m in tapped.spec.maps] == STAGES[name]
    features = tapped(images(), maps=True)
    torch.testing.assert_close(features.logits, network(images()))
    torch.testing.assert_close(network.get_classifier()(features.embedding), features.logits)
    assert features.embedding.shape == (3, tapped.spec.embedding_dim)
    assert [m.shape[1] for m in features.maps] == [m.channels for m in tapped.spec.maps]
    assert tapped(images()).maps == ()
    torch.testing.assert_close(tapped(images()).logits, features.logits)


def test_a_plain_transformer_shows_four_blocks():
    network = timm.create_model("test_vit", num_classes=3, img_size=64)
    tapped = tap(network)
    assert tapped.input_size == (3, 64, 64)
    assert [m.name for m in tapped.spec.maps] == ["blocks.1", "blocks.2", "blocks.3", "blocks.5"]
    assert {m.stride for m in tapped.spec.maps} == {16}
    assert tapped(images(), maps=True).maps[0].shape == (3, 64, 4, 4)


@pytest.mark.parametrize("taps", [None, Taps(classifier="fc", maps=("act", "body"))])
def test_the_logits_depend_on_the_embedding_in_the_graph(taps):
    build = Small if taps else lambda: timm.create_model("resnet8x4", num_classes=5)
    tapped = tap(untapped(build), taps, input_size=SIZE)
    features = tapped(images())
    (share,) = torch.autograd.grad(features.logits[:, 2].sum(), features.embedding)
    weight = tapped.network.fc.weight
    torch.testing.assert_close(share, weight[2].expand(3, -1))


def test_hooks_show_the_values_at_the_named_layers():
    network = untapped(Small)
    x = images()
    stem = network.stem(x)
    norm = network.norm(stem)
    norm_kept = norm.clone()
    hidden = network.hidden(network.body(network.act(norm)).mean((2, 3)))
    tapped = tap(network, Taps(maps=("norm", "body")), input_size=SIZE)
    assert isinstance(tapped, HookTapped)
    assert tapped.spec.maps == (MapSpec("norm", 4, 2), MapSpec("body", 6, 4))
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (5, 8)
    features = tapped(x, maps=True)
    # The in-place activation after it must not reach the caught output.
    torch.testing.assert_close(features.maps[0], norm_kept)
    assert (features.maps[0] < 0).any()
    torch.testing.assert_close(features.embedding, hidden)
    torch.testing.assert_close(features.logits, network.fc(hidden))


def test_gradients_through_a_protected_map_are_those_of_the_plain_network():
    network = untapped(Small)
    network(images()).square().sum().backward()
    plain = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    tap(network, Taps(maps=("norm",)), input_size=SIZE)(images(), maps=True).logits.square().sum().backward()
    for one, other in zip(plain, [p.grad for p in network.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(one, other)


def test_the_default_classifier_is_the_last_linear_of_the_pass_and_said(caplog):
    with caplog.at_level(logging.INFO, logger="potstill"):
        tapped = tap(Small(), input_size=SIZE)
    assert "classifier of Small: 'fc', the last nn.Linear of the pass" in caplog.text
    assert tapped.spec.embedding_dim == 8


@pytest.mark.parametrize("build", [Small, lambda: timm.create_model("test_resnet", drop_rate=0.3)])
def test_the_probe_leaves_no_trace(build):
    network = build()
    network.get_submodule("fc").eval()  # one part frozen by its owner, the rest in training
    flags = {name: module.training for name, module in network.named_modules()}
    state = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tap(network, input_size=SIZE)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in network.named_modules()} == flags
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_copies_share_nothing():
    tapped = tap(untapped(Small), Taps(maps=("stem",)), input_size=SIZE)
    twin = copy.deepcopy(tapped)
    with torch.no_grad():
        twin.network.stem.weight.zero_()
        twin.network.stem.bias.fill_(2.0)
    assert twin.store is not tapped.store
    assert twin(images(), maps=True).maps[0].unique().tolist() == [2.0]
    assert tapped(images(), maps=True).maps[0].unique().numel() > 1
    assert tapped.store.values == {}


def test_a_pickled_network_works_and_holds_no_features():
    tapped = tap(untapped(Small), Taps(maps=("stem",)), input_size=SIZE)
    expected = tapped(images(), maps=True)
    twin = pickle.loads(pickle.dumps(tapped))
    features = twin(images(), maps=True)
    torch.testing.assert_close(features.embedding, expected.embedding)
    torch.testing.assert_close(features.maps[0], expected.maps[0])


def test_the_network_alone_catches_nothing():
    tapped = tap(Small(), Taps(maps=("stem",)), input_size=SIZE)
    tapped.network(images())
    assert tapped.store.values == {}
    assert list(tapped.network.state_dict()) == list(Small().state_dict())


@pytest.mark.parametrize("taps", [None, Taps(maps=("norm", "body"))])
def test_compiled_in_one_graph(taps):
    network = untapped(Small if taps else lambda: timm.create_model("resnet8", num_classes=5))
    tapped = tap(network, taps, input_size=SIZE)
    expected = tapped(images(), maps=True)
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)
    features = compiled(images(), maps=True)
    torch.testing.assert_close(features.logits, expected.logits)
    torch.testing.assert_close(features.embedding, expected.embedding)
    torch.testing.assert_close(features.maps, expected.maps)
    with pytest.raises(NetworkError, match="compiled already, and hooks on it would never fire"):
        tap(compiled)


def test_dropout_between_embedding_and_classifier_is_not_lost():
    network = timm.create_model("test_efficientnet", num_classes=4, drop_rate=0.5).train()
    tapped = tap(network, input_size=SIZE)
    torch.manual_seed(5)
    expected = network(images(8))
    torch.manual_seed(5)
    torch.testing.assert_close(tapped(images(8)).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_a_classifier():
    timm_network = timm.create_model("test_resnet", num_classes=0).eval()
    tapped = tap(timm_network, input_size=SIZE)
    features = tapped(images())
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (0, 96)
    assert features.logits.shape == (3, 0)
    torch.testing.assert_close(features.embedding, timm_network(images()))

    own = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    tapped = tap(own, Taps(embedding="2"), input_size=SIZE)
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (0, 4)
    assert tapped(images()).logits.shape == (3, 0)
    torch.testing.assert_close(tapped(images()).embedding, own(images()))


def test_named_stages_of_a_timm_network_need_no_hooks():
    network = timm.create_model("test_resnet", num_classes=4)
    tapped = tap(network, Taps(classifier="fc", maps=("layer2", "layer4")), input_size=SIZE)
    assert isinstance(tapped, ContractTapped)
    assert [m.name for m in tapped.spec.maps] == ["layer2", "layer4"]
    assert [m.shape[1] for m in tapped(images(), maps=True).maps] == [48, 96]


def test_other_layers_of_a_timm_network_go_through_hooks(caplog):
    network = timm.create_model("test_resnet", num_classes=4).eval()
    with caplog.at_level(logging.INFO, logger="potstill"):
        tapped = tap(network, Taps(maps=("layer1.0.conv1",)), input_size=SIZE)
    assert isinstance(tapped, HookTapped)
    assert "layer1.0.conv1 is no stage of its feature_info" in caplog.text
    torch.testing.assert_close(tapped(images()).logits, network(images()))


def test_two_classifiers_of_two_vectors_are_refused_and_one_can_be_named():
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, img_size=32, depth=2).eval()
    with pytest.raises(NetworkError, match=r"is not what the network returns; name in taps\.classifier"):
        tap(network, input_size=(3, 32, 32))
    tapped = tap(network, Taps(classifier="head"), input_size=(3, 32, 32))
    x = images(size=(3, 32, 32))
    torch.testing.assert_close(tapped(x).logits, network(x))
    torch.testing.assert_close(tapped(x).embedding, network.forward_features(x)[:, 0])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Turn(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.turn, self.fc = nn.Conv2d(3, 24, 8, stride=8), Turn(), nn.Linear(24, 4)

    def forward(self, x):
        return self.fc(self.turn(self.conv(x)).mean((1, 2)))


def test_two_classifiers_of_one_vector_give_their_mean():
    network = timm.create_model("levit_conv_128s", num_classes=4).eval()
    tapped = tap(network, input_size=(3, 224, 224))
    x = images(2, (3, 224, 224))
    assert isinstance(tapped, ContractTapped)
    torch.testing.assert_close(tapped(x).logits, network(x))


def test_a_convolution_as_classifier():
    network = timm.create_model("dla46x_c", num_classes=4).eval()
    tapped = tap(network, input_size=SIZE)
    assert isinstance(tapped, ContractTapped)
    features = tapped(images())
    torch.testing.assert_close(features.logits, network(images()))
    (share,) = torch.autograd.grad(features.logits[:, 1].sum(), features.embedding)
    torch.testing.assert_close(share, network.get_classifier().weight[1, :, 0, 0].expand(3, -1))


CASES = {
    "no layer": (
        Small,
        Taps(maps=("boddy",)),
        r"Small has no layer 'boddy'; it has stem, norm, .*Did you mean 'body'\?",
    ),
    "not run": (Small, Taps(maps=("unused",)), "layer 'unused' cannot be a map: it is not run"),
    "not a map": (Small, Taps(maps=("hidden",)), r"layer 'hidden' cannot be a map: expected an output \(B, C, H, W\)"),
    "not pooled": (Small, Taps(classifier="body"), r"the input of 'body' cannot be the embedding: expected a tensor"),
    "not an embedding": (
        Small,
        Taps(embedding="unused"),
        "the output of 'unused' cannot be the embedding: the layer is not",
    ),
    "no linear": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 64), nn.Flatten()),
        None,
        "has no nn.Linear to take for its class",
    ),
    "linear inside": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.Softmax(1)),
        None,
        "the last nn.Linear of Sequential, '1', does not return the network's output; name the layer",
    ),
    "map of logits": (lambda: nn.Conv2d(3, 4, 1), None, "has no nn.Linear"),
    "small image": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 80)),
        None,
        r"Sequential does not run on images of \(3, 64, 64\)",
    ),
    "two outputs": (Pair, None, "Pair returns tuple; expected one tensor of logits"),
    "channels last": (Last, Taps(maps=("turn",)), "here the channels seem to come last"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_tapped_is_said(case):
    build, taps, message = CASES[case]
    with pytest.raises(NetworkError, match=message):
        tap(build(), taps, input_size=SIZE)


def test_taps_that_contradict_themselves():
    with pytest.raises(NetworkError, match=r"name both a classifier .* and an embedding"):
        Taps(classifier="fc", embedding="pool")
    with pytest.raises(NetworkError, match=r"taps\.maps names 'a' more than once"):
        Taps(maps=("a", "b", "a"))


def test_an_embedding_layer_that_runs_twice_is_refused():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    network.append(network[2])
    with pytest.raises(NetworkError, match="runs 2 times a pass in Sequential; name one that runs once"):
        tap(network, input_size=SIZE)


def test_stages_and_strides():
    assert ends_of_stages(tuple(MapSpec(str(i), 8, s) for i, s in enumerate([1, 1, 2, 4]))) == (0, 1, 2, 3)
    assert ends_of_stages(tuple(MapSpec(str(i), 8, 16) for i in range(24))) == (5, 11, 17, 23)
    assert ends_of_stages(tuple(MapSpec(str(i), 8, s) for i, s in enumerate([4, *[8] * 8]))) == (0, 2, 4, 6, 8)
    assert [stride_of(32, n) for n in (32, 16, 8, 1)] == [1, 2, 4, 32]
    assert stride_of(65, 33) == 2
    assert stride_of(224, 16) == 14


@pytest.mark.parametrize("taps", [None, Taps(maps=("norm", "body"))])
def test_data_parallel_gives_the_same_features_and_gradients(taps, tmp_path):
    network = untapped(Small if taps else lambda: timm.create_model("resnet8", num_classes=5))
    tapped = tap(network, taps, input_size=SIZE).train()
    twin = copy.deepcopy(tapped)
    twin(images(), maps=True).logits.square().sum().backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tapped, find_unused_parameters=taps is not None)
        torch.manual_seed(0)
        features = wrapped(images(), maps=True)
        features.logits.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert [m.shape[1] for m in features.maps] == [m.channels for m in tapped.spec.maps]
    assert tapped.network.fc.weight.grad.abs().sum() > 0
    if taps is None:  # Small draws dropout
        for one, other in zip(tapped.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
