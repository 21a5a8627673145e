"""CC's two losses against the published code's values, naive second writings, at their edges, and as a method."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.cc import CC, cc, cc_kernel
from potstill.networks.features import Features, FeatureSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher


def naive_cc(student: Tensor, teacher: Tensor) -> float:
    """The mean over neighbours of the products of absolute differences."""
    s, t = student.tolist(), teacher.tolist()
    deltas = [[abs(a - b) for a, b in zip(x, y, strict=True)] for x, y in zip(s, t, strict=True)]
    pairs = list(pairwise(deltas))
    return sum(sum(a * b for a, b in zip(x, y, strict=True)) for x, y in pairs) / len(pairs) if pairs else 0.0


def naive_kernel(x: list[float], y: list[float], gamma: float, order: int) -> float:
    length = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    cosine = sum(a * b for a, b in zip(x, y, strict=True)) / length
    return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))


def naive_cc_kernel(student: Tensor, teacher: Tensor, gamma: float, order: int) -> float:
    s, t = student.tolist(), teacher.tolist()
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            total += (naive_kernel(s[i], s[j], gamma, order) - naive_kernel(t[i], t[j], gamma, order)) ** 2
    return total / len(s) ** 2


def features(embedding: Tensor) -> Features:
    return Features(torch.zeros(len(embedding), 5), embedding)


def case(b: int, d: int, m: int, **hyper) -> tuple[CC, Features, Features, Batch]:
    student, teacher = features(torch.randn(b, d).requires_grad_()), features(torch.randn(b, m).requires_grad_())
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return CC(Setting(FeatureSpec(5, d), FeatureSpec(0, m)), **hyper), student, teacher, batch


@DTYPES
@pytest.mark.parametrize("name", ["cc", "cc_student_wider"])
def test_agrees_with_the_published_code(golden, name: str, dtype: torch.dtype):
    stored = golden(name, dtype)
    student, teacher = stored.inputs["student.embedding"].requires_grad_(), stored.inputs["teacher.embedding"]
    sizes = stored.case["config"]
    method, *_, batch = case(sizes["B"], sizes["Ds"], sizes["Dt"], dim=sizes["E"])
    method.to(dtype)
    for side in ("embed_s", "embed_t"):
        state = {key: stored.parameter(f"param.{side}.linear.{key}") for key in ("weight", "bias")}
        getattr(method, side).load_state_dict(state)
    loss = method(features(student), features(teacher), batch)
    total = 0.02 * loss
    total.backward()
    stored.check("out.loss.cc", loss)
    stored.check("out.loss.total", total)
    stored.check("out.grad.student.embedding", student.grad)
    for name, parameter in method.named_parameters():
        stored.check("out.grad." + name.replace(".", ".linear."), parameter.grad)
    assert stored.all_compared()


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    torch.manual_seed(b + d)
    s, t = torch.randn(b, m, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)
    assert cc(s, t).item() == pytest.approx(naive_cc(s, t), rel=1e-12)
    method, student, teacher, batch = case(b, d, m, dim=10)
    expected = naive_cc(method.embed_s(student.embedding), method.embed_t(teacher.embedding))
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.5, 1), (0.1, 5)])
@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_the_papers_form_agrees_with_a_naive_writing(b: int, d: int, m: int, gamma: float, order: int):
    torch.manual_seed(b + d)
    s, t = torch.randn(b, d, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)
    expected = naive_cc_kernel(s, t, gamma, order)
    assert cc_kernel(s, t, gamma, order).item() == pytest.approx(expected, rel=1e-9, abs=1e-30)
    method, student, teacher, batch = case(b, d, m, variant="paper", gamma=gamma, order=order)
    assert not list(method.parameters())
    expected = cc_kernel(student.embedding, teacher.embedding, gamma, order)
    assert torch.equal(method(student, teacher, batch), expected)


def test_a_long_expansion_is_the_gaussian_kernel():
    torch.manual_seed(0)
    s, t = (torch.nn.functional.normalize(torch.randn(5, d, dtype=torch.float64)) for d in (4, 6))
    kernels = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (s, t)]
    expected = (kernels[0] - kernels[1]).square().mean()
    torch.testing.assert_close(cc_kernel(s, t, 0.4, order=20), expected)
    assert 0 < (cc_kernel(s, t, 0.4, order=2) - expected).abs() < 0.2 * expected


def test_gradients_of_the_papers_form_are_those_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 5).double()
    assert torch.autograd.gradcheck(lambda x: cc_kernel(x, teacher), student)


def test_what_the_losses_see_and_do_not_see():
    torch.manual_seed(1)
    s, t = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1, 5, 4])
    torch.testing.assert_close(cc_kernel(3 * s[order], 0.5 * t[order]), cc_kernel(s, t))
    assert cc_kernel(2 * t, t).item() == pytest.approx(0, abs=1e-28)
    assert cc(s[order], t[order]).item() != pytest.approx(cc(s, t).item())  # the order counts in the code's form


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_zero_embeddings_and_a_batch_of_one_give_numbers(variant: str):
    for b, of_student, of_teacher in [(3, 0, 0), (3, 0, 1), (3, 1, 0), (1, 1, 1)]:
        method, student, teacher, batch = case(b, 4, 5, variant=variant)
        s = (of_student * student.embedding.detach()).requires_grad_()
        loss = method(features(s), features(of_teacher * teacher.embedding), batch)
        loss.backward()
        assert loss.isfinite()
        assert s.grad.isfinite().all()
        if b == 1:
            assert loss.item() == pytest.approx(0, abs=1e-12)


def test_half_precision_is_computed_in_full():
    s, t = torch.randn(4, 16).bfloat16(), torch.randn(4, 16).half()
    for loss in (cc, cc_kernel):
        assert loss(s, t).dtype == torch.float32
        assert torch.equal(loss(s, t), loss(s.float(), t.float()))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_no_gradient_reaches_the_teacher(variant: str):
    method, student, teacher, batch = case(4, 3, 5, variant=variant)
    method(student, teacher, batch).backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()
    assert all(parameter.grad.any() for parameter in method.parameters())  # the teacher's embedding is trained


@pytest.mark.parametrize("loss", [cc, cc_kernel])
def test_in_one_graph(loss):
    torch._dynamo.reset()
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    eager = loss(student, teacher)
    (expected,) = torch.autograd.grad(eager, student)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(student, teacher)
    (found,) = torch.autograd.grad(compiled, student)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"variant": "papr"}, "variant is 'papr'; it is code or paper. Did you mean 'paper'"),
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"variant": "paper", "gamma": 0.0}, "gamma is 0.0; expected a positive number"),
        ({"variant": "paper", "gamma": math.nan}, "gamma is nan; expected a positive number"),
        ({"variant": "paper", "order": 0}, "order is 0; expected 1 or more"),
        ({"variant": "paper", "dim": 64}, "dim=64 has no effect with variant='paper'"),
        ({"gamma": 0.5}, "gamma=0.5, order=2 have no effect with variant='code'"),
    ],
)
def test_values_that_are_refused(hyper: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        case(2, 3, 4, **hyper)


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"student's are \(2, 3\) and the teacher's \(2, 1\)"):
        cc(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(NetworkError, match="there are 2 of the student and 3 of the teacher"):
        cc_kernel(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(RecipeError, match="cc learns from a teacher, and there is none"):
        CC(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="a process's part of a batch is 1 image"):
        CC(Setting(FeatureSpec(5, 4), FeatureSpec(5, 4), batch_size=1))
    method, student, _, batch = case(2, 3, 4)
    with pytest.raises(RecipeError, match="cc learns from a teacher, and there is none"):
        method(student, None, batch)
