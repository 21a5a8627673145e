"""Embedding networks for faces: shapes, timm's contract, the identity head, and loading where there is no Potstill."""

import shutil
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from potstill.errors import NetworkError
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.contract import ContractTapped
from potstill.networks.faces import FACE_MODELS, IdentityHead, family_file, identity_scale
from potstill.networks.faces.base import map_side, scaled
from potstill.networks.fold import fold_batchnorms
from potstill.networks.ship import load_student, ship_student
from potstill.networks.stages import forward_to, stage_parameters
from potstill.networks.tap import tap

# Parameters without a head at 112 pixels, taps as channels@pixels.
IR = ("64@112", "64@56", "128@28", "256@14", "512@7")
TABLE = {
    "mobilefacenet": (1_200_512, ("64@56", "64@28", "128@14", "128@7")),
    "iresnet10": (17_752_000, IR),
    "iresnet18": (24_025_600, IR),
    "iresnet34": (34_139_328, IR),
    "iresnet50": (43_590_848, IR),
    "iresnet100": (65_156_160, IR),
}
SMALL = {
    "mobilefacenet": {"width": 0.25, "img_size": 32},
    "iresnet10": {"width": 0.125, "img_size": 32},
    "face_backbone": {"backbone": "mobilenetv3_small_050"},
}
EVERY = pytest.mark.parametrize("name", SMALL)

# Some of the keys and shapes of arcface_torch's iresnet50, as its published weights have them.
PUBLISHED = {
    "conv1.weight": (64, 3, 3, 3), "bn1.running_var": (64,), "prelu.weight": (64,),
    "layer1.0.bn1.weight": (64,), "layer1.0.conv1.weight": (64, 64, 3, 3), "layer1.0.prelu.weight": (64,),
    "layer1.0.downsample.0.weight": (64, 64, 1, 1), "layer1.0.downsample.1.running_mean": (64,),
    "layer2.0.conv1.weight": (128, 64, 3, 3), "layer3.13.conv2.weight": (256, 256, 3, 3),
    "layer4.2.bn3.bias": (512,), "bn2.weight": (512,), "fc.weight": (512, 25088), "fc.bias": (512,),
    "features.weight": (512,), "features.running_var": (512,),
}  # fmt: skip


