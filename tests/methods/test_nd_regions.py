"""ND where the samples are a detector's regions: the authors' numbers, with background as the last class."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.methods import ND, Setting, build_method
from potstill.methods.base import Known
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.objects import Objects, Regions

CLASSES = 9  # of objects; with background there are the golden cases' ten
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIDE = 64


def setting_of(d: int, m: int) -> Setting:
    levels = (MapSpec("p3", 4, 8), MapSpec("p4", 4, 16))
    return Setting(FeatureSpec(CLASSES + 1, d, levels), FeatureSpec(CLASSES + 1, m, levels), batch_size=2)


def regions_of(labels: Tensor) -> Regions:
    """Two images, the first with three regions and the second with the others."""
    boxes = torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(0)) * SIDE / 2
    boxes = torch.cat([boxes, boxes + 9], 1)
    return Regions((boxes[:3], boxes[3:]), labels, ((SIDE, SIDE), (SIDE, SIDE - 16)))


def batch_of(regions: Regions) -> Batch:
    """Two images whose targets are the regions' classes: more than there are images."""
    objects = Objects(
        tuple(boxes[:1] for boxes in regions.boxes),
        (torch.tensor([0]), torch.tensor([CLASSES - 1])),
        regions.sizes,
        regions.sizes,
    )
    index = torch.arange(2)
    return Batch(torch.zeros(2, 3, SIDE, SIDE), regions.labels, index, torch.zeros_like(index), objects=objects)


def features(logits: Tensor, embedding: Tensor, regions: Regions) -> Features:
    maps = tuple(torch.zeros(2, 4, SIDE // stride, SIDE // stride) for stride in (8, 16))
    losses = {"boxes": torch.tensor(1.0), "classes": torch.tensor(2.0)}
    return Features(logits, embedding, maps, losses=losses, regions=regions)


@DTYPES
def test_nd_of_regions_is_the_authors(golden: Callable, dtype: torch.dtype):
    case = golden("nd", dtype)
    s, t, means, labels = (case.inputs[x] for x in ("student.embedding", "teacher.embedding", "class_means", "labels"))
    regions = regions_of(labels)
    s.requires_grad_()
    objective = Objective(setting_of(16, 16), {"nd": 2.0}).to(dtype)
    objective.prepare(Known(class_means=means))
    logits = torch.zeros(len(s), CLASSES + 1, dtype=dtype)
    losses = objective(features(logits, s, regions), features(logits, t, regions), batch_of(regions))
    losses["total"].backward()
    case.check("out.loss.nd", losses["nd"])
    case.check("out.loss.total", losses["total"])
    case.check("out.grad.student.embedding", s.grad)
    assert case.all_compared("out.inter.per_sample", "out.inter.student_norm_is_larger")


@DTYPES
def test_kd_plus_plus_of_regions_is_the_authors(golden: Callable, dtype: torch.dtype):
    case = golden("nd_kdpp", dtype)
    inputs = case.inputs
    s, z = inputs["student.embedding"].requires_grad_(), inputs["student.logits"].requires_grad_()
    regions = regions_of(inputs["labels"])
    objective = Objective(setting_of(16, 16), {"ce": 1, "kd": {"weight": 3.5, "temperature": 4}, "nd": 2}).to(dtype)
    objective.prepare(Known(class_means=inputs["class_means"]))
    teacher = features(inputs["teacher.logits"], inputs["teacher.embedding"], regions)
    losses = objective(features(z, s, regions), teacher, batch_of(regions))
    losses["total"].backward()
    for term in ("ce", "kd", "nd", "total"):
        case.check(f"out.loss.{term}", losses[term])
    case.check("out.grad.student.embedding", s.grad)
    case.check("out.grad.student.logits", z.grad)
    assert case.all_compared(
        "out.inter.student_norm_is_larger", "out.loss.total_epoch0", "out.loss.total_epoch5"
    )  # of the warm-up, which does not know of regions


@DTYPES
def test_nd_of_regions_with_the_head_is_the_authors(golden: Callable, dtype: torch.dtype):
    case = golden("nd_embtrans", dtype)
    inputs = case.inputs
    s = inputs["student.embedding"].requires_grad_()
    regions = regions_of(inputs["labels"])
    method = build_method("nd", setting_of(64, 128), dropout=0.0).to(dtype)
    assert isinstance(method, ND)
    stored = {key: case.tensors[f"param.fc1.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
    method.head.load_state_dict(stored, strict=False)
    method.prepare(Known(class_means=inputs["class_means"]))
    logits = torch.zeros(len(s), CLASSES + 1, dtype=dtype)
    teacher = features(logits, inputs["teacher.embedding"], regions)
    loss = method(features(logits, s, regions), teacher, batch_of(regions))
    (1.5 * loss).backward()
    case.check("out.loss.nd", loss)
    case.check("out.loss.total", 1.5 * loss)
    case.check("out.grad.student.embedding", s.grad)
    for key in stored:
        case.check(f"out.grad.fc1.{key}", dict(method.head.named_parameters())[key].grad)
    assert case.all_compared("out.inter.transformed", "out.state.fc1.0.running_mean", "out.state.fc1.0.running_var")


def test_background_regions_are_drawn_to_the_mean_of_the_background():
    torch.manual_seed(0)
    means = torch.randn(CLASSES + 1, 6, dtype=torch.float64)
    method = build_method("nd", setting_of(6, 6)).double()
    method.prepare(Known(class_means=means))
    labels = torch.tensor([0, CLASSES, 3, CLASSES, CLASSES])
    regions, logits = regions_of(labels), torch.zeros(5, CLASSES + 1)
    s = (0.01 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_()
    t = torch.randn(5, 6, dtype=torch.float64)
    method(features(logits, s, regions), features(logits, t, regions), batch_of(regions)).backward()
    # shorter than the teacher's, an embedding is drawn along its class's mean: by 1 / (R |t|)
    towards = means[labels] / means[labels].norm(dim=1, keepdim=True)
    torch.testing.assert_close(s.grad, -towards / (5 * t.norm(dim=1, keepdim=True)))
