"""Margins on an identity head's logits, against the library's losses called in its own way and against plain loops."""

import copy
import math
import sys

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.margins import ArcFace, CosFace, SphereFace, margin_loss
from potstill.methods.registry import build_method, check_hyper, hyper_parameters
from potstill.networks.faces import IdentityHead
from potstill.networks.features import Features, FeatureSpec

losses = pytest.importorskip("pytorch_metric_learning.losses")

B, C, D = 24, 7, 5
HALF = 28.64788975654116  # half a radian, in degrees
NAMES = ("arcface", "cosface", "sphereface")


def method(name, scale=64.0, **hyper):
    return build_method(name, Setting(FeatureSpec(C, D), identity_scale=scale), **hyper)


def drawn(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64).to(dtype)
    return embedding, weight, torch.randint(C, (B,), generator=generator)


def head_of(weight, scale):
    head = IdentityHead(D, C, scale).to(weight.dtype)
    head.weight.data.copy_(weight)
    return head


def batch_of(targets, images=None):
    index = torch.arange(B)
    return Batch(torch.zeros(B, 3, 2, 2) if images is None else images, targets, index, index)


def ours(name, scale, embedding, weight, targets, **hyper) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients at the embeddings and the head's rows."""
    head, embedding = head_of(weight, scale), embedding.clone().requires_grad_()
    loss = method(name, scale, **hyper)(Features(head(embedding), embedding), None, batch_of(targets))
    loss.backward()
    return loss.detach(), embedding.grad, head.weight.grad


@pytest.mark.parametrize(
    ("name", "scale", "hyper", "theirs", "arguments"),
    [
        ("arcface", 64.0, {}, "ArcFaceLoss", {"margin": HALF, "scale": 64}),
        ("arcface", 10.0, {"margin": 2.0}, "ArcFaceLoss", {"margin": math.degrees(2.0), "scale": 10}),
        ("cosface", 64.0, {}, "CosFaceLoss", {}),
        ("cosface", 5.0, {"margin": 0.1}, "CosFaceLoss", {"margin": 0.1, "scale": 5}),
        ("sphereface", "norm", {}, "SphereFaceLoss", {}),
        ("sphereface", "norm", {"margin": 3}, "SphereFaceLoss", {"margin": 3}),
        ("sphereface", "norm", {"margin": 1}, "SphereFaceLoss", {"margin": 1}),
    ],
)
def test_loss_and_gradients_are_the_librarys(name, scale, hyper, theirs, arguments):
    embedding, weight, targets = drawn()
    library = getattr(losses, theirs)(C, D, **arguments).double()
    library.W.data.copy_(weight.T)
    given = embedding.clone().requires_grad_()
    expected = library(given, targets)
    expected.backward()
    loss, at_embedding, at_weight = ours(name, scale, embedding, weight, targets, **hyper)
    assert expected > 0.1
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(at_embedding, given.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at_weight, library.W.grad.T, rtol=1e-9, atol=1e-12)


def psi(name: str, cosine: float) -> float:
    """The papers' margins, written out once more."""
    angle = math.acos(cosine)
    if name == "arcface":
        return math.cos(angle + 0.5) if angle <= math.pi - 0.5 else cosine - 0.5 * math.sin(0.5)
    if name == "cosface":
        return cosine - 0.35
    k = int(angle / (math.pi / 4))
    return (-1) ** k * math.cos(4 * angle) - 2 * k


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [8.0, "norm"])
def test_a_plain_loop_gives_the_same(name, scale):
    embedding, weight, targets = drawn(seed=3)
    embedding[0] = -3 * weight[targets[0]]  # an angle of half a circle
    embedding[1] = 2 * weight[targets[1]] + 0.05
    total = 0.0
    for x, y in zip(embedding.tolist(), targets.tolist(), strict=True):
        length = math.hypot(*x)
        cosines = [
            max(-1.0, sum(a * b for a, b in zip(x, w, strict=True)) / length / math.hypot(*w)) for w in weight.tolist()
        ]
        s = length if scale == "norm" else scale
        logits = [s * (psi(name, c) if j == y else c) for j, c in enumerate(cosines)]
        total += math.log(sum(math.exp(z - logits[y]) for z in logits))
    loss, _, _ = ours(name, scale, embedding, weight, targets)
    assert loss.item() == pytest.approx(total / B, rel=1e-6)


