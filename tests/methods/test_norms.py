"""The norm's losses against naive second writings, at their edges, and as methods."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Method, Setting
from potstill.methods.norms import HAFN, SAFN, NormMatch, hafn, norm_match, safn
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher


def norms(rows: Tensor) -> list[float]:
    return [math.hypot(*row) for row in rows.tolist()]


def embeddings(b: int, d: int, m: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(b + d)
    return torch.randn(b, d, dtype=torch.float64), 3 * torch.randn(b, m, dtype=torch.float64)


def run(method: Method, s: Tensor, t: Tensor | None) -> Tensor:
    b = len(s)
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return method(Features(torch.zeros(b, 2), s), None if t is None else Features(torch.zeros(b, 0), t), batch)


def setting_of(d: int, m: int) -> Setting:
    return Setting(FeatureSpec(2, d), FeatureSpec(0, m))


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agree_with_naive_writings(b: int, d: int, m: int):
    s, t = embeddings(b, d, m)
    expected = sum((x - y) ** 2 for x, y in zip(norms(s), norms(t), strict=True)) / b
    assert norm_match(s, t).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(run(NormMatch(setting_of(d, m)), s, t), norm_match(s, t))
    expected = (sum(norms(s)) / b - 4.0) ** 2
    assert hafn(s, 4.0).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(run(HAFN(setting_of(d, m), radius=4.0), s, None), hafn(s, 4.0))
    assert safn(s, 0.3).item() == pytest.approx(0.09, rel=1e-12)
    assert torch.equal(run(SAFN(setting_of(d, m), step=0.3), s, None), safn(s, 0.3))


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_gradients_pull_along_the_embedding(b: int, d: int, m: int):
    s, t = embeddings(b, d, m)
    s.requires_grad_()
    length, goal = s.detach().norm(dim=1, keepdim=True), t.norm(dim=1, keepdim=True)
    along = s.detach() / length
    (found,) = torch.autograd.grad(norm_match(s, t), s)
    torch.testing.assert_close(found, 2 * (length - goal) * along / b)
    (found,) = torch.autograd.grad(safn(s, 0.3), s)
    torch.testing.assert_close(found, -2 * 0.3 * along / b)
    (found,) = torch.autograd.grad(hafn(s), s)
    torch.testing.assert_close(found, 2 * (length.mean() - 25) * along / b)


def test_the_defaults_are_the_authors():
    s, _ = embeddings(3, 4, 4)
    assert torch.equal(run(SAFN(setting_of(4, 4)), s, None), safn(s, 1.0))
    assert torch.equal(run(HAFN(setting_of(4, 4)), s, None), hafn(s, 25.0))


def test_zeros_give_numbers():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        s = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
        for loss, value in ((norm_match(s, torch.zeros(3, 5)), 0), (safn(s), 1), (hafn(s), 625)):
            s.grad = None
            loss.backward()
            assert loss.item() == value
            assert not s.grad.any()


def test_half_precision_embeddings_are_computed_in_full():
    s, t = embeddings(4, 512, 300)
    low = norm_match(s.bfloat16(), t.half())
    assert low.dtype == torch.float32
    assert torch.equal(low, norm_match(s.bfloat16().float(), t.half().float()))


@pytest.mark.parametrize("loss", [norm_match, lambda s, t: safn(s), lambda s, t: hafn(s)], ids=["norm", "safn", "hafn"])
def test_in_one_graph(loss):
    s, t = embeddings(5, 6, 4)
    s.requires_grad_()
    torch._dynamo.reset()
    found, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t), loss(s, t)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, s), torch.autograd.grad(expected, s))
    torch._dynamo.reset()


def test_no_gradient_reaches_the_teacher():
    s, t = (x.requires_grad_() for x in embeddings(3, 4, 5))
    norm_match(s, t).backward()
    assert t.grad is None
    assert s.grad.any()


def test_what_is_refused():
    s, t = embeddings(3, 4, 5)
    with pytest.raises(NetworkError, match="the student has 3 of them and the teacher 2"):
        norm_match(s, t[:2])
    with pytest.raises(RecipeError, match="norm_match learns from a teacher, and there is none"):
        NormMatch(Setting(FeatureSpec(2, 4)))
    with pytest.raises(RecipeError, match="norm_match learns from a teacher, and there is none"):
        run(NormMatch(setting_of(4, 5)), s, None)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match=r"step is .*; expected a positive number, such as 1\."):
            SAFN(setting_of(4, 4), step=wrong)
        with pytest.raises(RecipeError, match=r"radius is .*; expected a positive number, such as 25\."):
            HAFN(setting_of(4, 4), radius=wrong)
