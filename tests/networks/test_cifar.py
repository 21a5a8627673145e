import math
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import is_model, model_entrypoint

from potstill.networks.cifar import CIFAR_MODELS, family_file
from potstill.networks.cifar.base import CIFAR_MEAN, CIFAR_STD, shuffle_channels, tap_indices
from potstill.networks.cifar.resnet import CifarResNet
from potstill.networks.cifar.resnet_bottleneck import CifarBottleneckResNet
from potstill.networks.cifar.wrn import WideResNet

NARROW = ("16@32", "16@32", "32@16", "64@8")
DOUBLE = ("16@32", "32@32", "64@16", "128@8")
WIDE = ("32@32", "64@32", "128@16", "256@8")
VGG = ("64@32", "128@16", "256@8", "512@4", "512@4")

# Paper's name: parameters at 100 classes, taps as channels@pixels, length of the embedding.
TABLE = {
    "resnet8": (83_892, NARROW, 64),
    "resnet14": (181_108, NARROW, 64),
    "resnet20": (278_324, NARROW, 64),
    "resnet32": (472_756, NARROW, 64),
    "resnet44": (667_188, NARROW, 64),
    "resnet56": (861_620, NARROW, 64),
    "resnet110": (1_736_564, NARROW, 64),
    "resnet8x4": (1_233_540, WIDE, 256),
    "resnet32x4": (7_433_860, WIDE, 256),
    "wrn_16_1": (180_916, NARROW, 64),
    "wrn_16_2": (703_284, DOUBLE, 128),
    "wrn_40_1": (569_780, NARROW, 64),
    "wrn_40_2": (2_255_156, DOUBLE, 128),
    "vgg8": (3_965_028, VGG, 512),
    "vgg11": (9_277_284, VGG, 512),
    "vgg13": (9_462_180, VGG, 512),
    "vgg16": (14_774_436, VGG, 512),
    "vgg19": (20_086_692, VGG, 512),
    "ResNet50": (23_705_252, ("64@32", "256@32", "512@16", "1024@8", "2048@4"), 2048),
    "MobileNetV2": (812_836, ("16@16", "12@16", "16@8", "48@4", "160@2"), 1280),
    "ShuffleV1": (949_258, ("24@32", "240@16", "480@8", "960@4"), 960),
    "ShuffleV2": (1_355_528, ("24@32", "116@16", "232@8", "464@4"), 1024),
}

# The smallest of each family, for tests of what a family shares.
FAMILIES = ("resnet8", "wrn_16_1", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2")

# Some of the keys and shapes of the published checkpoints (RepDistiller), classifier last.
PUBLISHED_KEYS = {
    "resnet8x4": {
        "conv1.weight": (32, 3, 3, 3),
        "bn1.running_var": (32,),
        "layer1.0.conv1.weight": (64, 32, 3, 3),
        "layer2.0.bn2.bias": (128,),
        "layer3.0.downsample.0.weight": (256, 128, 1, 1),
        "layer3.0.downsample.1.weight": (256,),
        "fc.weight": (100, 256),
    },
    "wrn_40_2": {
        "conv1.weight": (16, 3, 3, 3),
        "block1.layer.0.bn1.weight": (16,),
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.5.conv2.weight": (128, 128, 3, 3),
        "bn1.running_mean": (128,),
        "fc.bias": (100,),
    },
    "vgg13": {
        "block0.0.weight": (64, 3, 3, 3),
        "block0.0.bias": (64,),
        "block1.3.weight": (128, 128, 3, 3),
        "block4.4.running_mean": (512,),
        "classifier.weight": (100, 512),
    },
    "ResNet50": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer1.0.shortcut.1.bias": (256,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "linear.weight": (100, 2048),
    },
    "MobileNetV2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.1.0.conv.3.weight": (48, 1, 3, 3),
        "blocks.6.0.conv.7.weight": (160,),
        "conv2.0.weight": (1280, 160, 1, 1),
        "classifier.0.weight": (100, 1280),
    },
    "ShuffleV1": {
        "conv1.weight": (24, 3, 1, 1),
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer1.1.conv1.weight": (60, 80, 1, 1),
        "layer3.3.conv3.weight": (960, 80, 1, 1),
        "linear.weight": (100, 960),
    },
    "ShuffleV2": {
        "conv1.weight": (24, 3, 1, 1),
        "layer1.0.conv5.weight": (58, 58, 1, 1),
        "layer2.7.conv2.weight": (116, 1, 3, 3),
        "conv2.weight": (1024, 464, 1, 1),
        "linear.bias": (100,),
    },
}


