import logging
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.transforms._presets import ImageClassification

from potstill.errors import NetworkError
from potstill.networks import origins
from potstill.networks.build import build_network, list_models
from potstill.networks.card import NetworkCard
from potstill.networks.cifar import CIFAR_MODELS
from potstill.networks.tap import Taps
from potstill.networks.weights import save_weights

SMALL = (3, 32, 32)
HALF = (0.5, 0.5, 0.5)

USER_FILE = """
from torch import nn

def small(num_classes=3, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def fixed(*, width):
    return small(7, width)

def none(num_classes):
    return "no network"
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module in the working directory, as a user's own network is."""
    (tmp_path / "user_networks_for_test.py").write_text(USER_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "user_networks_for_test"
    sys.modules.pop("user_networks_for_test", None)


def logits_of(tapped, x=None):
    x = torch.ones(1, *SMALL) if x is None else x
    with torch.no_grad():
        return tapped.eval()(x).logits


@pytest.mark.parametrize(
    ("name", "kind", "dim"),
    [
        ("timm/test_resnet", "ResNet", 96),
        ("test_resnet", "ResNet", 96),
        ("test_resnet.r160_in1k", "ResNet", 96),
        ("cifar/resnet8", "CifarResNet", 64),
        ("resnet8x4", "CifarResNet", 256),
        ("timm/resnet8x4", "CifarResNet", 256),
        ("cifar/vgg13", "CifarVGG", 512),
        ("timm/cifar_vgg13", "CifarVGG", 512),
        ("torchvision/shufflenet_v2_x0_5", "ShuffleNetV2", 1024),
    ],
)
def test_a_network_by_name(name, kind, dim):
    tapped = build_network(name, classes=6, input_size=SMALL)
    assert type(tapped.network).__name__ == kind
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (6, dim)
    assert tapped.normalisation is None
    assert logits_of(tapped).shape == (1, 6)


def test_arguments_reach_the_model():
    tapped = build_network("timm/test_vit", classes=3, args={"img_size": 32, "depth": 2})
    assert len(tapped.network.blocks) == 2
    assert tapped.input_size == (3, 32, 32)


def test_no_classifier_and_the_models_own_number():
    assert build_network("test_resnet", classes=0, input_size=SMALL).spec.classes == 0
    assert build_network("test_resnet", classes=None, input_size=SMALL).spec.classes == 1000


WRONG_NAMES = {
    "vgg13": r"model 'vgg13' is in both timm and the CIFAR zoo; say 'timm/vgg13' or 'cifar/vgg13'",
    "resnet8x5": r"unknown model 'resnet8x5': neither timm nor the CIFAR zoo .* Did you mean 'resnet8x4'\?",
    "tim/resnet18": r"unknown model 'tim/resnet18': .* Did you mean 'timm'\?",
    "cifar/resnet9": r"unknown model 'cifar/resnet9'; the zoo has resnet8, .* Did you mean 'resnet8'\?",
    "torchvision/resnet19": r"torchvision has no model 'resnet19'\. Did you mean 'resnet1",
    "torchvision/fasterrcnn_resnet51_fpn": "torchvision has no model .* Did you mean 'fasterrcnn_resnet50_fpn'",
    "timm/vgg13x": r"unknown model 'vgg13x'",
    "test_resnet.nowhere": r"timm cannot build 'test_resnet\.nowhere' with args \{\}: Invalid pretrained tag",
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_unknown_names_get_the_nearest(name):
    with pytest.raises(NetworkError, match=WRONG_NAMES[name]):
        build_network(name, classes=2, input_size=SMALL)


WRONG_CALLS = {
    "argument": ({"model": "test_resnet", "args": {"depht": 2}}, "timm cannot build 'test_resnet' with args .*depht"),
    "torchvision argument": (
        {"model": "torchvision/alexnet", "args": {"depht": 2}},
        "torchvision cannot build .*depht",
    ),
    "own key": ({"model": "test_resnet", "args": {"num_classes": 2}}, "args may not set num_classes"),
    "both": ({"model": "test_resnet", "weights": "w.pth", "pretrained": True}, "both weights .* and pretrained=True"),
    "no model": ({"model": None}, "no model is named"),
    "negative": ({"model": "test_resnet", "classes": -1}, "a network of -1 classes is asked for"),
    "no file": ({"model": "test_resnet", "weights": "none.pth"}, r"no weights at none\.pth"),
    "size": (
        {"model": "timm/vit_tiny_patch16_224", "args": {"depth": 1}},
        r"VisionTransformer does not run on images of \(3, 32, 32\): .*img_size",
    ),
    "headless": ({"model": "torchvision/resnet18", "classes": 0}, "torchvision's models come with a classifier"),
    "two outputs": (
        {"model": "torchvision/resnet18", "taps": Taps(maps=("layer5",))},
        r"ResNet has no layer 'layer5'; it has conv1, .* and \d+ more .*Did you mean 'layer4'\?",
    ),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_what_cannot_be_built_is_said(case):
    call, message = WRONG_CALLS[case]
    with pytest.raises(NetworkError, match=message):
        build_network(**{"classes": 2, "input_size": SMALL} | call)


def test_a_users_factory(user_module):
    tapped = build_network(
        f"{user_module}:small", classes=5, args={"width": 8}, taps=Taps(maps=("0",)), input_size=SMALL
    )
    assert (tapped.spec.classes, tapped.spec.embedding_dim, tapped.spec.maps[0].channels) == (5, 8, 8)
    assert build_network(f"{user_module}:small", classes=None, input_size=SMALL).spec.classes == 3
    assert build_network(f"{user_module}:fixed", classes=7, args={"width": 2}, input_size=SMALL).spec.classes == 7


OWN_FAULTS = {
    "small|widht": (
        {"widht": 2},
        r"cannot be called with .* unexpected keyword argument 'widht'; its signature is \(num_c",
    ),
    "small|num_classes": ({"num_classes": 2}, "args may not set num_classes"),
    "fixed|": ({"width": 2}, "returns 7 logits, and 4 classes are asked for; let its factory take num_classes"),
    "fixed|width": ({}, "missing a required argument: 'width'"),
    "none|": ({}, "returns str; expected an nn.Module"),
    "smal|": ({}, r"has no factory 'smal'\. Did you mean 'small'\?"),
}


@pytest.mark.parametrize("case", OWN_FAULTS)
def test_a_users_factory_that_does_not_fit(user_module, case):
    args, message = OWN_FAULTS[case]
    with pytest.raises(NetworkError, match=message):
        build_network(f"{user_module}:{case.split('|')[0]}", classes=4, args=args, input_size=SMALL)


def test_a_users_module_that_is_not_there():
    with pytest.raises(NetworkError, match=r"cannot import 'nowhere_at_all' for model .* lie in the working directory"):
        build_network("nowhere_at_all:net", classes=4)
    with pytest.raises(NetworkError, match="pretrained=True is for timm and torchvision"):
        build_network("nowhere_at_all:net", classes=4, pretrained=True)


@pytest.mark.parametrize("name", ["test_resnet", "cifar/resnet8", "torchvision/shufflenet_v2_x0_5"])
def test_the_weights_say_how_many_classes(tmp_path, name, caplog):
    trained = build_network(name, classes=9, input_size=SMALL)
    save_weights(trained.network, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, logger="potstill"):
        again = build_network(name, classes=None, weights=tmp_path / "w.safetensors", input_size=SMALL)
    assert again.spec.classes == 9
    assert f"{name}: 9 classes, as in" in caplog.text
    assert torch.equal(logits_of(again), logits_of(trained))


def test_weights_without_a_classifier(tmp_path):
    trained = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    again = build_network("test_resnet", classes=None, weights=tmp_path / "w.pth", input_size=SMALL)
    assert again.spec.classes == 0
    x = torch.ones(1, *SMALL)
    assert torch.equal(again.eval()(x).embedding, trained(x))


def test_weights_of_other_classes_are_refused(tmp_path):
    save_weights(timm.create_model("test_resnet", num_classes=9), tmp_path / "w.safetensors")
    with pytest.raises(
        NetworkError, match=r"for model 'test_resnet': .*2 of another shape \(fc\.weight \(9, 96\) for \(4, 96\)"
    ):
        build_network("test_resnet", classes=4, weights=tmp_path / "w.safetensors", input_size=SMALL)
    with pytest.raises(NetworkError, match=r"do not fit CifarResNet, .*missing \(.*unexpected \("):
        build_network("resnet8", classes=None, weights=tmp_path / "w.safetensors", input_size=SMALL)


@pytest.fixture
def run_folder(tmp_path):
    trained = build_network("timm/test_resnet", classes=2, args={"drop_rate": 0.1}, input_size=SMALL)
    save_weights(trained.network, tmp_path / "student.safetensors")
    NetworkCard(
        "timm/test_resnet", 2, HALF, (0.2, 0.2, 0.2), SMALL, args={"drop_rate": 0.1}, taps=Taps(maps=("layer2",))
    ).write(tmp_path)
    return tmp_path, trained


def test_a_runs_folder_says_all(run_folder):
    folder, trained = run_folder
    again = build_network(None, classes=None, weights=folder)
    assert again.normalisation == (HALF, (0.2, 0.2, 0.2))
    assert [m.name for m in again.spec.maps] == ["layer2"]
    assert again.input_size == SMALL
    assert torch.equal(logits_of(again), logits_of(trained))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"model": "resnet14"},
            "holds model 'timm/test_resnet', and 'resnet14' is asked for; leave the model 'resnet14' out",
        ),
        ({"model": None, "classes": 3}, "holds classes 2, and 3 is asked for; give weights of a network with as many"),
        ({"model": None, "args": {"drop_rate": 0.5}}, "holds args .*0.1.*, and .*0.5.* is asked for; leave args out"),
    ],
)
def test_a_runs_folder_and_another_wish(run_folder, asked, message):
    with pytest.raises(NetworkError, match=message):
        build_network(**{"classes": None, "weights": run_folder[0]} | asked)


