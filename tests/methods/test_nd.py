"""ND against the authors' code, against a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.base import Known
from potstill.methods.nd import ND, nd
from potstill.methods.objective import Objective
from potstill.methods.towards_means import EmbeddingHead, class_directions
from potstill.networks.features import Features, FeatureSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = [(2, 4, 9, 3), (2, 9, 4, 3), (7, 6, 6, 5), (1, 3, 3, 2)]  # batch, student, teacher, classes


def naive_nd(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> float:
    """The authors' formula with lists and loops."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        center = means[y].tolist()
        along = sum(a * c / math.hypot(*center) for a, c in zip(s, center, strict=True))
        total += 1 - along / max(math.hypot(*s), math.hypot(*t))
    return total / len(student)


def batch_of(targets: Tensor | None, size: int) -> Batch:
    return Batch(torch.zeros(size, 3, 1, 1), targets, torch.arange(size), torch.zeros(size, dtype=torch.int64))


def setting_of(d: int, m: int, classes: int, batch_size: int = 0) -> Setting:
    return Setting(FeatureSpec(classes, d), FeatureSpec(classes, m), batch_size=batch_size)


def case(b: int, d: int, m: int, classes: int, **hyper) -> tuple[ND, Features, Features, Batch]:
    torch.manual_seed(10 * b + d)
    method = ND(setting_of(d, m, classes), **hyper)
    method.prepare(Known(class_means=torch.randn(classes, m)))
    student = Features(torch.randn(b, classes), torch.randn(b, d).requires_grad_())
    teacher = Features(torch.empty(b, 0), torch.randn(b, m).requires_grad_())
    return method, student, teacher, batch_of(torch.randint(classes, (b,)), b)


