import copy
import logging
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import potstill.networks.cifar  # noqa: F401  (registers the zoo with timm)
from potstill.errors import NetworkError
from potstill.networks.tap import Taps, tap
from potstill.networks.teacher import Teacher

SIZE = (3, 32, 32)
LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()  # all networks share one forward, and only so many versions of it are kept


def images(n=3, size=SIZE):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1))


def uneven(network):
    """Batch norms that do something, also in evaluation."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                values.data.uniform_(low, low + 1, generator=generator)
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def zoo(name):
    torch.manual_seed(0)
    return uneven(timm.create_model(name, num_classes=5))


def residual_sums(network, x):
    """The stem's and each stage's last value before its ReLU, block by block with plain layers."""
    before = [network.bn1(network.conv1(x))]
    x = before[0].relu()
    for name in LAYERS:
        if not hasattr(network, name):
            continue
        for block in getattr(network, name):
            out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
            if hasattr(block, "bn3"):
                out = block.bn3(block.conv3(out.relu()))
            downsample = getattr(block, "shortcut", None) or getattr(block, "downsample", None)
            total = out + (x if downsample is None else downsample(x))
            x = total.relu()
        before.append(total)
    return before


def next_norms(network, x):
    """Of a Wide ResNet: what the next block's first batch norm makes of each raw end, and at last the final one."""
    x, before = network.conv1(x), []
    for stage in (network.block1, network.block2, network.block3):
        before.append(stage.layer[0].bn1(x))
        x = stage(x)
    return [*before, network.bn1(x)]


def conv_norms(network, x):
    before = []
    for index in range(5):
        x = getattr(network, f"block{index}")(network.pool(x) if 0 < index < 4 else x)
        before.append(x)
        x = x.relu()
    return before


def assert_equal(ours, expected):
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("resnet8x4", residual_sums),
        ("resnet20", residual_sums),
        ("ResNet50", residual_sums),
        ("wrn_16_2", next_norms),
        ("wrn_16_1", next_norms),  # its first block's shortcut is the stem's map itself
        ("vgg8", conv_norms),
        ("cifar_vgg11", conv_norms),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_zoo_before_its_activations(name, by_hand, training):
    network = zoo(name).train(training)
    tapped = tap(network, input_size=SIZE).train(training)
    state = copy.deepcopy(network.state_dict())
    features = tapped(images(), maps=True, preacts=True)
    network.load_state_dict(state)
    assert_equal(features.preacts, by_hand(network, images()))
    assert all((before < 0).any() for before in features.preacts)
    if by_hand is not next_norms:
        assert_equal(features.maps, [before.relu() for before in features.preacts])


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV2", "convnext_atto"])
def test_linear_ends_are_their_own_preacts_and_it_is_said_once(name, caplog):
    tapped = tap(zoo(name), input_size=SIZE)
    linear = [spec.name for spec, end in zip(tapped.spec.maps, tapped.ends, strict=True) if end.activation is None]
    assert len(linear) == {"MobileNetV2": 4, "ShuffleV2": 3, "convnext_atto": 4}[name]
    with caplog.at_level(logging.INFO, logger="potstill"):
        features = tapped(images(), maps=True, preacts=True)
        tapped(images(), preacts=True)
    assert caplog.text.count(f"no activation layer ends {', '.join(linear)}; there the preact is the map itself") == 1
    for index, end in enumerate(tapped.ends):
        itself = torch.equal(features.preacts[index], features.maps[index])
        assert itself == (end.activation is None)


def test_shufflenet_v1_before_its_relu():
    tapped = tap(zoo("ShuffleV1"), input_size=SIZE)
    features = tapped(images(), maps=True, preacts=True)
    assert_equal(features.maps, [before.relu() for before in features.preacts])
    assert all((before < 0).any() for before in features.preacts)


def test_in_place_activations_of_timm():
    network = uneven(timm.create_model("resnet18", num_classes=5))
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
    tapped = tap(network, input_size=SIZE)
    plain = tapped(images(), maps=True)
    features = tapped(images(), maps=True, preacts=True)
    assert_equal(features.preacts[1:], residual_sums_after_pooling(network, images()))
    assert_equal(features.maps, plain.maps)
    assert_equal(features.maps, [before.relu() for before in features.preacts])