def small(name, classes=5, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=classes, **SMALL[name], **kwargs)


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def wake_batch_norms(network):
    """Statistics, scales and shifts unlike their start, so that a batch norm left out or applied twice shows."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            for values in (module.weight.data, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            for values in (module.bias.data, module.running_mean):
                values.copy_(torch.randn(values.shape, generator=generator) / 4)
    return network


def test_the_table_has_every_network_but_the_one_of_any_backbone():
    assert set(FACE_MODELS) == {*TABLE, "face_backbone"}
    assert all(timm.is_model(name) for name in FACE_MODELS.values())


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_taps(name):
    parameters, taps = TABLE[name]
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
        final, maps = network.forward_intermediates(torch.empty(2, 3, 112, 112))
        embedding = network.forward_head(final)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tuple(f"{m.shape[1]}@{m.shape[2]}" for m in maps) == taps
    assert tuple(f"{info['num_chs']}@{112 // info['reduction']}" for info in network.feature_info) == taps
    assert embedding.shape == (2, 512)


def test_the_papers_mobilefacenet_has_a_million_parameters():
    with torch.device("meta"):
        network = timm.create_model("mobilefacenet", num_classes=0, dim=128)
    assert sum(p.numel() for p in network.parameters()) == 1_003_136


def test_keys_are_those_of_published_weights():
    with torch.device("meta"):
        state = timm.create_model("iresnet50", num_classes=0).state_dict()
    assert {key: tuple(state[key].shape) for key in PUBLISHED} == PUBLISHED
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(state) - len(counters) == 24 * 15 + 4 * 5 + 16  # blocks; shortcuts; stem, last norm, layer and norm


def test_published_weights_load_whatever_the_number_of_identities(tmp_path):
    """A file of an embedder has no head; that is no classes, not missing weights."""
    args = {"width": 0.125, "img_size": 32}
    plain = timm.create_model("iresnet10", num_classes=0, **args)
    torch.save(plain.state_dict(), tmp_path / "backbone.pth")
    tapped = build_network("iresnet10", classes=None, weights=tmp_path / "backbone.pth", args=args)
    assert tapped.spec.classes == 0
    assert torch.equal(tapped.network.fc.weight, plain.fc.weight)
    save_file(timm.create_model("iresnet10", num_classes=7, **args).state_dict(), tmp_path / "run.safetensors")
    assert build_network("iresnet10", classes=None, weights=tmp_path / "run.safetensors", args=args).spec.classes == 7


@EVERY
def test_the_contract_holds(name):
    network = wake_batch_norms(small(name)).eval()
    tapped = tap(network, input_size=(3, 32, 32))
    assert isinstance(tapped, ContractTapped)
    x = images()
    features = tapped(x, maps=True, preacts=True, blocks=True)
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (5, 512)
    assert [m.name for m in tapped.spec.maps] == [info["module"] for info in network.feature_info]
    assert [tuple(m.shape[:2]) for m in features.maps] == [(2, m.channels) for m in tapped.spec.maps]
    assert [m.shape for m in features.preacts] == [m.shape for m in features.maps]
    assert len(features.blocks) == len(tapped.spec.blocks) > len(features.maps) - 2
    torch.testing.assert_close(features.logits, network(x))
    torch.testing.assert_close(features.embedding, network.forward_head(network.forward_features(x), pre_logits=True))
    assert tapped.classifier() is None
    assert tapped.norms()[-1] is not None


@EVERY
def test_the_embedding_is_not_normalised_and_the_logits_are_its_cosines(name):
    network = wake_batch_norms(small(name)).eval()
    features = tap(network, input_size=(3, 32, 32))(images())
    assert not torch.allclose(features.embedding.norm(dim=1), torch.ones(2), atol=0.1)
    rows, weight = (torch.nn.functional.normalize(x, dim=1) for x in (features.embedding, network.head.weight))
    torch.testing.assert_close(features.logits, 64 * rows @ weight.T)


@EVERY
def test_stages_divide_all_parameters_and_a_stage_runs_no_further(name):
    network = small(name)
    tapped = tap(network, input_size=(3, 32, 32))
    stages = stage_parameters(tapped)
    assert len(stages) == len(tapped.spec.maps) + 1
    assert sorted(key for stage in stages for key in stage) == sorted(network.state_dict())
    assert "head.weight" in stages[-1]
    assert {"fc.weight"} <= set(stages[-1])
    network.eval()
    torch.testing.assert_close(forward_to(tapped, images(), 1), tapped(images(), maps=True).maps[1])


@EVERY
def test_batch_norms_fold(name):
    tapped = tap(wake_batch_norms(small(name)).eval(), input_size=(3, 32, 32))
    before = tapped(images()).embedding
    report = fold_batchnorms(tapped)
    assert {"features", "bn"} & report.folded.keys()
    torch.testing.assert_close(tapped(images()).embedding, before, rtol=1e-4, atol=1e-4)


@EVERY
def test_without_identities_the_network_returns_embeddings(name):
    network = small(name, classes=0).eval()
    tapped = tap(network, input_size=(3, 32, 32))
    assert (tapped.spec.classes, tapped.spec.embedding_dim) == (0, 512)
    assert network(images()).shape == (2, 512)
    assert not any(key.startswith("head.") for key in network.state_dict())
    assert identity_scale(network) is None


@EVERY
def test_a_fresh_head_keeps_scale_mode_and_dtype(name):
    network = small(name, scale=30.0).double().eval()
    network.reset_classifier(9)
    assert network.head.weight.shape == (9, 512)
    assert (network.head.weight.dtype, network.head.training, network.num_classes) == (torch.float64, False, 9)
    assert (identity_scale(network), network.get_classifier(name_only=True)) == (30.0, "head")
    network.reset_classifier(0)
    assert network(images().double()).shape == (2, 512)
    with pytest.raises(ValueError, match="num_classes is -1; give the number of identities, or 0"):
        network.reset_classifier(-1)


@EVERY
def test_every_parameter_that_trains_gets_a_gradient(name):
    network = small(name).train()
    network(images(4)).square().sum().backward()
    left = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert left == []
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert frozen == (["features.weight"] if name == "iresnet10" else [])


@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet10"])
@pytest.mark.parametrize("size", [16, 64, 96, (112, 96), (50, 33)])
def test_other_sizes_of_image(name, size):
    network = timm.create_model(name, num_classes=3, width=0.125, img_size=size).eval()
    height, width = size if isinstance(size, tuple) else (size, size)
    assert network.pretrained_cfg["input_size"] == (3, height, width)
    tapped = tap(network)
    assert tapped.input_size == (3, height, width)
    final = tapped(torch.zeros(2, 3, height, width), maps=True).maps[-1]
    assert tuple(final.shape[2:]) == network.map_size == (map_side(height, 16), map_side(width, 16))


@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet10"])
def test_images_of_a_size_that_it_was_not_built_for_are_refused(name):
    network = small(name)
    message = r"built for images of 32 x 32 pixels, and its last map is now 4 x 4\. Build it for .*img_size: N"
    with pytest.raises(ValueError, match=message):
        network(images(size=64))
    with pytest.raises(NetworkError, match=message):
        build_network(name, classes=3, args=SMALL[name], input_size=(3, 64, 64))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("mobilefacenet", {"width": 0}, "width is 0; give a number above 0"),
        ("mobilefacenet", {"img_size": [64]}, r"img_size is \[64\]; give the images' height and width"),
        ("iresnet10", {"img_size": 0}, "img_size is 0; give"),
        ("iresnet10", {"dim": 0}, "dim is 0; give the length of the embedding"),
        ("iresnet10", {"scale": 0.0}, r"scale is 0\.0; give a number above 0, such as 64, or 'norm'"),
        ("iresnet10", {"scale": "Norm"}, "scale is 'Norm'; give"),
        ("face_backbone", {}, r"face_backbone needs the name of one of timm's networks \(args: {backbone: NAME}\)"),
        ("face_backbone", {"backbone": "resnet1x"}, "backbone is 'resnet1x'; give the name of one of timm's own"),
        ("face_backbone", {"backbone": "mobilefacenet"}, "backbone is 'mobilefacenet'; give the name of one of timm's"),
        ("face_backbone", {"backbone": "resnet8x4"}, "backbone is 'resnet8x4'; give the name of one of timm's own"),
    ],
)
def test_what_cannot_be_is_said(name, args, message):
    with pytest.raises(NetworkError, match=message):
        build_network(name, classes=3, args=args)


def test_widths_are_whole_eights():
    assert [scaled(64, 0.25), scaled(64, 0.3), scaled(64, 0.01), scaled(512, 2.0)] == [16, 16, 8, 1024]


@pytest.mark.parametrize("backbone", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_backbones_of_timm_keep_the_contract(backbone):
    tapped = build_network("face_backbone", classes=4, args={"backbone": backbone, "dim": 64}, input_size=(3, 64, 64))
    assert isinstance(tapped, ContractTapped)
    assert tapped.spec.embedding_dim == 64
    assert all(m.name.startswith("backbone.") for m in tapped.spec.maps)
    assert identity_scale(tapped.network) == 64.0


def test_a_transformer_is_built_for_its_size_by_its_own_arguments():
    args = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"img_size": 64, "depth": 2}}
    assert build_network("face_backbone", classes=4, args=args, input_size=(3, 64, 64)).spec.embedding_dim == 512


def test_a_pretrained_backbone_brings_its_normalisation(monkeypatch):
    """Nothing is downloaded here: what is asked of timm is seen, and answered without weights."""
    asked = []
    create = timm.create_model

    def without_weights(name, pretrained=False, **kwargs):
        asked.append((name, pretrained))
        return create(name, pretrained=False, **kwargs)

    entry = timm.models.model_entrypoint("face_backbone")
    monkeypatch.setattr(timm, "create_model", without_weights)
    network = entry(pretrained=True, backbone="resnet10t", num_classes=3)
    assert asked == [("resnet10t", True)]
    assert network.pretrained_cfg["mean"] == network.backbone.pretrained_cfg["mean"] != (0.5, 0.5, 0.5)


class TestIdentityHead:
    def test_a_zero_vector_has_cosine_zero_and_a_finite_gradient(self):
        head = IdentityHead(3, 2)
        x = torch.zeros(2, 3)
        x[1] = torch.tensor([1.0, 2.0, 3.0])
        x.requires_grad_()
        head(x).sum().backward()
        assert head(x)[0].tolist() == [0.0, 0.0]
        assert x.grad[0].tolist() == [0.0, 0.0, 0.0]
        assert x.grad.isfinite().all()
        assert head.weight.grad.isfinite().all()

    def test_norm_leaves_the_embeddings_length_in_the_logits(self):
        torch.manual_seed(0)
        head, x = IdentityHead(3, 2, scale="norm"), torch.randn(4, 3)
        torch.testing.assert_close(head(5 * x), 5 * head(x))
        cosines = head(x) / x.norm(dim=1, keepdim=True)
        torch.testing.assert_close(cosines, torch.nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=2))

    def test_a_scaled_head_sees_directions_only(self):
        torch.manual_seed(0)
        head, x = IdentityHead(3, 2, scale=7.0), torch.randn(4, 3)
        torch.testing.assert_close(head(5 * x), head(x))
        assert head(x).abs().max() <= 7.0

    def test_autocast_computes_in_float32(self):
        torch.manual_seed(0)
        head, x = IdentityHead(256, 50), torch.randn(8, 256)
        with torch.autocast("cpu", torch.bfloat16):
            under = head(x)
            assert torch.is_autocast_enabled("cpu")
        assert under.dtype == torch.float32
        assert torch.equal(under, head(x))
        assert head(x.bfloat16()).dtype == torch.float32
        assert head(x.double()).dtype == torch.float64

    @pytest.mark.parametrize("scale", [64.0, "norm"])
    def test_it_compiles_as_one_graph_and_exports(self, scale):
        head, x = IdentityHead(8, 3, scale), torch.randn(4, 8)
        torch._dynamo.reset()
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), head(x))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(compiled(x), head(x))
        exported = torch.export.export(head.eval(), (x,)).module()
        torch.testing.assert_close(exported(x), head(x))


def test_features_only_as_with_any_network_of_timm():
    stages = timm.create_model("mobilefacenet", features_only=True, width=0.25, img_size=32, out_indices=(1, 3))
    assert [m.shape[1] for m in stages(images())] == [16, 32] == stages.feature_info.channels()


@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet10"])
def test_indices_and_stopping_early(name):
    network = small(name).eval()
    final, every = network.forward_intermediates(images())
    assert torch.equal(final, network.forward_features(images()))
    last, two = network.forward_intermediates(images(), indices=[0, 1], stop_early=True)
    assert torch.equal(two[1], every[1])
    assert torch.equal(last, every[1])
    only = network.forward_intermediates(images(), indices=1, intermediates_only=True)
    assert len(only) == 1
    assert torch.equal(only[0], every[-1])
    for wrong in ([9], [], 0, [-7]):
        with pytest.raises(ValueError, match=rf"the network has {len(every)} taps"):
            network.forward_intermediates(images(), indices=wrong)
    with pytest.raises(ValueError, match="output_fmt is 'NLC'"):
        network.forward_intermediates(images(), output_fmt="NLC")


ALONE = """
import sys, warnings
sys.modules["potstill"] = None  # any import of it fails
sys.path.insert(0, "{folder}")
import importlib, timm, torch
warnings.simplefilter("error")
for module, name, args in {families}:
    importlib.import_module("alone_" + module + "." + module)
    network = timm.create_model(name, num_classes=5, checkpoint_path="{folder}/" + name + ".safetensors", **args).eval()
    torch.save(network(torch.load("{folder}/images.pt")).detach(), "{folder}/" + name + ".pt")
