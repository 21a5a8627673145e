"""CID against the authors' values, against a naive second writing, over its epochs, and as it is deployed."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ce import ce
from potstill.methods.cid import CID, cid_class, cid_sample, with_context
from potstill.methods.kd import kd
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 3, 7, 2), (2, 9, 4, 2), (12, 5, 6, 4), (9, 6, 5, 20)]  # batch, student, teacher, classes
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def naive_class(student: Tensor, teacher: Tensor, labels: Tensor) -> float:
    """Class by class, pair by pair."""
    found = []
    for k in sorted(set(labels.tolist())):
        members = [i for i, y in enumerate(labels.tolist()) if y == k]
        if len(members) < 2:
            continue
        s, t = [student.tolist()[i] for i in members], [teacher.tolist()[i] for i in members]
        pairs = [(i, j) for i in range(len(members)) for j in range(len(members))]
        found.append(sum((cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i, j in pairs) / len(members) ** 2)
    return sum(found) / len(found) if found else 0.0


def naive_sample(projected: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for p, t in zip(projected.tolist(), teacher.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / sum(b * b for b in t)
    return total / len(projected)


def naive_means(context: list[list[float]], number: list[float], s: Tensor, sure: Tensor, labels: Tensor) -> None:
    """The running weighted mean, image by image, as it is published."""
    for row, weight, k in zip(s.tolist(), sure.tolist(), labels.tolist(), strict=True):
        old = number[k] / (number[k] + weight)
        context[k] = [old * m + (1 - old) * x for m, x in zip(context[k], row, strict=True)]
        number[k] += weight


def batch_of(labels: Tensor | None, b: int = 0, weight: float = 1.0) -> Batch:
    index = torch.arange(b or len(labels))
    return Batch(torch.zeros(len(index), 3, 1, 1), labels, index, torch.zeros_like(index), weight)


def case(b: int, d: int, m: int, count: int, /, **hyper) -> tuple[CID, Features, Features, Batch]:
    method = CID(Setting(FeatureSpec(count, d), FeatureSpec(count, m)), **hyper)
    student = Features(torch.randn(b, count).requires_grad_(), torch.randn(b, d).requires_grad_())
    teacher = Features(torch.randn(b, count).requires_grad_(), torch.randn(b, m).requires_grad_())
    return method, student, teacher, batch_of(torch.randint(count, (b,)))


def stored(g, d: int, m: int, count: int, /, **hyper) -> CID:
    method = CID(Setting(FeatureSpec(count, d), FeatureSpec(count, m)), **hyper).to(g.dtype)
    state = {"projector.weight": "param.regressor.linear.weight", "projector.bias": "param.regressor.linear.bias"}
    state |= {"head.weight": "param.new_classifier.linear.weight", "head.bias": "param.new_classifier.linear.bias"}
    state["context"] = "state.context"
    found = {key: g.parameter(name) for key, name in state.items() if name in g.tensors}
    method.load_state_dict({**method.state_dict(), **found})
    return method


def check_terms(g, method: CID, student: Features, teacher: Features, labels: Tensor) -> None:
    g.check("out.loss.kl", kd(student.logits, teacher.logits, 4.0))
    g.check("out.loss.sample", cid_sample(method.projector(student.embedding), teacher.embedding))
    g.check("out.loss.class", cid_class(student.embedding, teacher.embedding, labels))
    several = (labels.bincount() >= 2).sum()
    g.check("out.loss.num_classes_used", several.to(g.dtype))  # a count of the case's labels


def check_gradients(g, method: CID, student: Features, *names: tuple[str, nn.Linear]) -> None:
    g.check("out.grad.student.embedding", student.embedding.grad)
    g.check("out.grad.student.logits", student.logits.grad)
    for name, layer in (("regressor", method.projector), *names):
        g.check(f"out.grad.{name}.linear.weight", layer.weight.grad)
        g.check(f"out.grad.{name}.linear.bias", layer.bias.grad)


def features_of(g) -> tuple[Features, Features, Tensor]:
    student = Features(g.inputs["student.logits"].requires_grad_(), g.inputs["student.embedding"].requires_grad_())
    return student, Features(g.inputs["teacher.logits"], g.inputs["teacher.embedding"]), g.inputs["labels"]


@DTYPES
def test_the_last_of_the_first_epochs_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    g = golden("cid_init", dtype)
    student, teacher, labels = features_of(g)
    method = stored(g, 12, 16, 6, logits=1.0, sample=10.0, classes=1.0, temperature=4.0, first=20)
    method.start_epoch(19)  # counted from 0
    loss = method(student, teacher, batch_of(labels))
    loss.backward()
    g.check("out.loss.total", loss)
    check_gradients(g, method, student)
    assert not method.head.weight.grad.any()
    check_terms(g, method, student, teacher, labels)
    method.start_epoch(20)
    g.check("out.state.context", method.context)
    assert g.all_compared()


@DTYPES
def test_a_later_epoch_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    g = golden("cid_context", dtype)
    student, teacher, labels = features_of(g)
    method = stored(g, 12, 16, 6, logits=1.0, sample=10.0, classes=1.0, temperature=4.0, first=20, keep=0.5)
    method.epoch.fill_(20)
    method.load_state_dict(method.state_dict())  # as a run that is resumed in that epoch
    loss = method(student, teacher, batch_of(labels))
    loss.backward()
    g.check("out.loss.total", loss)
    check_gradients(g, method, student, ("new_classifier", method.head))
    check_terms(g, method, student, teacher, labels)
    logits = method.head(with_context(student.embedding, student.logits, method.context))
    g.check("out.inter.context_logits", logits)
    g.check("out.loss.ce", ce(logits, labels))
    method.start_epoch(21)
    g.check("out.state.context_new", method.context)
    assert g.all_compared()


@pytest.mark.parametrize(("b", "d", "m", "classes"), SIZES)
def test_the_terms_agree_with_a_naive_writing(b: int, d: int, m: int, classes: int):
    torch.manual_seed(b + d)
    s, t, projected = (torch.randn(shape, dtype=torch.float64) for shape in ((b, d), (b, m), (b, m)))
    assert cid_sample(projected, t).item() == pytest.approx(naive_sample(projected, t), rel=1e-12)
    for labels in (torch.randint(classes, (b,)), torch.zeros(b).long(), torch.arange(b)):
        assert cid_class(s, t, labels).item() == pytest.approx(naive_class(s, t, labels), rel=1e-9, abs=1e-15)
    assert cid_class(s, t, torch.arange(b)).item() == 0  # no class twice


def test_the_class_term_sees_neither_lengths_nor_order():
    s, t, labels = torch.randn(10, 4).double(), torch.randn(10, 6).double(), torch.randint(3, (10,))
    order, loss = torch.randperm(10), cid_class(s, t, labels)
    torch.testing.assert_close(cid_class(5 * s, 0.1 * t, labels), loss)
    torch.testing.assert_close(cid_class(s[order], t[order], labels[order] + 7), loss)
    assert cid_class(t, t, labels).item() == 0


def test_the_epochs_make_the_context_that_the_authors_loops_make():
    """Two epochs of several batches: the running mean of each class, then the moving average of the means."""
    torch.manual_seed(3)
    method, *_ = case(4, 5, 6, 3, first=1, keep=0.25)
    method.double()
    context = [[0.0] * 5 for _ in range(3)]
    for epoch in range(3):
        method.start_epoch(epoch)
        torch.testing.assert_close(
            method.context, torch.tensor(context).double() if epoch else torch.zeros(3, 5).double()
        )
        new, number = [[0.0] * 5 for _ in range(3)], [0.0] * 3
        for step in range(4):
            _, student, teacher, batch = case(4, 5, 6, 3)
            student = Features(student.logits.double(), student.embedding.double())
            teacher = Features(teacher.logits.double(), teacher.embedding.double())
            filler = step == 2
            batch = batch_of(batch.targets.clamp_max(1), weight=0.0 if filler else 1.0)  # the last class is absent
            if not filler:
                sure = torch.softmax(teacher.logits / 4, 1)[torch.arange(4), batch.targets]
                naive_means(new, number, student.embedding, sure, batch.targets)
            method(student, teacher, batch)
        old = 0.25 if epoch else 0.0
        context = [
            [old * a + (1 - old) * b for a, b in zip(*rows, strict=True)] for rows in zip(context, new, strict=True)
        ]
    assert not method.context[2].any()


def test_only_training_and_only_from_the_last_of_the_first_epochs_on_collects():
    method, student, teacher, batch = case(4, 5, 6, 3, first=3)
    for epoch in (0, 1):
        method.start_epoch(epoch)
        method(student, teacher, batch)
        assert not method.sums.any()
    method.start_epoch(2)
    method.eval()
    method(student, teacher, batch)
    assert not method.sums.any()
    method.train()
    method(student, teacher, batch)
    assert method.sums.any()


def test_the_cross_entropy_sets_in_with_the_context():
    method, student, teacher, batch = case(4, 5, 6, 3, first=1, logits=2.0, sample=0.0, classes=0.0)
    method.start_epoch(0)
    matched = kd(student.logits, teacher.logits, 4.0)
    torch.testing.assert_close(method(student, teacher, batch), 2 * matched)
    method.start_epoch(1)
    assert method.context.any()
    logits = method.head(with_context(student.embedding, student.logits, method.context))
    torch.testing.assert_close(method(student, teacher, batch), 2 * (matched + ce(logits, batch.targets)))


def test_a_state_is_taken_up_in_the_middle_of_an_epoch():
    torch.manual_seed(1)
    method, student, teacher, batch = case(6, 5, 4, 3, first=1)
    batches = [case(6, 5, 4, 3)[1:] for _ in range(4)]
    for epoch in (0, 1):
        method.start_epoch(epoch)
        method(*batches[epoch])
    other = case(6, 5, 4, 3, first=1)[0]
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert other.now == 1
    for each in (method, other):
        each(*batches[2])
        each.start_epoch(2)
    assert torch.equal(other.context, method.context)
    assert torch.equal(other(student, teacher, batch), method(student, teacher, batch))


class Student(nn.Module):
    """Gives Features of images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.classify = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Features:
        embedding = self.embed(images.flatten(1)).relu()
        return Features(self.classify(embedding), embedding)