def residual_sums_after_pooling(network, x):
    x = network.maxpool(network.bn1(network.conv1(x)).relu())
    before = []
    for name in LAYERS:
        for block in getattr(network, name):
            shortcut = x if block.downsample is None else block.downsample(x)
            total = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())) + shortcut
            x = total.relu()
        before.append(total)
    return before


def test_torchvisions_shared_in_place_relu_through_hooks():
    torch.manual_seed(0)
    network = uneven(torchvision.models.resnet18(num_classes=5))
    tapped = tap(network, Taps(maps=("relu", *LAYERS)), input_size=SIZE)
    assert [end.call for end in tapped.ends] == [0, 1, 1, 1, 1]
    features = tapped(images(), maps=True, preacts=True)
    assert_equal(features.preacts[1:], residual_sums_after_pooling(network, images()))
    assert_equal(features.maps, [before.relu() for before in features.preacts])
    torch.testing.assert_close(features.logits, network(images()))
    assert [name for end in tapped.ends if (name := end.norm)] == ["bn1", *(f"{layer}.1.bn2" for layer in LAYERS)]


def test_norm_and_activation_in_one_layer():
    network = uneven(timm.create_model("resnetv2_50", num_classes=5, layers=(1, 1, 1, 1)))
    tapped = tap(network, input_size=SIZE)
    features = tapped(images(), maps=True, preacts=True)
    for index, norm in enumerate([*(network.stages[k].blocks[0].norm1 for k in (1, 2, 3)), network.norm], start=1):
        by_hand = nn.functional.batch_norm(
            features.maps[index], norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
        torch.testing.assert_close(features.preacts[index], by_hand)
        torch.testing.assert_close(tapped.norms()[index], (norm.weight.detach(), norm.bias.detach()))


class Functional(nn.Module):
    """Blocks with a functional ReLU, one activation for several calls, and branches that are equal by value."""

    def __init__(self):
        super().__init__()
        self.act = nn.SiLU(inplace=True)
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.same, self.body, self.last = nn.Identity(), nn.Identity(), nn.Identity()
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = self.same(self.act(x + 1))
        out = self.body(nn.functional.silu(x - 1))
        self.act(x - 1)  # equal to the map, and not it
        return self.fc(self.last(self.act(out)).mean((2, 3)))


def test_calls_are_told_apart_by_identity_and_order():
    network = uneven(Functional())
    tapped = tap(network, Taps(maps=("same", "body", "last")), input_size=SIZE)
    assert [(end.activation, end.call) for end in tapped.ends] == [("act", 1), (None, 0), ("act", 3)]
    features = tapped(images(), maps=True, preacts=True)
    inner = nn.functional.silu(network.norm(network.stem(images()))) + 1
    assert_equal(features.preacts[:1], [inner])
    out = nn.functional.silu(nn.functional.silu(inner) - 1)
    # The activation after it changes this map in place; what was caught keeps its values.
    assert_equal(features.maps, [nn.functional.silu(inner), out, nn.functional.silu(out)])
    assert_equal(features.preacts[1:], [out, out])


@pytest.mark.parametrize(
    "act", [nn.GELU(), nn.Hardswish(inplace=True), nn.PReLU(4, init=0.1), timm.layers.activations_me.SwishMe(True)]
)
def test_other_activations(act):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    tapped = tap(uneven(network), Taps(maps=("2",)), input_size=SIZE)
    features = tapped(images(), maps=True, preacts=True)
    assert_equal(features.preacts, [network[1](network[0](images()))])
    assert_equal(features.maps, [act(features.preacts[0].clone())])
    assert tapped.ends[0].norm == "1"


@pytest.mark.parametrize(
    ("act", "expected"),
    [(nn.GLU(dim=1), None), (nn.Softmax(dim=1), None), (nn.Identity(), None), (nn.Sigmoid(), "2")],
)
def test_what_is_no_activation(act, expected):
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act, *head)
    network(images())
    assert tap(network, Taps(maps=("2",)), input_size=SIZE).ends[0].activation == expected


BUILDS = {
    "shared relu": lambda: tap(
        uneven(torchvision.models.resnet18(num_classes=5)), Taps(maps=("relu", *LAYERS)), input_size=SIZE
    ),
    "wrn_16_2": lambda: tap(zoo("wrn_16_2"), input_size=SIZE),
    "resnet8x4": lambda: tap(zoo("resnet8x4"), input_size=SIZE),
    "resnet18": lambda: tap(zoo("resnet18"), input_size=SIZE),
}


