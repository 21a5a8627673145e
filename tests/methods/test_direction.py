"""The direction's losses against naive second writings, at their edges, and as methods."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.base import Known
from potstill.methods.direction import CosineMean, InfoNCEMean, cosine_mean, infonce_mean
from potstill.methods.nd import nd
from potstill.networks.features import Features, FeatureSpec

METHODS = pytest.mark.parametrize("cls", [CosineMean, InfoNCEMean])
SIZES = [(2, 4, 9, 3), (2, 9, 4, 3), (7, 6, 6, 5), (1, 3, 3, 2)]  # batch, student, teacher, classes


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def naive_cosine_mean(student: Tensor, means: Tensor, labels: Tensor) -> float:
    pairs = zip(student.tolist(), labels.tolist(), strict=True)
    return sum(1 - cosine(s, means[y].tolist()) for s, y in pairs) / len(student)


def naive_infonce_mean(student: Tensor, means: Tensor, labels: Tensor, temperature: float) -> float:
    total = 0.0
    for s, y in zip(student.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(cosine(s, c) / temperature) for c in means.tolist()]
        total -= math.log(powers[y] / sum(powers))
    return total / len(student)


def tensors(b: int, d: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(b + d)
    s, means = torch.randn(b, d, dtype=torch.float64), torch.randn(classes, d, dtype=torch.float64)
    return s, means, torch.randint(classes, (b,))


def batch_of(targets: Tensor | None, size: int) -> Batch:
    return Batch(torch.zeros(size, 3, 1, 1), targets, torch.arange(size), torch.zeros(size, dtype=torch.int64))


def setting_of(d: int, m: int, classes: int) -> Setting:
    return Setting(FeatureSpec(classes, d), FeatureSpec(classes, m))


@pytest.mark.parametrize(("b", "d", "m", "classes"), SIZES)
def test_agree_with_naive_writings(b: int, d: int, m: int, classes: int):
    s, means, labels = tensors(b, m, classes)
    assert cosine_mean(s, means, labels).item() == pytest.approx(naive_cosine_mean(s, means, labels), rel=1e-12)
    for tau in (0.07, 1.0):
        expected = naive_infonce_mean(s, means, labels, tau)
        assert infonce_mean(s, means, labels, tau).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("b", "d", "m", "classes"), SIZES)
def test_the_methods_are_the_losses_of_what_their_heads_make(b: int, d: int, m: int, classes: int):
    torch.manual_seed(d)
    student = Features(torch.zeros(b, classes), torch.randn(b, d))
    labels = torch.randint(classes, (b,))
    for cls in (CosineMean, InfoNCEMean):
        method = cls(setting_of(d, m, classes)).eval()  # no dropout
        method.prepare(Known(class_means=torch.randn(classes, m)))
        made = student.embedding if method.head is None else method.head(student.embedding)
        assert (method.head is None) == (d == m)
        if cls is CosineMean:
            expected = naive_cosine_mean(made, method.class_means, labels)
        else:
            expected = naive_infonce_mean(made, method.class_means, labels, 0.1)
        assert method(student, None, batch_of(labels, b)).item() == pytest.approx(expected, rel=1e-4)


def test_nd_of_a_longer_student_is_the_cosine():
    s, means, labels = tensors(5, 4, 3)
    torch.testing.assert_close(nd(s, 0.5 * s, means, labels), cosine_mean(s, means, labels))


def test_soft_targets_mix_the_classes_losses():
    s, means, labels = tensors(5, 4, 3)
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    weights = torch.rand(5, 3, dtype=torch.float64).softmax(1)
    for loss in (cosine_mean, infonce_mean):
        torch.testing.assert_close(loss(s, means, one_hot), loss(s, means, labels))
        each = [weights[i, k] * loss(s[i : i + 1], means, torch.tensor([k])) for i in range(5) for k in range(3)]
        torch.testing.assert_close(loss(s, means, weights), sum(each) / 5)


def test_neither_length_counts():
    s, means, labels = tensors(5, 4, 3)
    for loss in (cosine_mean, infonce_mean):
        torch.testing.assert_close(loss(7 * s, 0.01 * means, labels), loss(s, means, labels))
    assert cosine_mean(3 * means, means, torch.arange(3)).item() == pytest.approx(0, abs=1e-12)


def test_zeros_give_numbers():
    _, means, labels = tensors(4, 6, 3)
    for loss, value in ((cosine_mean, 1.0), (infonce_mean, math.log(3))):
        for student, centres in ((torch.zeros(4, 6), means), (torch.randn(4, 6), torch.zeros(3, 6))):
            s = student.double().requires_grad_()
            found = loss(s, centres, labels)
            found.backward()
            assert found.item() == pytest.approx(value)
            assert not s.grad.any()


def test_half_precision_embeddings_are_computed_in_full():
    s, means, labels = tensors(8, 512, 3)
    for loss in (cosine_mean, infonce_mean):
        found = loss(s.bfloat16(), means.float(), labels)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(s.bfloat16().float(), means.float(), labels))


@METHODS
def test_in_one_graph(cls):
    torch.manual_seed(0)
    method = cls(setting_of(6, 9, 3), dropout=0.0)
    method.prepare(Known(class_means=torch.randn(3, 9)))
    s, labels = torch.randn(5, 6, requires_grad=True), torch.randint(3, (5,))

    def loss(s: Tensor) -> Tensor:
        return method(Features(torch.zeros(5, 3), s), None, batch_of(labels, 5))

    torch._dynamo.reset()
    expected = loss(s)
    gradient = torch.autograd.grad(expected, s)
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(s)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, s), gradient)
    torch._dynamo.reset()


def test_no_gradient_reaches_the_means():
    s, means, labels = tensors(3, 5, 4)
    s.requires_grad_()
    means.requires_grad_()
    (cosine_mean(s, means, labels) + infonce_mean(s, means, labels)).backward()
    assert means.grad is None
    assert s.grad.any()


@METHODS
def test_the_class_means_are_state(cls):
    torch.manual_seed(0)
    one, other = cls(setting_of(5, 5, 3)), cls(setting_of(5, 5, 3))
    one.prepare(Known(class_means=torch.randn(3, 5)))
    other.prepare(Known(class_means=torch.ones(3, 5)))
    student, batch = Features(torch.zeros(4, 3), torch.randn(4, 5)), batch_of(torch.tensor([0, 1, 2, 0]), 4)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(student, None, batch), one(student, None, batch))


def test_what_is_refused():
    s, means, labels = tensors(2, 3, 4)
    for name, loss in (("cosine_mean", cosine_mean), ("infonce_mean", infonce_mean)):
        with pytest.raises(NetworkError, match=rf"{name} compares .* student's are \(2, 3\) and the means \(4, 2\)"):
            loss(s, means[:, :2], labels)
        with pytest.raises(NetworkError, match=rf"{name} has means of 4 classes, but the targets .* of 5"):
            loss(s, means, torch.rand(2, 5))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match=r"temperature is .*; expected a positive number, such as 0\.1"):
            InfoNCEMean(setting_of(4, 4, 5), temperature=wrong)


@METHODS
def test_what_the_methods_refuse(cls):
    name = "cosine_mean" if cls is CosineMean else "infonce_mean"
    with pytest.raises(RecipeError, match=f"{name} learns from a teacher, and there is none"):
        cls(Setting(FeatureSpec(5, 4)))
    with pytest.raises(NetworkError, match="this student has no classifier"):
        cls(setting_of(4, 4, 0))
    with pytest.raises(NetworkError, match=rf"{name} compares .* leave head at auto"):
        cls(setting_of(4, 6, 5), head=False)
    method, student = cls(setting_of(3, 3, 2)), Features(torch.zeros(2, 2), torch.ones(2, 3))
    with pytest.raises(RecipeError, match=f"{name} has no class means yet"):
        method(student, None, batch_of(torch.tensor([0, 1]), 2))
    with pytest.raises(RecipeError, match=f"{name} needs the teacher's mean embedding"):
        method.prepare(Known())
    method.prepare(Known(class_means=torch.ones(2, 3)))
    with pytest.raises(RecipeError, match=f"{name} learns from labels"):
        method(student, None, batch_of(None, 2))
    assert cls.needs.class_means
    assert not cls.needs.teacher
