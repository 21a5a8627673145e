"""Networks for segmentation seen as Features: stages for distillation, logits of every pixel."""

import copy
import pickle

import pytest
import torch
from tests.networks.dense import ARGS, SEGMENTERS, SIZE, build, images

from potstill.errors import NetworkError
from potstill.networks.build import build_network
from potstill.networks.features import MapSpec
from potstill.networks.fold import fold_batchnorms
from potstill.networks.segmentation.build import KINDS, Stages
from potstill.networks.stages import stage_parameters
from potstill.networks.tap import Taps

EVERY = pytest.mark.parametrize("kind", SEGMENTERS)
STRIDES = {"fcn": (2, 4, 8, 8, 8), "deeplabv3": (2, 4, 8, 16, 16), "lraspp": (2, 4, 8, 16, 16)}


@EVERY
def test_the_spec_is_of_the_backbones_stages_dilated_as_asked_for(kind):
    tapped = build(kind)
    assert (tapped.classes, tapped.spec.classes, tapped.spec.embedding_dim) == (3, 3, 96)
    channels = (32, 32, 48, 192, 96)
    assert tapped.spec.maps == tuple(MapSpec(str(k), channels[k], STRIDES[kind][k]) for k in range(5))


@EVERY
def test_logits_are_of_every_pixel_and_the_embedding_is_the_mean_of_the_last_stage(kind):
    tapped = build(kind)
    batch = images(2)
    features = tapped(batch, maps=True, preacts=True, blocks=True)
    assert features.logits.shape == (2, 3, *SIZE[1:])
    assert torch.equal(features.logits, tapped.network(batch)["out"])
    assert features.logits.argmax(1).unique().numel() > 1
    assert torch.equal(features.embedding, features.maps[-1].mean((2, 3)))
    assert [m.shape[1] for m in features.maps] == [m.channels for m in tapped.spec.maps]
    assert features.preacts is features.maps
    assert features.blocks is features.maps
    bare = tapped(batch)
    assert (bare.maps, bare.preacts, bare.blocks) == ((), (), ())
    assert torch.equal(bare.logits, features.logits)


@EVERY
def test_images_of_any_size_are_named_at_their_size(kind):
    tapped = build(kind)
    assert tapped(torch.zeros(1, 3, 70, 50)).logits.shape == (1, 3, 70, 50)


@EVERY
def test_every_parameter_learns(kind):
    tapped = build(kind).train()
    tapped(images(2)).logits.square().mean().backward()
    assert [name for name, p in tapped.network.named_parameters() if p.grad is None] == []


@EVERY
def test_stages_divide_the_network_and_the_head_is_the_last(kind):
    tapped = build(kind)
    stages = stage_parameters(tapped)
    assert len(stages) == 6
    flat = [name for stage in stages for name in stage]
    assert len(flat) == len(set(flat))
    assert set(flat) == set(tapped.network.state_dict())
    assert all(name.startswith("backbone.") for stage in stages[:-1] for name in stage)
    assert all(name.startswith("classifier.") for name in stages[-1])


@pytest.mark.parametrize(("kind", "width"), [("fcn", 24), ("deeplabv3", 256)])
def test_the_classifier_is_the_last_convolution(kind, width):
    weight, bias = build(kind).classifier()
    assert (tuple(weight.shape), tuple(bias.shape)) == ((3, width), (3,))


def test_two_convolutions_that_add_up_are_no_classifier():
    assert build("lraspp").classifier() is None


@EVERY
def test_batch_norms_fold_and_the_logits_stay(kind):
    tapped = build(kind)
    before = tapped(images(2), maps=True)
    assert len(fold_batchnorms(tapped).folded) > 10
    after = tapped(images(2), maps=True)
    for one, other in zip((before.logits, *before.maps), (after.logits, *after.maps), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.detach().abs().max()))


@EVERY
def test_the_weights_load_into_the_plain_network(kind):
    tapped = build(kind)
    KINDS[kind]("test_resnet", 3, **ARGS[kind]).load_state_dict(tapped.network.state_dict())
    assert {name.split(".")[0] for name in tapped.network.state_dict()} == {"backbone", "classifier"}


@EVERY
def test_a_network_copies_and_pickles(kind):
    tapped = build(kind)
    expected = tapped(images(1)).logits
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        assert torch.equal(twin(images(1)).logits, expected)


def test_the_low_stage_is_the_last_fine_one():
    for stride, channels in ((8, 192), (16, 48), (32, 48)):
        stages = Stages("test_resnet", stride)
        ends = stages(images(1))
        assert stages.channels[stages.low] == ends["low"].shape[1] == channels
        assert ends["high"] is ends["out"]


def test_torchvisions_own_network_shows_the_stages_that_it_names():
    tapped = build_network("torchvision/lraspp_mobilenet_v3_large", classes=3, input_size=SIZE).eval()
    assert [(m.channels, m.stride) for m in tapped.spec.maps] == [(40, 8), (960, 16)]
    assert tapped(images(1)).logits.shape == (1, 3, *SIZE[1:])


def test_wrong_names_taps_and_a_network_without_classes_are_refused():
    with pytest.raises(NetworkError, match=r"timm has no backbone 'test_resne'.* Did you mean 'test_resnet'\?"):
        build_network("lraspp/test_resne", classes=3)
    with pytest.raises(NetworkError, match="shows its backbone's stages by itself; leave taps out"):
        build_network("fcn/test_resnet", classes=3, taps=Taps(maps=("backbone",)), input_size=SIZE)
    with pytest.raises(NetworkError, match="is asked for without classes"):
        build_network("deeplabv3/test_resnet", classes=0, input_size=SIZE)
    with pytest.raises(NetworkError, match="unexpected keyword argument 'dilation'"):
        build_network("fcn/test_resnet", classes=3, args={"dilation": 2}, input_size=SIZE)