def test_the_deployable_network_gives_the_logits_that_were_trained():
    torch.manual_seed(2)
    method, student, teacher, batch = case(4, 5, 6, 3, first=1)
    with pytest.raises(RecipeError, match=r"cid has a context after 1 epochs; train for more, or lower first"):
        method.deployable(Student())
    method.start_epoch(0)
    method(student, teacher, batch)
    method.start_epoch(1)
    network, images = Student(), torch.randn(7, 3, 2, 2)
    shipped = method.deployable(network).eval()
    seen = network(images)
    mixed = torch.softmax(seen.logits / 4, 1) @ method.context
    expected = torch.cat([seen.embedding, mixed], 1) @ method.head.weight.T + method.head.bias
    torch.testing.assert_close(shipped(images), expected)
    assert set(shipped.state_dict()) == {
        "context", "head.weight", "head.bias",
        "student.embed.weight", "student.embed.bias", "student.classify.weight", "student.classify.bias",
    }  # fmt: skip
    context = shipped.context.clone()
    method(student, teacher, batch)
    method.start_epoch(2)  # training goes on, and what was deployed stays
    assert torch.equal(shipped.context, context)
    exported = torch.export.export(shipped, (images,))
    torch.testing.assert_close(exported.module()(images), shipped(images))


def test_no_gradient_reaches_the_teacher_and_all_parameters_get_one():
    for epoch in (0, 1):
        method, student, teacher, batch = case(6, 5, 4, 3, first=1)
        method.start_epoch(epoch)
        method(student, teacher, batch).backward()
        assert teacher.logits.grad is None
        assert teacher.embedding.grad is None
        assert student.embedding.grad.any()
        assert all(p.grad is not None for p in method.parameters())  # several processes wait for each
    assert not CID.decays


