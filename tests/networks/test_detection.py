"""Detectors seen as Features: what training, evaluation and distillation read of them."""

import copy
import pickle

import pytest
import torch
from tests.networks.dense import ARGS, DETECTORS, INSIDE, SIZE, build, images, objects
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from potstill.errors import NetworkError
from potstill.networks.build import build_network
from potstill.networks.detection.build import KINDS
from potstill.networks.detection.tapped import background_last
from potstill.networks.features import MapSpec
from potstill.networks.fold import fold_batchnorms
from potstill.networks.stages import stage_parameters
from potstill.networks.tap import Taps, tap
from potstill.objects import Objects, Regions

EVERY = pytest.mark.parametrize("kind", DETECTORS)
LOSSES = {
    "fasterrcnn": {"objectness", "proposals", "classes", "boxes"},
    "retinanet": {"classes", "boxes"},
    "fcos": {"classes", "boxes", "centres"},
}


def test_the_spec_of_a_two_stage_detector():
    tapped = build("fasterrcnn")
    assert (tapped.classes, tapped.spec.classes, tapped.spec.embedding_dim) == (3, 4, 64)
    assert tapped.spec.maps == (
        MapSpec("0", 32, 4), MapSpec("1", 32, 8), MapSpec("2", 32, 16), MapSpec("3", 32, 32), MapSpec("pool", 32, 64)
    )  # fmt: skip
    assert [(m.channels, m.stride) for m in tapped.spec.blocks] == [(32, 4), (48, 8), (192, 16), (96, 32)]


@pytest.mark.parametrize(("kind", "channels"), [("retinanet", 32), ("fcos", 64)])
def test_the_spec_of_a_detector_without_regions(kind, channels):
    tapped = build(kind)
    assert (tapped.classes, tapped.spec.classes, tapped.spec.embedding_dim) == (3, 0, channels)
    assert [(m.channels, m.stride) for m in tapped.spec.maps] == [(channels, s) for s in (8, 16, 32, 64, 128)]
    assert [(m.channels, m.stride) for m in tapped.spec.blocks] == [(48, 8), (192, 16), (96, 32)]
    assert tapped.classifier() is None


@EVERY
def test_a_pass_without_objects_shows_pyramid_and_stages_and_looks_at_no_region(kind):
    tapped = build(kind)
    batch = images(2)
    features = tapped(batch, maps=True, preacts=True, blocks=True)
    assert [m.shape[1] for m in features.maps] == [m.channels for m in tapped.spec.maps]
    assert [m.shape[1] for m in features.blocks] == [m.channels for m in tapped.spec.blocks]
    assert all(one is other for one, other in zip(features.maps, features.preacts, strict=True))
    assert (len(features.logits), len(features.embedding), features.losses, features.regions) == (0, 0, {}, None)
    for ours, own in zip(features.maps, tapped.network.backbone(batch).values(), strict=True):
        assert torch.equal(ours, own)
    bare = tapped(batch)
    assert (bare.maps, bare.preacts, bare.blocks) == ((), (), ())


@EVERY
def test_a_pass_with_objects_has_the_detectors_own_losses_and_they_reach_every_part(kind):
    tapped = build(kind).train()
    torch.manual_seed(0)
    features = tapped(images(2), objects=objects(2))
    assert features.losses.keys() == LOSSES[kind]
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in features.losses.values())
    sum(features.losses.values()).backward()
    named = dict(tapped.network.named_parameters())
    assert [name for name, p in named.items() if p.grad is None] == []
    assert float(named["backbone.body.network.conv1.0.weight"].grad.abs().sum()) > 0


@EVERY
def test_images_without_any_object_have_losses_too(kind):
    tapped = build(kind).train()
    none = objects(1)
    features = tapped(images(1), objects=none)
    assert all(loss.isfinite() for loss in features.losses.values())
    if kind == "fasterrcnn":
        assert features.regions.labels.eq(3).all()


