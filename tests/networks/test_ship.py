"""What is left in the folder, in which order, and what is said where nothing can be loaded."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import NetworkError, RunError
from potstill.networks import ship
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard, read_card
from potstill.networks.cifar import family_file
from potstill.networks.ship import how_to_load, load_student, ship_student
from potstill.networks.tap import Taps

SIZE = (3, 16, 16)
CARD = NetworkCard("resnet8", 10, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25), SIZE, classes=tuple("abcdefghij"))
OWN = """
from torch import nn

def make(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )

def make_ten():
    return make(10)
"""


def build(card: NetworkCard):
    torch.manual_seed(0)
    return build_network(card.model, classes=card.num_classes, args=card.args, taps=card.taps, input_size=SIZE)


def write(folder: Path, card: NetworkCard = CARD):
    tapped = build(card)
    ship_student(folder, tapped, card)
    return tapped


@pytest.fixture
def own_factory(tmp_path, monkeypatch):
    """A module of the user's own in the working directory."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


def test_a_student_comes_back_with_its_weights_taps_and_statistics(tmp_path):
    card = replace(CARD, taps=Taps(maps=("layer1", "layer3")))
    tapped = write(tmp_path, card)
    loaded = load_student(tmp_path)
    images = torch.randn(2, *SIZE)
    expected, got = tapped.eval()(images, maps=True), loaded(images, maps=True)
    assert torch.equal(got.logits, expected.logits)
    assert [m.name for m in loaded.spec.maps] == ["layer1", "layer3"]
    assert torch.equal(got.maps[1], expected.maps[1])
    assert loaded.normalisation == (card.mean, card.std)
    assert loaded.input_size == SIZE
    assert not any(module.training for module in loaded.modules())


def test_the_weights_are_the_networks_own_state_dict(tmp_path):
    tapped = write(tmp_path)
    state = load_file(tmp_path / "student.safetensors")
    own = tapped.network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


def test_shipping_twice_gives_the_same_bytes_and_nothing_besides(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    write(tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {str(path) for path in files} == {
        "student.json",
        "student.safetensors",
        "student_network/__init__.py",
        "student_network/base.py",
        "student_network/resnet.py",
    }
    assert {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()} == files
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_the_card_says_all_and_how_to_load(tmp_path):
    write(tmp_path)
    content = json.loads((tmp_path / "student.json").read_text())
    assert content["classes"] == list("abcdefghij")
    assert content["input_size"] == [3, 16, 16]
    assert content["load"] == (
        "import student_network, timm; "
        "network = timm.create_model('resnet8', num_classes=10, checkpoint_path='student.safetensors').eval()"
    )
    assert read_card(tmp_path) == replace(CARD, load=content["load"])
    with pytest.raises(NetworkError, match="load is 5; expected null or a line of Python"):
        replace(CARD, load=5)


def test_the_package_is_the_family_and_its_base(tmp_path):
    write(tmp_path, replace(CARD, model="cifar/vgg8"))
    assert (tmp_path / "student_network" / "vgg.py").read_bytes() == family_file("vgg8").read_bytes()
    assert sorted(path.name for path in (tmp_path / "student_network").iterdir()) == [
        "__init__.py",
        "base.py",
        "vgg.py",
    ]


@pytest.mark.parametrize("model", ["test_resnet.r160_in1k", "timm/test_vit", "torchvision/mobilenet_v3_small"])
def test_networks_that_libraries_have_are_not_copied(tmp_path, model):
    write(tmp_path, replace(CARD, model=model, num_classes=0 if model.startswith("timm") else 10, classes=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


@pytest.mark.parametrize(
    ("model", "args", "expected"),
    [
        ("cifar/vgg13", {}, "timm.create_model('cifar_vgg13', num_classes=10, checkpoint_path"),
        (
            "timm/resnet18",
            {"drop_rate": 0.1},
            "timm.create_model('resnet18', num_classes=10, drop_rate=0.1, checkpoint_path",
        ),
        (
            "torchvision/resnet18",
            {},
            "torchvision.models.get_model('resnet18', num_classes=10); network.load",
        ),
        ("own_networks:make", {"width": 8}, "from own_networks import make; network = make(num_classes=10, width=8);"),
        ("own_networks:make_ten", {}, "from own_networks import make_ten; network = make_ten();"),
    ],
)
def test_each_origin_has_its_line(own_factory, model, args, expected):
    assert expected in how_to_load(replace(CARD, model=model, args=args))


def test_a_file_may_not_choose_which_code_runs(own_factory, tmp_path):
    card = replace(CARD, model="own_networks:make", args={"width": 8})
    tapped = write(tmp_path / "run", card)
    with pytest.raises(NetworkError, match=r"made by 'own_networks:make', and a file may not choose"):
        load_student(tmp_path / "run")
    loaded = load_student(tmp_path / "run", model="own_networks:make")
    images = torch.randn(2, *SIZE)
    assert torch.equal(loaded(images).logits, tapped.eval()(images).logits)


def test_another_model_than_the_cards_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(NetworkError, match=r"holds model 'resnet8', and 'resnet14' is asked for"):
        load_student(tmp_path, model="resnet14")


def test_a_card_of_another_network_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(NetworkError, match="says 7 classes, and the student has 10"):
        ship_student(tmp_path / "new", build(CARD), replace(CARD, num_classes=7, classes=None))
    with pytest.raises(NetworkError, match=r"unknown model 'resnet88'.*Did you mean 'resnet8"):
        ship_student(tmp_path / "new", build(CARD), replace(CARD, model="resnet88"))
    assert not (tmp_path / "new").exists()


def test_no_folder_no_run_and_an_unfinished_one(tmp_path):
    with pytest.raises(RunError, match=r"none is no run's folder: there is no such folder"):
        load_student(tmp_path / "none")
    with pytest.raises(RunError, match=r"is no run's folder: it has no student\.safetensors and no student\.json$"):
        load_student(tmp_path)
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    with pytest.raises(RunError, match=r"is not finished: it has no student\.safetensors .*Give its command again"):
        load_student(tmp_path)


def test_the_card_comes_last(tmp_path, monkeypatch):
    """Killed between two files, the run counts as unfinished."""

    def fail(weights, path):
        raise RunError("the disk is full")

    monkeypatch.setattr(ship, "save_weights", fail)
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    with pytest.raises(RunError, match="the disk is full"):
        write(tmp_path)
    with pytest.raises(RunError, match=r"is not finished: it has no student\.safetensors and no student\.json yet"):
        load_student(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the student into .*file.*: "):
        write(tmp_path / "file" / "run")