@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_embeddings_give_numbers(zero: str):
    method, student, teacher, _ = case(4, 5, 6, 3, first=1)
    method.start_epoch(1)
    s = torch.zeros(4, 5) if zero != "teacher" else student.embedding.detach()
    t = torch.zeros(4, 6) if zero != "student" else teacher.embedding.detach()
    s.requires_grad_()
    loss = method(Features(student.logits, s), Features(teacher.logits, t), batch_of(torch.tensor([0, 0, 1, 1])))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.abs().max() < 100
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_half_precision_is_computed_in_full():
    s, t, labels = torch.randn(6, 5).bfloat16(), torch.randn(6, 5).half(), torch.randint(2, (6,))
    assert torch.equal(cid_class(s, t, labels), cid_class(s.float(), t.float(), labels))
    assert torch.equal(cid_sample(s, t), cid_sample(s.float(), t.float()))


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_compiled_method_agrees(epoch: int):
    method, student, teacher, batch = case(6, 5, 4, 3, first=1)
    method.start_epoch(epoch)

    def loss(z: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return method(Features(z, s), teacher, batch_of(labels))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = (student.logits, student.embedding)
    found = compiled(*inputs, batch.targets)
    sums = method.sums.clone()
    method.sums.zero_()
    expected = loss(*inputs, batch.targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sums, method.sums)
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"projected ones are \(2, 3\) and the teacher's \(2, 4\)"):
        cid_sample(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(NetworkError, match=r"student has 5 classes and the teacher 6\. Take a teacher of the same"):
        CID(Setting(FeatureSpec(5, 4), FeatureSpec(6, 4)))
    with pytest.raises(RecipeError, match="cid learns from a teacher, and there is none"):
        CID(Setting(FeatureSpec(5, 4)))
    for wrong in ({"temperature": 0.0}, {"first": 0}, {"keep": 1.0}, {"sample": -1.0}, {"classes": math.nan}):
        with pytest.raises(RecipeError, match=r"cid got .*expected weights and a keep from 0, a keep below 1"):
            case(4, 5, 6, 3, **wrong)
    method, student, teacher, batch = case(4, 5, 6, 3)
    for targets in (None, torch.full((4, 3), 1 / 3)):
        with pytest.raises(RecipeError, match="by one label an image: use labels, and no mixup or CutMix"):
            method(student, teacher, batch_of(targets, 4))
    with pytest.raises(RecipeError, match="cid learns from a teacher, and there is none"):
        method(student, None, batch)