@pytest.mark.parametrize("name", BUILDS)
def test_open_networks_copy_pickle_and_compile(name):
    tapped = BUILDS[name]()
    names = list(tapped.state_dict())
    tapped.open(maps=True, preacts=True, blocks=True)
    assert list(tapped.state_dict()) == names
    hooks = count_hooks(tapped)
    tapped.open(preacts=True, blocks=True)
    assert count_hooks(tapped) == hooks
    expected = tapped(images(), preacts=True, blocks=True)
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped)), compiled):
        features = twin(images(), preacts=True, blocks=True)
        assert_equal(features.preacts, expected.preacts)
        assert_equal(features.blocks, expected.blocks)
        assert features.maps == ()
        assert twin(images()).preacts == twin(images(), maps=True).blocks == ()
    twin = copy.deepcopy(tapped)
    assert twin.preacts.store is not tapped.preacts.store
    assert tapped.preacts.store.values == tapped.blocks.store.values == {}
    with torch.no_grad():
        exported = torch.export.export(tapped.network, (images(),)).module()
        torch.testing.assert_close(exported(images()), expected.logits)


def count_hooks(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_nothing_is_hooked_until_it_is_asked_for():
    tapped = tap(zoo("wrn_16_2"), input_size=SIZE)
    tapped(images(), maps=True)
    assert count_hooks(tapped) == 0
    tapped(images(), preacts=True)
    assert count_hooks(tapped) == 4
    tapped.network(images())
    assert tapped.preacts.store.values == {}


@pytest.mark.parametrize("name", BUILDS)
def test_gradients_are_those_of_the_plain_network_and_reach_what_is_before_a_preact(name):
    tapped = BUILDS[name]().train()
    twin = copy.deepcopy(tapped)
    tapped(images()).logits.square().sum().backward()
    features = twin(images(), preacts=True, blocks=True)
    shares = torch.autograd.grad(features.logits.square().sum(), features.preacts, retain_graph=True)
    assert all(share.abs().sum() > 0 for share in shares)  # the logits depend on each
    features.logits.square().sum().backward()
    for one, other in zip(tapped.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(tapped.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_norms_behind_the_preacts():
    def named(name, taps=None, network=None):
        network = network or zoo(name)
        tapped = tap(network, taps, input_size=SIZE)
        found = tapped.norms()
        assert len(found) == len(tapped.spec.maps)
        for spec, end, affine in zip(tapped.spec.maps, tapped.ends, found, strict=True):
            if affine is not None:
                norm = network.get_submodule(end.norm)
                assert affine[0].data_ptr() == norm.weight.data_ptr()
                assert not affine[0].requires_grad
                assert affine[0].shape == affine[1].shape == (spec.channels,)
                assert torch.equal(affine[1], norm.bias)
        return [end.norm for end in tapped.ends]

    # One block a stage, whose shortcut has a batch norm that runs after the block's own.
    assert named("resnet8x4") == ["bn1", "layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]
    assert named("ResNet50") == ["bn1", "layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]
    assert named("wrn_16_2") == ["block1.layer.0.bn1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]
    assert named("vgg8") == [f"block{k}.1" for k in range(5)]
    assert named("MobileNetV2") == ["conv1.1", *(f"blocks.{k}.conv.7" for k in ("1.1", "2.2", "4.2", "6.0"))]
    assert named("ShuffleV2") == ["bn1", None, None, None]  # its last batch norm covers half the channels
    assert named("convnext_atto") == [None] * 4
    assert named("regnety_002")[3] == "s3.b4.conv3.bn"
    # In all but the first stage's one block the shortcut has a batch norm too, within a child as the main path's is.
    assert named("regnety_002")[1] == "s1.b1.conv3.bn"
    unnormed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    network = nn.Sequential(unnormed, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert named("", Taps(maps=("0.2", "0.4")), network) == ["0.1", None]


def test_a_batch_norm_without_affine_is_none():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    tapped = tap(network.extend([nn.Flatten(), nn.Linear(4, 5)]), Taps(maps=("2",)), input_size=SIZE)
    assert tapped.norms() == (None,)
    assert tapped.ends[0].activation == "2"


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_the_classifier():
    tapped = tap(zoo("resnet8x4"), input_size=SIZE)
    weight, bias = tapped.classifier()
    assert weight.data_ptr() == tapped.network.fc.weight.data_ptr()
    assert [weight.requires_grad, bias.requires_grad] == [False, False]
    features = tapped(images())
    torch.testing.assert_close(features.embedding @ weight.T + bias, features.logits)
    assert tap(timm.create_model("resnet8x4", num_classes=0), input_size=SIZE).classifier() is None

    convolution = tap(timm.create_model("dla46x_c", num_classes=4).eval(), input_size=(3, 64, 64))
    features = convolution(images(size=(3, 64, 64)))
    weight, bias = convolution.classifier()
    assert weight.shape == (4, 256)
    torch.testing.assert_close(features.embedding @ weight.T + bias, features.logits)

    two = tap(timm.create_model("levit_conv_128s", num_classes=4).eval(), input_size=(3, 224, 224))
    assert two.classifier() is None


@pytest.mark.parametrize(
    ("taps", "after", "found"),
    [
        (None, (), True),
        (Taps(classifier="3"), (), True),
        (Taps(embedding="1"), (), True),
        (Taps(embedding="0"), (), False),  # the layer between is not seen by the embedding
        (Taps(classifier="3"), (nn.Softmax(1),), False),
    ],
)
def test_the_classifier_through_hooks(taps, after, found):
    drop = nn.Identity() if taps == Taps(embedding="1") else nn.Dropout(0.5)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network = nn.Sequential(pool, nn.LayerNorm(12), drop, nn.Linear(12, 5, bias=False), *after)
    tapped = tap(network, taps, input_size=SIZE)
    classifier = tapped.classifier()
    assert (classifier is not None) == found
    if found:
        assert torch.equal(classifier[0], network[3].weight)
        assert classifier[1] is None


def test_a_linear_layer_that_computes_something_else_is_no_classifier():
    network = zoo("resnet8")
    network.fc = Scaled(64, 5)
    assert tap(network, input_size=SIZE).classifier() is None


def test_the_teacher_shows_them():
    bare, x = zoo("resnet8x4"), images()
    expected = residual_sums(copy.deepcopy(bare), x)
    half = (0.5,) * 3
    same = {"mean": half, "std": half, "student_mean": half, "student_std": half}
    teacher = Teacher(tap(bare, input_size=SIZE), **same)
    features = teacher(x, preacts=True, blocks=True)
    assert_equal(features.preacts, [value.detach() for value in expected])
    assert len(features.blocks) == len(teacher.spec.blocks) == 3
    assert features.maps == teacher(x).preacts == ()
    assert not any(value.requires_grad for value in (*features.preacts, *features.blocks))
    teacher.verify()
    torch.manual_seed(0)
    compiled = Teacher(tap(zoo("resnet8x4"), input_size=SIZE), **same)
    compiled.run = torch.compile(compiled.network, backend="eager", fullgraph=True)
    assert_equal(compiled(x, preacts=True).preacts, features.preacts)


def test_what_cannot_be_opened_is_said():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(NetworkError, match=r"Sequential shows no maps, and its preacts .* in taps\.maps"):
        tap(network, input_size=SIZE)(images(), preacts=True)
    with pytest.raises(NetworkError, match="its blocks are found by them"):
        tap(network, input_size=SIZE).open(blocks=True)
    closed = torch.compile(tap(zoo("resnet8"), input_size=SIZE), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"call its open\(preacts=True\) before"):
        closed(images(), preacts=True)


class Fickle(nn.Module):
    """Runs one layer in evaluation only."""

    def __init__(self):
        super().__init__()
        self.stem, self.act, self.body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Identity()
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.body(x if self.training else self.act(x)).mean((2, 3)))


def test_a_layer_that_does_not_run_this_time_is_said():
    tapped = tap(Fickle(), Taps(maps=("body",)), input_size=SIZE)
    with pytest.raises(NetworkError, match="call 1 of layer 'act' was not run in this pass"):
        tapped.train()(images(), preacts=True)
    assert tapped.eval()(images(), preacts=True).preacts[0].min() < 0