def test_the_regions_are_the_rows_with_background_as_the_last_class():
    tapped = build("fasterrcnn").train()
    torch.manual_seed(0)
    features = tapped(images(2), objects=objects(2))
    regions = features.regions
    rows = [len(boxes) for boxes in regions.boxes]
    assert (len(rows), max(rows)) == (2, 16)
    assert features.logits.shape == (sum(rows), 4)
    assert features.embedding.shape == (sum(rows), 64)
    assert regions.labels.shape == (sum(rows),)
    assert set(regions.labels[: rows[0]].tolist()) == {0, 2, 3}
    assert regions.labels[rows[0] :].eq(3).all()  # the second image is empty
    own = tapped.network.roi_heads.box_predictor.cls_score(features.embedding)
    assert torch.equal(features.logits, background_last(own))
    assert torch.equal(features.logits[:, 3], own[:, 0])
    weight, bias = tapped.classifier()
    torch.testing.assert_close(features.embedding @ weight.T + bias, features.logits)


def test_a_teacher_says_of_the_students_regions_what_its_own_pass_says_of_them():
    student = build("fasterrcnn").train()
    torch.manual_seed(0)
    features = student(images(2), objects=objects(2))
    logits, embedding = student.read_regions(features.maps, features.regions)
    assert torch.equal(logits, features.logits)
    assert torch.equal(embedding, features.embedding)
    other = Regions(tuple(boxes + 3 for boxes in features.regions.boxes), features.regions.labels, (INSIDE,) * 2)
    assert not torch.allclose(student.read_regions(features.maps, other)[0], logits)


def test_proposals_are_the_same_each_time_and_take_in_the_objects():
    tapped = build("fasterrcnn")
    batch, given = images(2), objects(2)
    levels = tapped(batch, maps=True).maps
    torch.manual_seed(0)
    first = tapped.propose(batch, levels, given, tapped.classes)
    torch.manual_seed(1)
    second = tapped.propose(batch, levels, given, tapped.classes)
    assert all(torch.equal(a, b) for a, b in zip(first.boxes, second.boxes, strict=True))
    assert torch.equal(first.labels, second.labels)
    count = len(first.boxes[0])
    assert torch.equal(first.boxes[0][-2:], given.boxes[0])
    assert first.labels[count - 2 : count].tolist() == [2, 0]
    assert len(first.labels) == count + len(first.boxes[1])
    assert first.labels[count:].eq(3).all()
    assert not first.boxes[0].requires_grad


@EVERY
def test_detections_lie_in_the_image_count_classes_from_0_and_come_best_first(kind):
    tapped = build(kind)
    whole, smaller = tapped.detect(images(2), (INSIDE, (64, 40)))
    assert len(whole["scores"]) > 20
    assert set(whole["labels"].tolist()) <= {0, 1, 2}
    assert len(set(whole["labels"].tolist())) > 1
    assert whole["scores"].diff().le(0).all()
    for found, (height, width) in ((whole, INSIDE), (smaller, (64, 40))):
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, [0, 2]].max() <= width
        assert found["boxes"][:, [1, 3]].max() <= height


@EVERY
def test_boxes_are_float32_under_autocast(kind):
    tapped = build(kind)
    plain = tapped.detect(images(1), (INSIDE,))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tapped.detect(images(1), (INSIDE,))[0]
        features = tapped.train()(images(2), objects=objects(2))
    assert (found["boxes"].dtype, found["scores"].dtype) == (torch.float32, torch.float32)
    assert not torch.equal(found["boxes"] * 4, (found["boxes"] * 4).round())  # half precision has such steps at 64
    assert abs(len(found["scores"]) - len(plain["scores"])) < len(plain["scores"]) // 2
    assert all(loss.dtype == torch.float32 for loss in features.losses.values())


@EVERY
def test_batch_norms_fold_and_the_pyramid_stays(kind):
    tapped = build(kind)
    before = tapped(images(2), maps=True, blocks=True)
    report = fold_batchnorms(tapped)
    assert len(report.folded) > 10
    after = tapped(images(2), maps=True, blocks=True)
    for one, other in zip((*before.maps, *before.blocks), (*after.maps, *after.blocks), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.detach().abs().max()))


@EVERY
def test_the_weights_are_torchvisions_and_load_into_the_plain_network(kind):
    tapped = build(kind)
    plain = KINDS[kind]("test_resnet", 3, **ARGS[kind])
    plain.load_state_dict(tapped.network.state_dict())
    heads = {"rpn", "roi_heads"} if kind == "fasterrcnn" else {"head"}
    assert {name.split(".")[0] for name in tapped.network.state_dict()} == {"backbone"} | heads
    assert {name.split(".")[1] for name in tapped.network.backbone.state_dict()} <= {"network", "inner_blocks",
        "layer_blocks", "extra_blocks"}  # fmt: skip