def create(paper_name, **kwargs):
    return timm.create_model(CIFAR_MODELS[paper_name], **kwargs)


def small(paper_name, **kwargs):
    """A network of the family that is quick to run: ResNet50 with one block a stage."""
    return CifarBottleneckResNet((1, 1, 1, 1), **kwargs) if paper_name == "ResNet50" else create(paper_name, **kwargs)


def images(batch=2, size=32, *, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def wake_batch_norms(network):
    """Statistics, scales and shifts unlike their start, so that a batch norm left out or applied twice shows."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            for values in (module.bias.data, module.running_mean):
                values.copy_(0.1 * torch.randn(values.shape, generator=generator))
    return network


def test_the_zoo_is_the_table():
    assert set(CIFAR_MODELS) == set(TABLE)
    assert all(is_model(name) for name in CIFAR_MODELS.values())


@pytest.mark.parametrize("name", TABLE)
def test_parameters_taps_and_embedding(name):
    parameters, taps, features = TABLE[name]
    network = create(name, num_classes=100).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.num_features == network.head_hidden_size == features

    with torch.no_grad():
        final, intermediates = network.forward_intermediates(images())
        assert [f"{tap.shape[1]}@{tap.shape[2]}" for tap in intermediates] == list(taps)
        assert [f"{info['num_chs']}@{32 // info['reduction']}" for info in network.feature_info] == list(taps)
        assert network.forward_head(final, pre_logits=True).shape == (2, features)
        logits = network(images())
        assert logits.shape == (2, 100)
        assert torch.equal(network.forward_head(final), logits)
    assert isinstance(network.get_submodule(network.default_cfg["first_conv"]), torch.nn.Conv2d)
    assert network.default_cfg["classifier"] == network.get_classifier(name_only=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_taps_are_the_named_modules_outputs_and_stay_as_they_were(name):
    network = wake_batch_norms(small(name)).train()
    seen = []

    def keep(module, args, output):
        seen.append((output, output.detach().clone()))

    for info in network.feature_info:
        network.get_submodule(info["module"]).register_forward_hook(keep)
    final, intermediates = network.forward_intermediates(images())
    network.forward_head(final).sum().backward()
    for (output, copied), tap in zip(seen, intermediates, strict=True):
        assert output is tap
        assert torch.equal(tap, copied)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layers_output_is_written_over(name):
    network = small(name).eval()
    seen = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
    with torch.no_grad():
        network(images())
    assert len(seen) > 10
    assert all(torch.equal(output, copied) for output, copied in seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    network = small(name, num_classes=5).train()
    torch.nn.functional.cross_entropy(network(images(4)), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        # The bias of a convolution before a batch norm moves nothing; VGG's published layers have it all the same.
        if not (name == "vgg8" and key.startswith("block") and key.endswith("0.bias")):
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_no_classifier_and_a_fresh_one(name):
    network = small(name, num_classes=0).eval()
    assert isinstance(network.get_classifier(), torch.nn.Identity)
    with torch.no_grad():
        embedding = network(images())
        assert torch.equal(embedding, network.forward_head(network.forward_features(images()), pre_logits=True))

        network.reset_classifier(7)
        classifier = network.get_classifier()
        assert network.num_classes == 7
        assert not classifier.training
        assert network.get_submodule(network.get_classifier(name_only=True)) is classifier
        torch.testing.assert_close(network(images()), embedding @ classifier.weight.T + classifier.bias)

        network.reset_classifier(0)
        assert torch.equal(network(images()), embedding)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_channels_and_sizes(name):
    network = small(name, num_classes=3, in_chans=1).eval()
    with torch.no_grad():
        assert [network(images(1, size, channels=1)).shape for size in (8, 28, 64)] == [(1, 3)] * 3


@pytest.mark.parametrize("name", PUBLISHED_KEYS)
def test_state_dict_keys_are_those_of_the_published_checkpoints(name):
    state = create(name, num_classes=100).state_dict()
    expected = PUBLISHED_KEYS[name]
    assert {key: tuple(state[key].shape) for key in expected} == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_initialisation(name):
    torch.manual_seed(0)
    network = small(name)
    head = network.get_classifier()
    bound = 1 / math.sqrt(head.in_features)
    if name in ("vgg8", "MobileNetV2"):
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    else:
        assert bound * 0.99 < head.weight.abs().max().item() <= bound  # torch's default, uniform
    if name in ("vgg8", "MobileNetV2", "wrn_16_1"):
        assert head.bias.abs().max() == 0
    else:
        assert 0 < head.bias.abs().max() <= bound

    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    largest = max(convolutions, key=lambda module: module.weight.numel())
    k = largest.kernel_size[0]
    if name.startswith("Shuffle"):
        bound = 1 / math.sqrt(largest.weight[0].numel())
        assert bound * 0.99 < largest.weight.abs().max().item() <= bound
    else:
        assert largest.weight.std().item() == pytest.approx(math.sqrt(2 / (k * k * largest.out_channels)), rel=0.02)
    assert all(module.bias is None or module.bias.abs().max() == 0 for module in convolutions)


def test_wide_resnets_taps_are_raw_and_mobilenets_linear():
    with torch.no_grad():
        wide, mobile = (create(name).eval().forward_intermediates(images())[1] for name in ("wrn_16_2", "MobileNetV2"))
        rectified = [
            small(name).eval().forward_intermediates(images(), intermediates_only=True)
            for name in ("resnet8", "vgg8", "ResNet50", "ShuffleV1", "ShuffleV2")
        ]
    assert all(tap.min() < 0 for tap in wide)
    assert mobile[0].min() >= 0
    assert all(tap.min() < 0 for tap in mobile[1:])
    assert all(tap.min() == 0 for taps in rectified for tap in taps)


@torch.no_grad()
def test_indices_norm_and_stop_early_are_timms():
    network = wake_batch_norms(create("wrn_16_1")).eval()
    final, every = network.forward_intermediates(images())
    for indices, expected in ((2, [2, 3]), ([0, -1], [0, 3]), ([3, 1], [1, 3]), (None, [0, 1, 2, 3])):
        taken = network.forward_intermediates(images(), indices=indices, intermediates_only=True)
        assert len(taken) == len(expected)
        assert all(torch.equal(tap, every[index]) for tap, index in zip(taken, expected, strict=True))

    stopped, taken = network.forward_intermediates(images(), indices=[1], stop_early=True)
    assert torch.equal(stopped, every[1])
    assert torch.equal(taken[0], every[1])
    assert torch.equal(network.forward_intermediates(images(), indices=[1])[0], final)

    normed = network.forward_intermediates(images(), norm=True, intermediates_only=True)
    assert torch.equal(normed[3], final)
    assert all(torch.equal(normed[index], every[index]) for index in range(3))
    # ShuffleV2's last step is a convolution, which is no norm.
    shuffle = create("ShuffleV2").eval()
    assert shuffle.forward_intermediates(images(), norm=True, intermediates_only=True)[3].shape == (2, 464, 4, 4)


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], []])
def test_taps_that_do_not_exist(indices):
    with pytest.raises(ValueError, match="the network has 4 taps: 0 to 3, or the last 1 to 4"):
        tap_indices(4, indices)


def test_features_only_through_timm():
    features = create("MobileNetV2", features_only=True)
    assert features.feature_info.channels() == [16, 12, 16, 48, 160]
    assert features.feature_info.reduction() == [2, 2, 4, 8, 16]
    assert [out.shape[1] for out in create("wrn_16_2", features_only=True, out_indices=(1, 3))(images())] == [32, 128]


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_one_graph_under_compile(name):
    network = create(name, num_classes=10).eval()
    compiled = torch.compile(network.forward_intermediates, backend="eager", fullgraph=True)
    with torch.no_grad():
        final, intermediates = compiled(images())
        plain, taps = network.forward_intermediates(images())
    assert torch.equal(final, plain)
    assert all(torch.equal(one, other) for one, other in zip(intermediates, taps, strict=True))
    torch.compiler.reset()


def test_export_with_a_free_batch_size():
    network = create("resnet8", num_classes=10).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images(3),), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(5)), network(images(5)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_shuffled_channels_keep_their_memory_format(groups, memory_format):
    x = images(channels=6, size=5).to(memory_format=memory_format)
    shuffled = shuffle_channels(x, groups)
    assert shuffled.is_contiguous(memory_format=memory_format)
    order = [hand * (6 // groups) + card for card in range(6 // groups) for hand in range(groups)]
    assert torch.equal(shuffled, x[:, order])


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_agree_in_both_memory_formats(name):
    network = create(name).eval()
    with torch.no_grad():
        plain = network(images())
        final = network.to(memory_format=torch.channels_last).forward_features(
            images().to(memory_format=torch.channels_last)
        )
        assert final.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network.forward_head(final), plain)


def test_timms_own_networks_are_untouched():
    for name in ("vgg11", "vgg13", "vgg16", "vgg19", "resnet50"):
        assert model_entrypoint(name).__module__.startswith("timm.models.")
    for name in CIFAR_MODELS.values():
        assert model_entrypoint(name).__module__.startswith("potstill.networks.cifar.")
    with torch.device("meta"):
        assert "features.0.weight" in timm.create_model("vgg13").state_dict()


def test_configuration():
    network = create("resnet8x4", num_classes=10)
    config = network.pretrained_cfg
    assert config is network.default_cfg
    assert (config["architecture"], config["input_size"], config["num_classes"]) == ("resnet8x4", (3, 32, 32), 100)
    assert (config["mean"], config["std"]) == (CIFAR_MEAN, CIFAR_STD)
    assert CIFAR_MEAN == (0.5071, 0.4867, 0.4408)
    assert CIFAR_STD == (0.2675, 0.2565, 0.2761)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_checkpoint(tmp_path, suffix):
    saved = wake_batch_norms(create("MobileNetV2", num_classes=4)).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(saved.state_dict(), path)
    else:
        save_file(saved.state_dict(), path)
    loaded = create("MobileNetV2", num_classes=4, checkpoint_path=str(path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images()), saved(images()))


def test_what_cannot_be_built():
    with pytest.raises(TypeError, match="unexpected keyword argument 'width_multiplier'"):
        create("resnet8", width_multiplier=2)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for resnet8"):
        create("resnet8", pretrained=True)
    with pytest.raises(ValueError, match=r"depth is 10; a CIFAR ResNet has 6n \+ 2 layers"):
        CifarResNet(10)
    with pytest.raises(ValueError, match=r"depth is 18; a Wide ResNet has 6n \+ 4 layers"):
        WideResNet(18)
    with pytest.raises(ValueError, match="num_classes is -1; give the number of classes, or 0"):
        create("resnet8").reset_classifier(-1)
    with pytest.raises(ValueError, match="num_classes is -1; give the number of classes, or 0"):
        CifarResNet(8, num_classes=-1)
    with pytest.raises(ValueError, match="output_fmt is 'NLC'; the maps of a CIFAR network are 'NCHW' only"):
        create("resnet8").forward_intermediates(images(), output_fmt="NLC")


def test_unknown_family():
    assert family_file("cifar_vgg13").name == "vgg.py"
    with pytest.raises(ValueError, match="'resnet18' is no network of the CIFAR zoo; it has MobileNetV2, ResNet50"):
        family_file("resnet18")


ALONE = """
import sys, warnings
sys.modules["potstill"] = None  # any import of it fails
sys.path.insert(0, "{folder}")
import importlib, timm, torch
before = set(timm.list_models())
warnings.simplefilter("error")
for module, name in {families}:
    importlib.import_module("alone_" + module + "." + module)
    assert name not in before
    if module != "resnet_bottleneck":
        network = timm.create_model(name, num_classes=3, checkpoint_path="{folder}/" + name + ".safetensors").eval()
        torch.save(network(torch.load("{folder}/images.pt")).detach(), "{folder}/" + name + ".pt")
assert set(timm.list_models()) == before | set({names})
"""


def test_a_family_works_without_the_project(tmp_path):
    """A package of ``base.py`` and one family's file is enough, and registers its networks without a warning."""
    families = []
    networks = {name: wake_batch_norms(small(name, num_classes=3)).eval() for name in FAMILIES}
    torch.save(images(), tmp_path / "images.pt")
    for name, network in networks.items():
        source = family_file(name)
        package = tmp_path / f"alone_{source.stem}"
        package.mkdir()
        (package / "__init__.py").touch()
        shutil.copy(source, package)
        shutil.copy(source.parent / "base.py", package)
        families.append((source.stem, name))
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    program = ALONE.format(folder=tmp_path, families=families, names=list(CIFAR_MODELS.values()))
    # -I: neither PYTHONPATH nor the working folder is searched.
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    del networks["ResNet50"]  # the small one is not registered
    for name, network in networks.items():
        with torch.no_grad():
            torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), network(images()))
