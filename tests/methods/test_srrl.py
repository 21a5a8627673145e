"""SRRL against the authors' values, against a naive second writing, at its edges, and as a method."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ce import ce
from potstill.methods.srrl import SRRL, srrl
from potstill.networks.features import Features, FeatureSpec, MapSpec

SIZES = [(2, 3, 7, 5), (2, 9, 4, 3), (5, 6, 6, 11)]  # batch, student's channels, teacher's, classes


def naive_srrl(pooled: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, regression: float) -> float:
    """The published form, with both logits and loops."""

    def logits(rows: list[list[float]]) -> list[list[float]]:
        layer = list(zip(weight.tolist(), bias.tolist(), strict=True))
        return [[sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in layer] for row in rows]

    def mean_square(a: list[list[float]], b: list[list[float]]) -> float:
        found = [(x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
        return sum(found) / len(found)

    phi, t = pooled.tolist(), teacher.tolist()
    return mean_square(phi, t) + regression * mean_square(logits(phi), logits(t))


def spec(classes: int, channels: int, maps: bool = True) -> FeatureSpec:
    ends = (MapSpec("stem", 2, 1), MapSpec("last", channels, 4)) if maps else ()
    return FeatureSpec(classes, channels, ends)


def case(b: int, c: int, d: int, classes: int, **hyper) -> tuple[SRRL, Features, Features, Batch]:
    """A method with its inputs; maps are not square."""
    classifier = (torch.randn(classes, d, requires_grad=True), torch.randn(classes))
    method = SRRL(Setting(spec(3, c), spec(classes, d), classifier=classifier), **hyper)
    maps = (torch.randn(b, 2, 4, 8), torch.randn(b, c, 2, 5).requires_grad_())
    student = Features(torch.randn(b, 3), maps[1].mean((2, 3)), maps)
    teacher = Features(torch.randn(b, classes), torch.randn(b, d).requires_grad_())
    return method, student, teacher, Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b).long())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["srrl", "srrl_student_wider"])
def test_agrees_with_the_authors_code(golden, name: str, dtype: torch.dtype):
    g = golden(name, dtype)
    x, y = g.inputs["student.map0"].requires_grad_(), g.inputs["teacher.map0"]
    weight, bias = (g.parameter(f"param.teacher_classifier.{part}") for part in ("weight", "bias"))
    c, d = x.shape[1], y.shape[1]
    method = SRRL(Setting(spec(len(weight), c), spec(len(weight), d), classifier=(weight, bias))).to(dtype)
    assert torch.equal(method.classifier, weight)
    prefix = "param.connector.Connectors."
    stored = {key.removeprefix(prefix): g.parameter(key) for key in g.tensors if key.startswith(prefix)}
    method.connector.load_state_dict({**method.connector.state_dict(), **stored})
    of_student = [g.parameter(f"param.student_classifier.{part}").requires_grad_() for part in ("weight", "bias")]

    embedding = y.mean((2, 3))
    s_logits, t_logits = F.linear(x.mean((2, 3)), *of_student), F.linear(embedding, weight, bias)
    labels = g.inputs["labels"]
    batch = Batch(torch.zeros(len(x), 3, 1, 1), labels, torch.arange(len(x)), torch.zeros_like(labels))
    loss = method(Features(s_logits, x.mean((2, 3)), (x,)), Features(t_logits, embedding), batch)
    after = {key: value.clone() for key, value in method.connector.state_dict().items()}

    connected = method.connector(x.detach())
    pooled = connected.mean((2, 3))
    g.check("out.inter.connected", connected)
    g.check("out.inter.student_logits", s_logits)
    g.check("out.inter.teacher_logits", t_logits)
    g.check("out.inter.cross_logits", F.linear(pooled, weight, bias))
    matching = srrl(pooled, embedding, weight, regression=0.0)
    g.check("out.loss.feature_matching", matching)
    g.check("out.loss.softmax_regression", srrl(pooled, embedding, weight) - matching)
    named = ce(s_logits, labels)
    g.check("out.loss.ce", named)
    g.check("out.loss.total", named + loss)
    (of_distillation,) = torch.autograd.grad(loss, x, retain_graph=True)
    g.check("out.grad_distill.student.map0", of_distillation)
    (named + loss).backward()
    g.check("out.grad.student.map0", x.grad)
    g.check("out.grad.student_classifier.weight", of_student[0].grad)
    g.check("out.grad.student_classifier.bias", of_student[1].grad)
    for key, parameter in method.connector.named_parameters():
        g.check(f"out.grad.connector.Connectors.{key}", parameter.grad)
    for key in ("1.running_mean", "1.running_var"):
        g.check(f"out.state.connector.Connectors.{key}", after[key])
    assert g.all_compared()


@pytest.mark.parametrize("regression", [0.0, 1.0, 3.5])
@pytest.mark.parametrize(("b", "c", "d", "classes"), SIZES)
def test_agrees_with_a_naive_writing(b: int, c: int, d: int, classes: int, regression: float):
    torch.manual_seed(b + c)
    shapes = ((b, d), (b, d), (classes, d), (classes,))
    pooled, teacher, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_srrl(pooled, teacher, weight, bias, regression)
    assert srrl(pooled, teacher, weight, regression).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("b", "c", "d", "classes"), SIZES)
def test_the_method_is_the_loss_of_its_last_map(b: int, c: int, d: int, classes: int):
    method, student, teacher, batch = case(b, c, d, classes, regression=2.0)
    loss = method(student, teacher, batch)
    x = torch.einsum("oc,bchw->bohw", method.connector[0].weight[:, :, 0, 0], student.maps[1])
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    pooled = ((x - mean) / (var + 1e-5).sqrt()).clamp_min(0).mean((2, 3))
    expected = naive_srrl(pooled, teacher.embedding, method.classifier, torch.zeros(classes), 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_connector_trains_and_the_teacher_and_its_classifier_do_not():
    method, student, teacher, batch = case(3, 4, 5, 6)
    method(student, teacher, batch).backward()
    assert [tuple(p.shape) for p in method.parameters()] == [(5, 4, 1, 1), (5,), (5,)]
    assert all(p.grad.any() for p in method.parameters())
    assert student.maps[1].grad.any()
    assert teacher.embedding.grad is None
    assert not method.classifier.requires_grad
    assert "classifier" not in method.state_dict()


def test_the_connector_starts_as_the_authors_do():
    torch.manual_seed(0)
    method = SRRL(Setting(spec(3, 256), spec(10, 128), classifier=(torch.randn(10, 128), None)))
    assert method.connector[0].weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)


def test_zero_inputs_give_numbers():
    method, student, teacher, batch = case(2, 3, 4, 5)
    zero = torch.zeros_like(student.maps[1]).requires_grad_()
    loss = method(
        Features(student.logits, student.embedding, (zero,)), Features(teacher.logits, torch.zeros(2, 4)), batch
    )
    loss.backward()
    assert loss.item() == 0
    assert not zero.grad.any()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_half_precision_is_computed_in_full():
    a, t, w = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).half(), torch.randn(3, 8)
    assert torch.equal(srrl(a, t, w), srrl(a.float(), t.float(), w))


def test_the_compiled_method_agrees():
    method, student, teacher, batch = case(4, 3, 5, 6)

    def loss(x: Tensor, embedding: Tensor) -> Tensor:
        return method(Features(student.logits, student.embedding, (x,)), Features(teacher.logits, embedding), batch)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = compiled(student.maps[1], teacher.embedding), loss(student.maps[1], teacher.embedding)
    torch.testing.assert_close(found, expected)
    (a,), (b,) = (torch.autograd.grad(value, student.maps[1]) for value in (found, expected))
    torch.testing.assert_close(a, b)


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\), the teacher's \(2, 4\) and the classifier is"):
        srrl(torch.ones(2, 3), torch.ones(2, 4), torch.ones(5, 3))
    with pytest.raises(NetworkError, match="this student shows none; name its maps"):
        SRRL(Setting(spec(3, 4, maps=False), spec(3, 4), classifier=(torch.ones(3, 4), None)))
    with pytest.raises(NetworkError, match=r"this teacher has no linear one\. Take a teacher with a linear"):
        SRRL(Setting(spec(3, 4), spec(3, 4)))
    with pytest.raises(NetworkError, match="reads 8 values and the teacher's embedding has 4"):
        SRRL(Setting(spec(3, 4), spec(3, 4), classifier=(torch.ones(3, 8), None)))
    with pytest.raises(RecipeError, match="regression is -1; expected a number from 0"):
        case(2, 3, 4, 5, regression=-1)
    with pytest.raises(RecipeError, match="srrl learns from a teacher, and there is none"):
        SRRL(Setting(spec(3, 4)))
    method, student, _, batch = case(2, 3, 4, 5)
    with pytest.raises(RecipeError, match="srrl learns from a teacher, and there is none"):
        method(student, None, batch)