def tensors(b: int, d: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(b + d)
    s, t, means = (torch.randn(n, d, dtype=torch.float64) for n in (b, b, classes))
    return s, t, means, torch.randint(classes, (b,))


@DTYPES
def test_golden(golden, dtype: torch.dtype):
    case = golden("nd", dtype)
    s, t, means, labels = (case.inputs[x] for x in ("student.embedding", "teacher.embedding", "class_means", "labels"))
    s.requires_grad_()
    objective = Objective(setting_of(16, 16, 10), {"nd": 2.0}).to(dtype)
    objective.methods["nd"].prepare(Known(class_means=means))
    empty = torch.zeros(len(s), 1, dtype=dtype)
    losses = objective(Features(empty, s), Features(empty, t), batch_of(labels, len(s)))
    losses["total"].backward()
    case.check("out.loss.nd", losses["nd"])
    case.check("out.loss.total", losses["total"])
    case.check("out.grad.student.embedding", s.grad)
    each = [nd(s[i : i + 1], t[i : i + 1], means, labels[i : i + 1]) for i in range(len(s))]
    case.check("out.inter.per_sample", torch.stack(each))
    case.check("out.inter.student_norm_is_larger", (s.norm(dim=1) > t.norm(dim=1)).to(dtype))
    assert case.all_compared()


@DTYPES
def test_golden_kd_plus_plus(golden, dtype: torch.dtype):
    case = golden("nd_kdpp", dtype)
    inputs = case.inputs
    s, z = inputs["student.embedding"].requires_grad_(), inputs["student.logits"].requires_grad_()
    terms = {"ce": 1, "kd": {"weight": 3.5, "temperature": 4, "warmup": 20}, "nd": 2}
    objective = Objective(setting_of(16, 16, 10), terms).to(dtype)
    objective.prepare(Known(class_means=inputs["class_means"]))
    teacher = Features(inputs["teacher.logits"], inputs["teacher.embedding"])
    for epoch in (0, 5, 20):  # kd alone is warmed up
        objective.start_epoch(epoch)
        losses = objective(Features(z, s), teacher, batch_of(inputs["labels"], len(s)))
        case.check("out.loss.total" if epoch == 20 else f"out.loss.total_epoch{epoch}", losses["total"])
    losses["total"].backward()
    for term in ("ce", "kd", "nd"):
        case.check(f"out.loss.{term}", losses[term])
    case.check("out.grad.student.embedding", s.grad)
    case.check("out.grad.student.logits", z.grad)
    larger = s.norm(dim=1) > inputs["teacher.embedding"].norm(dim=1)
    case.check("out.inter.student_norm_is_larger", larger.to(dtype))
    assert case.all_compared()


@DTYPES
def test_golden_with_the_head(golden, dtype: torch.dtype):
    case = golden("nd_embtrans", dtype)
    inputs = case.inputs
    s = inputs["student.embedding"].requires_grad_()
    method = ND(setting_of(64, 128, 10), dropout=0.0).to(dtype)
    stored = {key: case.tensors[f"param.fc1.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
    method.head.load_state_dict(stored, strict=False)
    method.prepare(Known(class_means=inputs["class_means"]))
    seen = []
    method.head.register_forward_hook(lambda module, args, out: seen.append(out))
    empty = torch.zeros(len(s), 1, dtype=dtype)
    teacher = Features(empty, inputs["teacher.embedding"])
    loss = method(Features(empty, s), teacher, batch_of(inputs["labels"], len(s)))
    (1.5 * loss).backward()
    case.check("out.loss.nd", loss)
    case.check("out.loss.total", 1.5 * loss)
    case.check("out.inter.transformed", seen[0])
    case.check("out.grad.student.embedding", s.grad)
    parameters = dict(method.head.named_parameters())
    for key in stored:
        case.check(f"out.grad.fc1.{key}", parameters[key].grad)
    case.check("out.state.fc1.0.running_mean", method.head[0].running_mean)
    case.check("out.state.fc1.0.running_var", method.head[0].running_var)
    assert case.all_compared()


@pytest.mark.parametrize(("b", "d", "m", "classes"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int, classes: int):
    s, t, means, labels = tensors(b, m, classes)
    for scale in (0.1, 1.0, 10.0):  # the student's norm below, near and above the teacher's
        assert nd(scale * s, t, means, labels).item() == pytest.approx(naive_nd(scale * s, t, means, labels), rel=1e-12)


@pytest.mark.parametrize(("b", "d", "m", "classes"), SIZES)
def test_the_method_is_the_loss_of_what_its_head_makes(b: int, d: int, m: int, classes: int):
    method, student, teacher, batch = case(b, d, m, classes)
    method.eval()  # no dropout
    loss = method(student, teacher, batch)
    assert (method.head is None) == (d == m)
    made = student.embedding if method.head is None else method.head(student.embedding)
    expected = naive_nd(made, teacher.embedding, method.class_means, batch.targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_below_and_above_the_teachers_norm():
    s, t, means, labels = tensors(1, 5, 3)
    e = means[labels] / means[labels].norm()
    short = (s / s.norm()).requires_grad_()
    nd(short, 3 * t / t.norm(), means, labels).backward()
    torch.testing.assert_close(short.grad, -e / 3)
    long = (4 * s / s.norm()).requires_grad_()
    loss = nd(long, 3 * t / t.norm(), means, labels)
    loss.backward()
    torch.testing.assert_close(loss, 1 - torch.cosine_similarity(long, e).squeeze())
    assert (long.grad * long.detach()).sum().item() == pytest.approx(0, abs=1e-12)  # nothing pulls at the length


def test_a_tie_is_the_students():
    s, _, means, labels = tensors(4, 5, 3)
    s.requires_grad_()
    nd(s, s.detach().clone(), means, labels).backward()
    assert (s.grad * s.detach()).sum(1).abs().max().item() < 1e-12  # as above the teacher's norm


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0.05, 20), st.floats(1e-3, 1e3))
def test_the_range_and_what_the_loss_does_not_see(seed: int, longer: float, scale: float):
    generator = torch.Generator().manual_seed(seed)
    s, t, means = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 6, 3))
    labels = torch.randint(3, (6,), generator=generator)
    loss = nd(longer * s, t, means, labels)
    assert -1e-12 <= loss.item() <= 2 + 1e-12
    torch.testing.assert_close(nd(longer * s, t, scale * means, labels), loss)
    torch.testing.assert_close(nd(scale * longer * s, scale * t, means, labels), loss)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(nd(longer * s[order], t[order], means, labels[order]), loss)
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    torch.testing.assert_close(nd(longer * s, t, means, one_hot), loss)


def test_soft_targets_mix_the_classes_losses():
    s, t, means, _ = tensors(5, 4, 3)
    weights = torch.rand(5, 3, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    expected = sum(
        weights[i, k] * naive_nd(s[i : i + 1], t[i : i + 1], means, torch.tensor([k]))
        for i in range(5)
        for k in range(3)
    )
    assert nd(s, t, means, weights).item() == pytest.approx(expected.item() / 5, rel=1e-12)
    assert nd(s, t, means, weights.half()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "means"])
def test_zeros_give_numbers(dtype: torch.dtype, zero: str):
    s, t, means, labels = tensors(4, 6, 3)
    s, t, means = s.to(dtype), t.to(dtype), means.to(dtype)
    for name, tensor in (("student", s), ("teacher", t), ("means", means)):
        if zero in (name, "both") and not (zero == "both" and name == "means"):
            tensor.zero_()
    s.requires_grad_()
    loss = nd(s, t, means, labels)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    if zero != "teacher":
        assert loss.item() == 1
    assert bool(s.grad.any()) == (zero in ("student", "teacher"))


def test_half_precision_embeddings_are_computed_in_full():
    s, t, means, labels = tensors(8, 512, 3)
    loss = nd(s.bfloat16(), t.half(), means.float(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nd(s.bfloat16().float(), t.half().float(), means.float(), labels))


@pytest.mark.parametrize(("d", "m"), [(6, 6), (6, 9)])
def test_in_one_graph(d: int, m: int):
    method, student, teacher, batch = case(5, d, m, 3, **({"dropout": 0.0} if d != m else {}))

    def loss(s: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        return method(Features(student.logits, s), Features(teacher.logits, t), batch_of(targets, 5))

    s, targets = student.embedding, torch.rand(5, 3).softmax(1)
    for y in (batch.targets, targets):
        torch._dynamo.reset()
        expected = loss(s, teacher.embedding, y)
        (gradient,) = torch.autograd.grad(expected, s)
        found = torch.compile(loss, fullgraph=True, backend="aot_eager")(s, teacher.embedding, y)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, s)[0], gradient)
    torch._dynamo.reset()


def test_no_gradient_reaches_the_teacher_or_the_means():
    method, student, teacher, batch = case(3, 5, 5, 4)
    method(student, teacher, batch).backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()
    means = torch.randn(4, 5, requires_grad=True)
    nd(student.embedding, teacher.embedding, means, batch.targets).backward()
    assert means.grad is None
    assert not list(method.parameters())


def test_the_head_is_built_where_it_is_wanted_and_starts_as_published():
    assert case(4, 6, 6, 3)[0].head is None
    assert [type(part).__name__ for part in case(4, 6, 6, 3, head=True)[0].head] == ["BatchNorm1d", "Dropout", "Linear"]
    torch.manual_seed(0)
    cifar, imagenet = EmbeddingHead(300, 400), EmbeddingHead(300, 400, init="normal")
    bound = 1 / math.sqrt(300)
    assert 0.99 * bound < cifar[2].weight.abs().max().item() <= bound
    assert not cifar[2].bias.any()
    for parameter in (imagenet[2].weight, imagenet[2].bias):
        assert parameter.std().item() == pytest.approx(0.01, rel=0.1)
    assert cifar[1].p == 0.5


def test_the_head_of_a_single_image_takes_the_running_statistics():
    head = EmbeddingHead(4, 3, dropout=0.0)
    head(torch.randn(50, 4))
    state, image = head.state_dict(), torch.randn(1, 4)
    found = head(image)
    assert all(torch.equal(state[key], value) for key, value in head.state_dict().items())
    assert torch.equal(found, head.eval()(image))


def test_dropout_draws_from_torchs_generator():
    method, student, teacher, batch = case(6, 5, 8, 3)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method(student, teacher, batch).item())
    assert losses[0] == losses[1] != losses[2]


