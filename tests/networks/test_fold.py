import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import StdConv2d, freeze_batch_norm_2d
from torch import nn
from torch.nn.utils import parametrizations

from potstill.networks.cifar import CIFAR_MODELS
from potstill.networks.fold import fold_batchnorms
from potstill.networks.tap import Taps, tap

SIZE = (3, 32, 32)


def drawn(network, seed=0):
    """The network in evaluation mode, each of its batch norms with statistics and an affine of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            layer, part = network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            if getattr(layer, "running_var", None) is None or not tensor.is_floating_point():
                continue
            low, high = {"weight": (0.5, 1.5), "running_var": (0.5, 1.5)}.get(part, (-0.3, 0.3))
            tensor.uniform_(low, high, generator=generator)
    return network.eval()


def tensors(tapped, images):
    every = {"maps": True, "preacts": True, "blocks": True} if tapped.spec.maps else {}
    with torch.no_grad():
        features = tapped(images, **every)
    return [features.logits, features.embedding, *features.maps, *features.preacts, *features.blocks]


def largest_difference(one, other, images):
    """Over every feature that the two can show, relative to the feature's largest entry."""
    pairs = zip(tensors(one, images), tensors(other, images), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def compare(network, size=SIZE, taps=None):
    """Fold it in float64 and in float32, hold both against the network as it was; the report."""
    plain = tap(drawn(network), taps, input_size=size)
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(plain).double()
    folded = copy.deepcopy(exact)
    report = fold_batchnorms(folded)
    assert largest_difference(exact, folded, images.double()) < 1e-9
    single = copy.deepcopy(plain)
    assert fold_batchnorms(single) == report
    assert largest_difference(plain, single, images) < 1e-4
    left = [name for name, layer in single.network.named_modules() if getattr(layer, "running_var", None) is not None]
    assert left == list(report.kept)
    return report


NOTHING_BEFORE = "it does not read a plain convolution or linear layer without hooks"


@pytest.mark.parametrize(
    ("name", "folded", "kept"),
    [
        ("resnet8x4", 10, 0),
        ("vgg8", 5, 0),
        ("ResNet50", 53, 0),
        ("MobileNetV2", 53, 0),
        ("ShuffleV1", 49, 0),
        ("ShuffleV2", 56, 0),
        ("wrn_16_2", 6, 7),  # batch norms before convolutions; those between the two of a block can be folded
    ],
)
def test_the_cifar_zoo(name, folded, kept):
    assert name in CIFAR_MODELS.values()
    report = compare(timm.create_model(name, num_classes=5))
    assert (len(report.folded), len(report.kept)) == (folded, kept)


@pytest.mark.parametrize(
    ("name", "side", "folded", "kept"),
    [
        ("resnet18", 64, 20, 0),
        ("resnetv2_50", 64, 32, 17),  # norm and activation in one layer, most of them before a convolution
        ("efficientnet_b0", 64, 49, 0),
        ("tf_efficientnet_b0", 64, 49, 0),  # convolutions with padding of their own
        ("mobilenetv3_small_100", 64, 34, 0),
        ("densenet121", 64, 59, 62),
        ("repvgg_a0", 64, 44, 17),  # batch norms as branches
        ("convnext_atto", 64, 0, 0),
        ("vit_tiny_patch16_224", 224, 0, 0),
    ],
)
def test_networks_of_timm(name, side, folded, kept):
    report = compare(timm.create_model(name, num_classes=5), (3, side, side))
    assert (len(report.folded), len(report.kept)) == (folded, kept)
    assert set(report.kept.values()) <= {NOTHING_BEFORE}


def test_a_network_of_torchvision():
    taps = Taps(maps=("layer1", "layer2", "layer3", "layer4"))
    report = compare(torchvision.models.resnet18(num_classes=5), (3, 64, 64), taps)
    assert (len(report.folded), report.kept) == (20, {})
    assert report.folded["layer2.0.downsample.1"] == "layer2.0.downsample.0"


def test_frozen_batch_norms():
    frozen = torchvision.models.resnet18(num_classes=5, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    report = compare(frozen, (3, 64, 64), Taps(maps=("layer1", "layer4")))
    assert (len(report.folded), report.kept) == (20, {})
    report = compare(freeze_batch_norm_2d(timm.create_model("efficientnet_b0", num_classes=5)), (3, 64, 64))
    assert (len(report.folded), report.kept) == (49, {})


class Net(nn.Module):
    """A stem, what is tested (``self.conv`` and ``self.norm`` among it), and a head."""

    def __init__(self, conv=None, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False) if conv is None else conv
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.head(F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3)))