def test_the_papers_values_are_the_defaults():
    assert hyper_parameters("arcface") == {"margin": 0.5}
    assert hyper_parameters("cosface") == {"margin": 0.35}
    assert hyper_parameters("sphereface") == {"margin": 4}


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_without_a_margin_it_is_cross_entropy(name):
    embedding, weight, targets = drawn()
    loss, _, _ = ours(name, 16.0, embedding, weight, targets, margin=0.0)
    expected = torch.nn.functional.cross_entropy(head_of(weight, 16.0)(embedding), targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [64.0, "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_ends_of_the_arc(name, scale, dtype):
    embedding, weight, targets = drawn(dtype=dtype)
    embedding[:8] = weight[targets[:8]]
    embedding[8:16] = -weight[targets[8:16]]
    embedding[16:20] = 0
    loss, at_embedding, at_weight = ours(name, scale, embedding, weight, targets)
    assert loss.isfinite()
    assert at_embedding.isfinite().all()
    assert at_weight.isfinite().all()
    assert at_embedding[20:].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_in_float32(name):
    embedding, weight, targets = drawn(dtype=torch.float32)
    half = embedding.bfloat16()
    head = head_of(weight, 64.0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(half)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(half.float()))
    found = method(name)(Features(logits, half), None, batch_of(targets))
    expected, _, _ = ours(name, 64.0, half.float(), weight, targets)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    rounded = method(name)(Features(logits.bfloat16(), half), None, batch_of(targets))
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(expected.item(), rel=0.02)


def test_the_librarys_weights_neither_train_nor_are_saved():
    for name in NAMES:
        one = method(name)
        assert list(one.parameters()) == []
        assert one.state_dict() == {}
        assert copy.deepcopy(one).scale == 64.0


def test_what_is_read_depends_on_the_heads_scale():
    assert method("sphereface", "norm").needs.student == {"logits", "embedding"}
    assert method("sphereface", 64.0).needs.student == {"logits"}
    assert method("arcface").needs.labels


def test_a_student_without_an_identity_head_is_refused():
    for cls in (ArcFace, CosFace, SphereFace):
        with pytest.raises(NetworkError, match=r"reads cosines, .* no identity head; take a network for faces"):
            cls(Setting(FeatureSpec(C, D)))


@pytest.mark.parametrize(
    ("name", "margin"),
    [
        ("arcface", -0.1),
        ("arcface", 3.2),
        ("arcface", math.nan),
        ("cosface", 2.0),
        ("cosface", -1.0),
        ("sphereface", 0),
    ],
)
def test_a_margin_out_of_range_is_refused(name, margin):
    with pytest.raises(RecipeError, match=f"margin of {name} is {margin}; expected"):
        method(name, margin=margin)


def test_half_a_multiple_of_the_angle_is_refused():
    assert check_hyper("sphereface", {"margin": 1.5}) == ["margin of sphereface is 1.5; expected a whole number."]


def test_images_without_one_identity_each_are_refused():
    embedding, weight, _ = drawn()
    features = Features(head_of(weight, 64.0)(embedding), embedding)
    with pytest.raises(RecipeError, match="cosface learns identities from labels, and these images have none"):
        method("cosface")(features, None, batch_of(None))
    with pytest.raises(RecipeError, match="arcface needs one identity for each image, and mixed images have several"):
        method("arcface")(features, None, batch_of(torch.full((B, C), 1 / C)))


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        RecipeError, match=r"^arcface needs pytorch-metric-learning, .*pip install 'potstill\[faces\]'\.$"
    ):
        method("arcface")


def test_a_row_of_scale_zero_has_cosine_zero():
    seen = []
    logits = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    margin_loss(logits, torch.tensor([0, 1]), torch.tensor([0.0, 2.0]), lambda c: seen.append(c) or c)
    assert seen[0].tolist() == [0.0, 0.5]
