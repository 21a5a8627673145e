"""PEFD's loss against a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import PEFD, Setting
from potstill.methods.pefd import pefd, weight_similarity
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher


def naive_pefd(projected: Tensor, teacher: Tensor) -> float:
    """Equation 4 with lists and loops."""
    total = 0.0
    for p, t in zip(projected.tolist(), teacher.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        total += dot / (math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t)))
    return 1 - total / len(projected)


def case(b: int, d: int, m: int, **hyper) -> tuple[PEFD, Features, Features, Batch]:
    setting = Setting(FeatureSpec(classes=5, embedding_dim=d), FeatureSpec(classes=0, embedding_dim=m))
    student = Features(torch.randn(b, 5), torch.randn(b, d).requires_grad_())
    teacher = Features(torch.empty(b, 0), torch.randn(b, m).requires_grad_())
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return PEFD(setting, **hyper), student, teacher, batch


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    torch.manual_seed(b + d)
    a, t = torch.randn(b, m, dtype=torch.float64), torch.randn(b, m, dtype=torch.float64)
    assert pefd(a, t).item() == pytest.approx(naive_pefd(a, t), rel=1e-12)


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_the_method_is_the_loss_of_its_projection(b: int, d: int, m: int):
    method, student, teacher, batch = case(b, d, m)
    loss = method(student, teacher, batch)
    assert loss.item() == pytest.approx(naive_pefd(method.projector(student.embedding), teacher.embedding), rel=1e-5)


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_gradients_are_those_of_finite_differences(b: int, d: int, m: int):
    torch.manual_seed(1)
    method, student, teacher, batch = case(b, d, m, activation="gelu")
    method.double()
    t = Features(teacher.logits, teacher.embedding.detach().double())
    inputs = student.embedding.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: method(Features(student.logits, s), t, batch), inputs)


vectors = st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(vectors, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_the_range_and_what_the_loss_does_not_see(rows, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    student = torch.tensor(rows, dtype=torch.float64)
    teacher = torch.randn(student.shape, generator=generator, dtype=torch.float64)
    loss = pefd(student, teacher)
    assert -1e-12 <= loss.item() <= 2 + 1e-12
    torch.testing.assert_close(pefd(student, teacher * scale), loss)
    order = torch.randperm(len(rows), generator=generator)
    torch.testing.assert_close(pefd(student[order], teacher[order]), loss)


def test_the_ends_of_the_range():
    x = torch.randn(6, 8, dtype=torch.float64)
    assert pefd(3 * x, x).item() == pytest.approx(0, abs=1e-12)
    assert pefd(-x, x).item() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one row"])
def test_zero_vectors_give_numbers(dtype: torch.dtype, zero: str):
    student, teacher = torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype)
    if zero in ("student", "both"):
        student.zero_()
    if zero in ("teacher", "both"):
        teacher.zero_()
    if zero == "one row":
        student[1] = 0
    student.requires_grad_()
    loss = pefd(student, teacher)
    loss.backward()
    assert student.grad.isfinite().all()
    if zero == "one row":
        others = [0, 2, 3]
        assert not student.grad[1].any()
        expected = (pefd(student[others], teacher[others]) * 3 + 1) / 4  # the zero row's cosine is 0, its term 1
        torch.testing.assert_close(loss, expected)
    else:
        assert loss.item() == 1
        assert not student.grad.any()


def test_a_projection_with_every_relu_off_gives_numbers():
    method, student, teacher, batch = case(4, 5, 6)
    with torch.no_grad():
        method.projector.weight_0.zero_()
        method.projector.bias_0.fill_(-1)
    loss = method(student, teacher, batch)
    loss.backward()
    assert loss.item() == 1
    for tensor in (student.embedding, *method.parameters()):
        assert tensor.grad.eq(0).all()


def test_short_vectors_are_not_disturbed():
    a = torch.tensor([[1e-10, 0.0], [0.0, 1e-10]], dtype=torch.float64)
    assert pefd(a, torch.ones(2, 2, dtype=torch.float64)).item() == pytest.approx(1 - math.sqrt(0.5), rel=1e-12)


def test_half_precision_embeddings_are_computed_in_full():
    a, t = torch.randn(8, 512, dtype=torch.bfloat16), torch.randn(8, 512, dtype=torch.bfloat16)
    loss = pefd(a, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pefd(a.float(), t.float()))


def test_no_gradient_reaches_the_teacher():
    method, student, teacher, batch = case(3, 4, 5)
    method(student, teacher, batch).backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()


def test_teachers_without_classifier_and_equal_dimensions_without_projector():
    method, student, teacher, batch = case(3, 5, 5, projectors=0)
    assert not list(method.parameters())
    assert torch.equal(method(student, teacher, batch), pefd(student.embedding, teacher.embedding))


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_the_teacher_can_be_projected_instead(b: int, d: int, m: int):
    torch.manual_seed(b)
    method, student, teacher, batch = case(b, d, m, side="teacher", depth=2, width=2, activation="gelu")
    assert method.projector.weight_0.shape == (3, 2 * d, m)  # the width is a multiple of the length projected to
    loss = method(student, teacher, batch)
    assert loss.item() == pytest.approx(naive_pefd(student.embedding, method.projector(teacher.embedding)), rel=1e-5)
    loss.backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()
    assert all(parameter.grad.any() for parameter in method.parameters())


def naive_similarity(method: PEFD) -> float:
    """The mean over layers and over pairs of projectors, with lists and loops."""
    found = []
    for layer in range(method.projector.depth):
        flat = [method.projector.projector(k)[layer][0].flatten().tolist() for k in range(method.projector.projectors)]
        for i, a in enumerate(flat):
            for b in flat[:i]:
                lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
                found.append(sum(x * y for x, y in zip(a, b, strict=True)) / lengths)
    return sum(found) / len(found)


@pytest.mark.parametrize("hyper", [{}, {"projectors": 2}, {"projectors": 8, "depth": 3, "width": 2}])
@pytest.mark.parametrize("constraint", [None, "orthogonal"])
def test_diversity_adds_how_alike_the_projectors_are(hyper: dict, constraint: str | None):
    torch.manual_seed(0)
    method, student, teacher, batch = case(3, 4, 5, diversity=0.5, constraint=constraint, **hyper)
    projected = method.projector(student.embedding)
    expected = naive_pefd(projected, teacher.embedding) + 0.5 * naive_similarity(method)
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_similarity_at_its_ends_and_at_zero():
    same = torch.randn(1, 4, 3).expand(5, 4, 3)
    assert weight_similarity([same]).item() == pytest.approx(1, abs=1e-6)
    assert weight_similarity([torch.stack([same[0], -2 * same[0]])]).item() == pytest.approx(-1, abs=1e-6)
    assert weight_similarity([torch.eye(4).view(4, 2, 2)]).item() == 0
    zero = torch.zeros(3, 2, 2, requires_grad=True)
    weight_similarity([zero]).backward()
    assert not zero.grad.any()


def test_diversity_drives_projectors_apart():
    torch.manual_seed(1)
    method, student, teacher, batch = case(8, 6, 6, diversity=1.0)
    with torch.no_grad():
        method.projector.weight_0[1:] = method.projector.weight_0[0] + 0.01 * torch.randn(2, 6, 6)
    before = naive_similarity(method)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        method(student, teacher, batch).backward()
        optimizer.step()
    assert before > 0.99
    assert naive_similarity(method) < 0.5


@pytest.mark.parametrize(
    "hyper", [{"side": "teacher"}, {"diversity": 0.1}, {"constraint": "orthogonal"}, {"init": "mixed", "projectors": 8}]
)
def test_the_options_in_one_graph(hyper: dict):
    torch._dynamo.reset()
    method, student, teacher, batch = case(4, 5, 6, **hyper)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return method(Features(student.logits, s), Features(teacher.logits, t), batch)

    eager = loss(student.embedding, teacher.embedding)
    (expected,) = torch.autograd.grad(eager, student.embedding)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(student.embedding, teacher.embedding)
    (found,) = torch.autograd.grad(compiled, student.embedding)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"side": "techer"}, "side is 'techer'; it is student or teacher. Did you mean 'teacher'"),
        ({"side": "teacher", "projectors": 0}, "side='teacher' has no effect with projectors=0"),
        ({"diversity": -0.1}, "diversity is -0.1; expected a factor of 0 or more"),
        ({"diversity": math.nan}, "diversity is nan; expected a factor of 0 or more"),
        ({"diversity": 0.1, "projectors": 1}, "diversity=0.1 has no effect with projectors=1; it compares two or more"),
    ],
)
def test_options_that_are_refused(hyper: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        case(2, 4, 4, **hyper)


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"projected ones are \(2, 3\) and the teacher's \(2, 1\)"):
        pefd(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(RecipeError, match="pefd learns from a teacher, and there is none"):
        PEFD(Setting(FeatureSpec(5, 4)))
    method, student, _, batch = case(2, 3, 4)
    with pytest.raises(RecipeError, match="pefd learns from a teacher, and there is none"):
        method(student, None, batch)
    with pytest.raises(RecipeError, match="a projector is needed"):
        case(2, 3, 4, projectors=0)