@EVERY
def test_stages_are_the_backbones_then_the_pyramid_then_the_head(kind):
    tapped = build(kind)
    stages = stage_parameters(tapped)
    assert len(stages) == len(tapped.spec.blocks) + 2
    flat = [name for stage in stages for name in stage]
    assert len(flat) == len(set(flat))
    assert set(flat) == set(tapped.network.state_dict())
    assert all(stages)
    assert all(name.startswith("backbone.body.") for stage in stages[:-2] for name in stage)
    assert all(name.startswith("backbone.fpn.") for name in stages[-2])
    assert not any(name.startswith("backbone.") for name in stages[-1])


@EVERY
def test_a_detector_copies_and_pickles(kind):
    tapped = build(kind)
    expected = tapped.detect(images(1), (INSIDE,))[0]
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        found = twin.detect(images(1), (INSIDE,))[0]
        assert torch.equal(found["boxes"], expected["boxes"])
        assert twin.classes == 3


def test_a_small_image_in_a_large_batch_does_not_change_what_level_has_which_stride():
    tapped = build("fasterrcnn")
    twin = copy.deepcopy(tapped)
    twin.detect(images(1), ((40, 30),))
    assert twin.network.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert torch.equal(twin.detect(images(1), (INSIDE,))[0]["boxes"], tapped.detect(images(1), (INSIDE,))[0]["boxes"])


def test_torchvisions_own_detectors_count_their_classes_without_background():
    tapped = build_network("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", classes=3, input_size=SIZE)
    assert (tapped.classes, tapped.spec.classes) == (3, 4)
    assert [(m.channels, m.stride) for m in tapped.spec.maps] == [(256, 32), (256, 32), (256, 64)]
    found = tapped.eval().detect(images(1), (INSIDE,))[0]
    assert found["boxes"].shape[1] == 4


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("fasterrcnn/test_resne", {}, r"timm has no backbone 'test_resne'.* Did you mean 'test_resnet'\?"),
        ("fasterrnn/test_resnet", {}, r"unknown model.*Did you mean 'fasterrcnn'\?"),
        (
            "fasterrcnn/vit_tiny_patch16_224",
            {},
            r"vit_tiny_patch16_224 has no stage of stride 4; its stages have \[16\]",
        ),
        ("fasterrcnn/test_resnet", {"detections": 5}, r"detections is no setting of torchvision's FasterRCNN; it has"),
        ("retinanet/test_resnet", {"box_score_thresh": 0.1}, r"box_score_thresh is no setting of .*RetinaNet"),
        ("fcos/test_resnet", {"fg_iou_thresh": 0.1}, r"fg_iou_thresh is no setting of torchvision's FCOS"),
        ("retinanet/test_resnet", {"num_classes": 5}, r"args may not set num_classes"),
    ],
)
def test_wrong_names_and_settings_are_refused(model, args, message):
    with pytest.raises(NetworkError, match=message):
        build_network(model, classes=3, args=args, input_size=SIZE)


def test_a_detector_needs_classes_a_pyramid_and_no_taps():
    with pytest.raises(NetworkError, match="is asked for without classes"):
        build_network("fcos/test_resnet", classes=0, input_size=SIZE)
    with pytest.raises(NetworkError, match="a FasterRCNN shows its backbone's stages by itself; leave taps out"):
        build_network("fasterrcnn/test_resnet", classes=2, taps=Taps(maps=("backbone.body",)), input_size=SIZE)
    flat = mobilenet_v3_small().features
    flat.out_channels = 576
    anchors, pool = AnchorGenerator(((32,),), ((1.0,),)), MultiScaleRoIAlign(["0"], 7, 2)
    with pytest.raises(NetworkError, match="is a Sequential without body and fpn; build it with a feature pyramid"):
        tap(FasterRCNN(flat, 3, rpn_anchor_generator=anchors, box_roi_pool=pool), input_size=SIZE)


def test_objects_say_how_many_images_there_are():
    assert len(Objects((torch.zeros(0, 4),), (torch.zeros(0, dtype=torch.int64),), (INSIDE,), (INSIDE,))) == 1