def test_a_runs_folder_without_its_weights(run_folder):
    (run_folder[0] / "student.safetensors").unlink()
    with pytest.raises(NetworkError, match=r"no weights at .*student\.safetensors"):
        build_network(None, classes=None, weights=run_folder[0])
    with pytest.raises(NetworkError, match=r"is no run's folder: it has no student\.json"):
        build_network(None, classes=None, weights=run_folder[0].parent)


def test_no_net_is_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = (
        r"no pretrained weights for timm/test_resnet: .*[^.]\. They are .* the net once; without it, copy the file"
    )
    with pytest.raises(NetworkError, match=message) as caught:
        build_network("test_resnet", classes=2, pretrained=True, input_size=SMALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(NetworkError, match=r"no pretrained weights for timm/resnet8: "):
        build_network("cifar/resnet8", classes=2, pretrained=True)


class Enum:
    """What torchvision returns for a model's weights, without the download."""

    def __init__(self, state):
        self.DEFAULT = self
        self.state = state

    def get_state_dict(self, **_):
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def transforms(self):
        return ImageClassification(crop_size=176, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))


def test_torchvisions_download(monkeypatch):
    trained = torchvision.models.shufflenet_v2_x0_5().eval()
    monkeypatch.setattr(origins.torchvision.models, "get_model_weights", lambda name: Enum(trained.state_dict()))
    name = "torchvision/shufflenet_v2_x0_5"
    whole = build_network(name, classes=None, pretrained=True, input_size=SMALL)
    assert torch.equal(logits_of(whole), trained(torch.ones(1, *SMALL)))
    other = build_network(name, classes=4, pretrained=True, input_size=SMALL).network
    assert torch.equal(other.conv1[0].weight, trained.conv1[0].weight)
    assert other.fc.weight.shape == (4, 1024)
    assert whole.normalisation == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert whole.input_size == SMALL
    assert build_network(name, classes=4, pretrained=True).input_size == (3, 176, 176)
    assert build_network(name, classes=4).normalisation is None
    failure = Enum(OSError("no route to host"))
    monkeypatch.setattr(origins.torchvision.models, "get_model_weights", lambda name: failure)
    with pytest.raises(NetworkError, match=r"no pretrained weights for torchvision/.*: no route to host"):
        build_network(name, classes=4, pretrained=True)