"""


def test_a_family_works_without_the_project(tmp_path):
    """A package of ``base.py`` and one family's file is enough, and registers its networks without a warning."""
    families, networks = [], {name: wake_batch_norms(small(name)).eval() for name in SMALL}
    torch.save(images(), tmp_path / "images.pt")
    for name, network in networks.items():
        source = family_file(name)
        package = tmp_path / f"alone_{source.stem}"
        package.mkdir()
        (package / "__init__.py").touch()
        shutil.copy(source, package)
        shutil.copy(source.parent / "base.py", package)
        families.append((source.stem, name, SMALL[name]))
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    program = ALONE.format(folder=tmp_path, families=families)
    # -I: neither PYTHONPATH nor the working folder is searched.
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, network in networks.items():
        with torch.no_grad():
            assert torch.equal(torch.load(tmp_path / f"{name}.pt"), network(images()))


def test_a_name_that_is_no_face_network():
    with pytest.raises(ValueError, match="'resnet8' is no face network; there are face_backbone, iresnet10"):
        family_file("resnet8")


@pytest.mark.parametrize(("model", "family"), [("faces/mobilefacenet", "mobilefacenet"), ("face_backbone", "backbone")])
def test_a_student_ships_with_its_family(tmp_path, model, family):
    args = SMALL[model.removeprefix("faces/")]
    tapped = build_network(model, classes=4, args=args, input_size=(3, 32, 32))
    ship_student(tmp_path, tapped, NetworkCard(model, 4, (0.5,) * 3, (0.5,) * 3, (3, 32, 32), args=args))
    package = sorted(path.name for path in (tmp_path / "student_network").iterdir())
    assert package == sorted(["__init__.py", "base.py", f"{family}.py"])
    loaded = load_student(tmp_path)
    assert identity_scale(loaded.network) == 64.0
    assert torch.equal(loaded(images()).logits, tapped.eval()(images()).logits)