SPECTRAL = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, bias=True),
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular"),
        nn.ConvTranspose2d(8, 8, 3, stride=2, output_padding=1),
    ],
)
def test_convolutions_of_every_kind(conv):
    report = compare(Net(conv))
    assert report.folded == {"norm": "conv"}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, eps=0.3),
        nn.SyncBatchNorm(8),
        timm.layers.BatchNormAct2d(8, drop_layer=nn.Identity, act_layer=nn.SiLU),
    ],
)
def test_batch_norms_of_every_kind(norm):
    assert compare(Net(norm=norm)).folded == {"norm": "conv"}


def test_a_linear_layer():
    layers = [nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)]
    assert compare(nn.Sequential(*layers), (3, 4, 4)).folded == {"2": "1"}
    layers[1] = nn.Linear(48, 16, bias=False)
    assert compare(nn.Sequential(*layers), (3, 4, 4)).folded == {"2": "1"}


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Net(norm=nn.BatchNorm2d(8, track_running_stats=False)), "it is no batch norm with fixed statistics"),
        (Net(StdConv2d(8, 8, 3)), NOTHING_BEFORE),
        (Net(SPECTRAL), NOTHING_BEFORE),
        (Net(nn.ConvTranspose2d(8, 8, 3, groups=2)), NOTHING_BEFORE),
        (Net(nn.Identity()), NOTHING_BEFORE),
    ],
)
def test_what_cannot_be_folded_stays(network, reason):
    plain = tap(network.eval(), input_size=SIZE)
    folded = copy.deepcopy(plain)
    report = fold_batchnorms(folded)
    assert report.folded == {}
    assert report.kept["norm"].startswith(reason)
    images = torch.randn(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(plain(images).logits, folded(images).logits)


READERS = {
    "a sum": lambda net, x: net.norm(y := net.conv(x)) + y,
    "a sum before": lambda net, x: (y := net.conv(x)) + net.norm(y),
    "a product in place": lambda net, x: net.norm(y := net.conv(x)).mul_(y),
    "a mean of it": lambda net, x: net.norm(y := net.conv(x)) * y.mean((2, 3), keepdim=True),
    "a part of it": lambda net, x: torch.cat([net.norm(y := net.conv(x))[:, :4], y[:, 4:]], 1),
    "a list of it": lambda net, x: torch.stack([net.norm(y := net.conv(x)), y]).sum(0),
}


def with_body(body, **parts):
    kind = type("Other", (Net,), {"body": body})
    return kind(**parts)


@pytest.mark.parametrize("body", READERS.values(), ids=READERS)
def test_a_convolution_that_anything_else_reads_stays(body):
    assert compare(with_body(body)).kept == {"norm": "something else reads what conv returns"}


CHANGED = {
    "scaled": lambda net, x: net.norm(net.conv(x) * 2),
    "changed in place": lambda net, x: net.norm(net.conv(x).add_(1)),
    "a view": lambda net, x: net.norm(net.conv(x).flatten(2).unflatten(2, (30, 30))[:, :, :15]),
    "an activation": lambda net, x: net.norm(F.relu_(net.conv(x))),
}


@pytest.mark.parametrize("body", CHANGED.values(), ids=CHANGED)
def test_a_convolution_that_is_changed_before_the_batch_norm_stays(body):
    assert compare(with_body(body)).kept == {"norm": NOTHING_BEFORE}


def test_layers_that_run_twice_stay():
    conv_twice = compare(with_body(lambda net, x: net.norm(net.conv(F.relu(net.conv(x))))))
    assert conv_twice.kept == {"norm": "conv runs more than once a pass"}
    norm_twice = compare(with_body(lambda net, x: net.norm(net.conv(net.norm(x)))))
    assert norm_twice.kept == {"norm": "it runs 2 times a pass"}
    never = compare(with_body(lambda net, x: net.conv(x)))
    assert never.kept == {"norm": "it runs 0 times a pass"}


def test_dropout_between_is_nothing_in_evaluation():
    assert compare(with_body(lambda net, x: net.norm(net.drop(net.conv(x))))).folded == {"norm": "conv"}


def test_two_convolutions_that_share_a_weight_fold_apart():
    class Shared(Net):
        def __init__(self):
            super().__init__()
            self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.second.weight = self.conv.weight
            self.second_norm = nn.BatchNorm2d(8)

        def body(self, x):
            return self.second_norm(self.second(F.relu(super().body(x))))

    assert compare(Shared()).folded == {"norm": "conv", "second_norm": "second"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda net, x: net.norm(net.conv(x)) * net.norm.weight.mean(), "the rehearsal failed (AttributeError: "),
        (lambda net, x: F.conv2d(net.norm(net.conv(x)), net.conv.weight), "the network computes something else"),
    ],
)
def test_a_network_that_reads_parameters_directly_is_left_whole(body, reason):
    report = compare(with_body(body))
    assert report.kept["norm"].startswith(reason)