def test_models_are_listed():
    assert list_models("cifar/vgg*") == [f"cifar/vgg{depth}" for depth in (8, 11, 13, 16, 19)]
    names = list_models()
    assert "resnet18" in names
    assert set(CIFAR_MODELS.values()).isdisjoint(names)
    assert list_models("*vgg13") == ["cifar/vgg13", "timm/vgg13"]
    ambiguous = [name for name in CIFAR_MODELS if timm.is_model(name) and CIFAR_MODELS[name] != name]
    assert ambiguous
    assert all(name not in names and f"timm/{name}" in names for name in ambiguous)
    assert list_models("no such model") == []


def test_a_factorys_own_error_is_not_hidden(user_module, tmp_path):
    with open(tmp_path / f"{user_module}.py", "a") as file:
        file.write("\ndef broken():\n    raise ZeroDivisionError('inside')\n")
    with pytest.raises(ZeroDivisionError, match="inside"):
        build_network(f"{user_module}:broken", classes=None)


def test_every_network_ships_as_its_plain_state():
    tapped = build_network("resnet8", classes=3, input_size=SMALL)
    assert isinstance(tapped.network, nn.Module)
    assert list(tapped.network.state_dict()) == list(timm.create_model("resnet8", num_classes=3).state_dict())


def test_a_factory_that_insists_on_num_classes_gets_those_of_the_weights(tmp_path, monkeypatch):
    (tmp_path / "insists.py").write_text(
        "from torch import nn\n"
        "def plain(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    made = build_network("insists:plain", classes=7, input_size=(3, 4, 4))
    save_weights(made, tmp_path / "seven.safetensors")
    again = build_network("insists:plain", classes=None, weights=tmp_path / "seven.safetensors", input_size=(3, 4, 4))
    assert again.spec.classes == 7
    assert torch.equal(again.network[-1].weight, made.network[-1].weight)


def test_the_hubs_attempts_are_not_told(monkeypatch, caplog):
    def fails(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no connection.\nand more")

    monkeypatch.setattr(origins.timm, "create_model", fails)
    before = logging.getLogger("huggingface_hub").level
    with pytest.raises(NetworkError, match=r"timm/test_resnet: no connection\. They are downloaded"):
        build_network("test_resnet", classes=2, pretrained=True)
    assert caplog.text == ""
    assert logging.getLogger("huggingface_hub").level == before


@pytest.mark.parametrize("name", ["{}", "{}.py"])
def test_a_module_without_its_factory(user_module, name):
    with pytest.raises(NetworkError, match=rf"your own is named with the function .*: {user_module}:FACTORY\.$"):
        build_network(name.format(user_module), classes=2)
