"""PKT's loss against the published code's values, a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.pkt import PKT, pkt
from potstill.networks.features import Features, FeatureSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher


def naive_neighbours(rows: list[list[float]]) -> list[list[float]]:
    lengths = [math.sqrt(sum(v * v for v in row)) + 1e-7 for row in rows]
    found = []
    for x, of_x in zip(rows, lengths, strict=True):
        dots = [sum(a * b for a, b in zip(x, y, strict=True)) / (of_x * n) for y, n in zip(rows, lengths, strict=True)]
        kernel = [(dot + 1) / 2 for dot in dots]
        found.append([k / sum(kernel) for k in kernel])
    return found


def naive_pkt(student: Tensor, teacher: Tensor) -> float:
    """The mean over all pairs, with lists and loops."""
    p_s, p_t, b = naive_neighbours(student.tolist()), naive_neighbours(teacher.tolist()), len(student)
    terms = (p_t[i][j] * math.log((p_t[i][j] + 1e-7) / (p_s[i][j] + 1e-7)) for i in range(b) for j in range(b))
    return sum(terms) / b**2


def features(embedding: Tensor) -> Features:
    return Features(torch.zeros(len(embedding), 5), embedding)


def batch_of(b: int) -> Batch:
    return Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def setting(d: int, m: int, batch_size: int = 0) -> Setting:
    return Setting(FeatureSpec(5, d), FeatureSpec(0, m), batch_size=batch_size)


@DTYPES
@pytest.mark.parametrize("name", ["pkt", "pkt_student_wider"])
def test_agrees_with_the_published_code(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    student, teacher = case.inputs["student.embedding"].requires_grad_(), case.inputs["teacher.embedding"]
    method = PKT(setting(student.shape[1], teacher.shape[1]))
    loss = method(features(student), features(teacher), batch_of(len(student)))
    total = 30000 * loss
    total.backward()
    case.check("out.loss.pkt", loss)
    case.check("out.loss.total", total)
    case.check("out.grad.student.embedding", student.grad)
    assert case.all_compared()


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    torch.manual_seed(b + d)
    s, t = torch.randn(b, d, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)
    assert pkt(s, t).item() == pytest.approx(naive_pkt(s, t), rel=1e-9, abs=1e-15)
    assert PKT(setting(d, m))(features(s), features(t), batch_of(b)).item() == pkt(s, t).item()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 5).double()
    assert torch.autograd.gradcheck(lambda x: 100 * pkt(x, teacher), student)


def test_what_the_loss_does_not_see():
    torch.manual_seed(1)
    s, t = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    loss = pkt(s, t)
    assert loss > 1e-4
    order = torch.randperm(6)
    torch.testing.assert_close(pkt(s[order], t[order]), loss)
    scale = torch.rand(6, 1, dtype=torch.float64) + 1
    torch.testing.assert_close(pkt(scale * s, 3 * t), loss, rtol=1e-5, atol=0)  # but for eps
    assert pkt(t, t).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one image"])
def test_zero_embeddings_give_numbers(dtype: torch.dtype, zero: str):
    s, t = torch.randn(4, 6, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    if zero in ("student", "both"):
        s.zero_()
    if zero in ("teacher", "both"):
        t.zero_()
    if zero == "one image":
        s[1] = 0
    s.requires_grad_()
    loss = pkt(s, t)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert not s.grad[1].any() or zero == "teacher"
    if zero == "both":
        assert loss.item() == 0


def test_opposite_embeddings_give_numbers():
    s = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.3, 0.6]], requires_grad=True)
    loss = pkt(s, torch.randn(3, 4))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_half_precision_is_computed_in_full():
    s, t = torch.randn(4, 16).bfloat16(), torch.randn(4, 12).half()
    assert pkt(s, t).dtype == torch.float32
    assert torch.equal(pkt(s, t), pkt(s.float(), t.float()))


def test_no_gradient_reaches_the_teacher():
    s, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    pkt(s, t).backward()
    assert t.grad is None
    assert s.grad.any()


def test_in_one_graph():
    torch._dynamo.reset()
    s, t = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4)
    eager = pkt(s, t)
    (expected,) = torch.autograd.grad(eager, s)
    compiled = torch.compile(pkt, fullgraph=True, backend="aot_eager")(s, t)
    (found,) = torch.autograd.grad(compiled, s)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(found, expected)


def test_what_is_refused():
    with pytest.raises(NetworkError, match="there are 2 of the student and 3 of the teacher"):
        pkt(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(RecipeError, match="pkt learns from a teacher, and there is none"):
        PKT(Setting(FeatureSpec(5, 4)))
    with pytest.raises(RecipeError, match="a process's part of a batch is 1 image"):
        PKT(setting(3, 4, batch_size=1))
    with pytest.raises(RecipeError, match="pkt learns from a teacher, and there is none"):
        PKT(setting(3, 4))(features(torch.ones(2, 3)), None, batch_of(2))