def test_a_convolution_that_is_a_map_stays():
    report = compare(timm.create_model("wrn_16_1", num_classes=5))
    assert report.kept["block1.layer.0.bn1"] == "something else reads what conv1 returns"
    wrapped = compare(Net(nn.Sequential(nn.Conv2d(8, 8, 3))), taps=Taps(maps=("conv",)))
    assert wrapped.kept == {"norm": "something else reads what conv.0 returns"}
    assert compare(Net(nn.Sequential(nn.Conv2d(8, 8, 3)))).folded == {"norm": "conv.0"}


@pytest.mark.parametrize("layer", ["conv", "norm"])
def test_a_tapped_layer_shows_what_it_showed(layer):
    plain = tap(drawn(Net()), Taps(maps=(layer,)), input_size=SIZE)
    folded = copy.deepcopy(plain)
    report = fold_batchnorms(folded)
    assert report.folded == ({} if layer == "conv" else {"norm": "conv"})
    images = torch.randn(2, *SIZE)
    [ours], [expected] = folded(images, maps=True).maps, plain(images, maps=True).maps
    torch.testing.assert_close(ours, expected)
    assert type(folded.network.norm) is (nn.BatchNorm2d if layer == "conv" else nn.Identity)


def test_a_batch_norm_that_is_changed_in_place_behind_is_still_shown():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 5))
    assert compare(network, taps=Taps(maps=("1",))).folded == {"1": "0"}


def test_hooks_that_change_what_they_see():
    hooked = Net()
    hooked.conv.register_forward_hook(lambda layer, given, returned: returned.abs())
    assert compare(hooked).folded == {}
    hooked = Net()
    hooked.norm.register_forward_pre_hook(lambda layer, given: (given[0].abs(),))
    assert compare(hooked).folded == {}
    hooked = Net()
    hooked.norm.register_forward_hook(lambda layer, given, returned: returned.abs())
    assert compare(hooked).folded == {"norm": "conv"}


def test_a_forward_of_ones_own_is_not_taken_for_torchs():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).square()

    class Squared(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).square()

    assert compare(Net(Doubled(8, 8, 3))).kept == {"norm": NOTHING_BEFORE}
    assert compare(Net(norm=Squared(8))).folded == {}
    patched = Net()
    patched.conv.forward = lambda x: F.conv2d(x, patched.conv.weight.square())
    assert fold_batchnorms(tap(patched.eval(), input_size=SIZE)).folded == {}


def test_a_network_that_cannot_be_rehearsed_is_left_whole():
    def body(net, x):
        if x.dtype == torch.float64:
            raise TypeError("float32 is wanted\nand nothing else")
        return net.norm(net.conv(x))

    report = fold_batchnorms(tap(drawn(with_body(body)), input_size=SIZE))
    assert report.kept == {"norm": "the rehearsal failed (TypeError: float32 is wanted)"}
    assert report.folded == {}


def test_a_network_without_a_classifier():
    plain = tap(drawn(timm.create_model("resnet8", num_classes=0)), input_size=SIZE)
    folded = copy.deepcopy(plain)
    assert len(fold_batchnorms(folded).folded) == 9
    images = torch.randn(2, *SIZE)
    torch.testing.assert_close(folded(images).embedding, plain(images).embedding)


def test_the_old_tensors_stay_as_they_were():
    plain = tap(drawn(timm.create_model("resnet8", num_classes=5)), input_size=SIZE).train()
    before = copy.deepcopy(plain.state_dict())
    folded = copy.deepcopy(plain, {id(t): t for t in (*plain.parameters(), *plain.buffers())})
    random = torch.get_rng_state()
    fold_batchnorms(folded)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert all(layer.training for layer in folded.modules())
    assert folded.network.fc.weight is plain.network.fc.weight
    assert folded.network.conv1.weight is not plain.network.conv1.weight
    assert not folded.network.conv1.weight.requires_grad


def test_half_precision_is_rounded_once():
    plain = tap(drawn(Net()), input_size=SIZE)
    half = copy.deepcopy(plain).bfloat16()
    norm, weight = half.network.norm, half.network.conv.weight
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = (weight.double() * scale[:, None, None, None]).bfloat16()
    assert fold_batchnorms(half).folded == {"norm": "conv"}
    assert torch.equal(half.network.conv.weight, expected)