def test_the_class_means_are_state():
    method, student, teacher, batch = case(4, 5, 5, 3)
    other = ND(setting_of(5, 5, 3))
    other.prepare(Known(class_means=torch.ones(3, 5)))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(student, teacher, batch), method(student, teacher, batch))


def test_directions_are_of_length_1_or_nothing():
    means = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert class_directions(means, torch.tensor([0, 1])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_what_is_refused():
    s, t, means, labels = tensors(2, 3, 4)
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\) and the teacher's \(2, 1\)"):
        nd(s, t[:, :1], means, labels)
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\) and the means \(4, 2\); map the student's first"):
        nd(s, t, means[:, :2], labels)
    with pytest.raises(NetworkError, match=r"means of 4 classes, but the targets are probabilities of 5"):
        nd(s, t, means, torch.rand(2, 5))
    with pytest.raises(RecipeError, match="nd learns from a teacher, and there is none"):
        ND(Setting(FeatureSpec(5, 4)))
    with pytest.raises(NetworkError, match="this student has no classifier"):
        ND(setting_of(4, 4, 0))
    with pytest.raises(NetworkError, match=r"student's has 4 values and the teacher's 6; leave head at auto"):
        ND(setting_of(4, 6, 5), head=False)
    with pytest.raises(RecipeError, match="head is 'yes'; it is auto, true or false"):
        ND(setting_of(4, 6, 5), head="yes")
    with pytest.raises(RecipeError, match=r"dropout is 1; expected a number from 0 to below 1"):
        ND(setting_of(4, 6, 5), dropout=1)
    with pytest.raises(RecipeError, match=r"init is 'norml'; it is default or normal\. Did you mean 'normal'"):
        ND(setting_of(4, 6, 5), init="norml")
    for unread in ({"dropout": 0.1}, {"init": "normal"}):
        with pytest.raises(RecipeError, match="have no effect on nd, which has no head here"):
            ND(setting_of(4, 4, 5), **unread)
    with pytest.raises(RecipeError, match="normalises over the batch, and batch_size is 1"):
        ND(setting_of(4, 6, 5, batch_size=1))


def test_what_is_refused_of_the_means_and_the_batch():
    method = ND(setting_of(3, 3, 2))
    features = Features(torch.zeros(2, 2), torch.ones(2, 3))
    batch = batch_of(torch.tensor([0, 1]), 2)
    with pytest.raises(RecipeError, match="nd has no class means yet: call prepare"):
        method(features, features, batch)
    with pytest.raises(RecipeError, match="nd needs the teacher's mean embedding of each class, and nobody has"):
        method.prepare(Known(labels=torch.tensor([0, 1])))
    with pytest.raises(NetworkError, match=r"expects class means of shape \(2, 3\) .*, but got \(3, 2\)"):
        method.prepare(Known(class_means=torch.ones(3, 2)))
    with pytest.raises(NetworkError, match="not all finite"):
        method.prepare(Known(class_means=torch.full((2, 3), float("nan"))))
    method.prepare(Known(class_means=torch.ones(2, 3)))
    with pytest.raises(RecipeError, match="nd learns from labels, and these images have none"):
        method(features, features, batch_of(None, 2))
    with pytest.raises(RecipeError, match="nd learns from a teacher, and there is none"):
        method(features, None, batch)
    assert ND.needs.class_means
    assert ND.needs.labels
