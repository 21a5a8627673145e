"""The weighted sum of methods, what it asks for, what it refuses, and each term's pull."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import KD, PEFD, Method, Needs, Setting
from potstill.methods.base import Known
from potstill.methods.ce import ce
from potstill.methods.kd import kd
from potstill.methods.objective import KD_OBJECTIVE, PEFD_OBJECTIVE, Objective, check_terms, share_warnings
from potstill.methods.pefd import pefd
from potstill.networks.features import Features, FeatureSpec

B, C, D, M = 6, 5, 8, 12
SETTING = Setting(FeatureSpec(C, D), FeatureSpec(C, M))


class Constant(Method):
    """Reads the maps; reaches neither the embedding nor any parameter."""

    needs = Needs(student=frozenset({"maps"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__()

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        self.dtypes = (student.logits.dtype, student.embedding.dtype, student.maps[0].dtype)
        self.product = (student.maps[0] @ student.maps[0]).dtype
        return student.maps[0].sum()


HERE = f"{__name__}:Constant"


def case(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Features, Features, Batch]:
    torch.manual_seed(3)
    head = nn.Linear(D, C, dtype=dtype)
    embedding = torch.randn(B, D, dtype=dtype, requires_grad=True)
    student = Features(head(embedding), embedding, (torch.ones(2, 2, dtype=dtype),))
    teacher = Features(torch.randn(B, C, dtype=dtype), torch.randn(B, M, dtype=dtype))
    batch = Batch(torch.zeros(B, 3, 1, 1), torch.randint(C, (B,)), torch.arange(B), torch.zeros(B, dtype=torch.int64))
    return head, student, teacher, batch


def test_the_papers_objective():
    objective = Objective(SETTING, PEFD_OBJECTIVE)
    _, student, teacher, batch = case()
    losses = objective(student, teacher, batch)
    term = objective.methods["pefd"]
    assert isinstance(term, PEFD)
    assert term.projector.projectors == 3
    assert list(losses) == ["ce", "pefd", "total"]
    torch.testing.assert_close(losses["ce"], ce(student.logits, batch.targets))
    torch.testing.assert_close(losses["pefd"], pefd(term.projector(student.embedding), teacher.embedding))
    torch.testing.assert_close(losses["total"], losses["ce"] + 25 * losses["pefd"])
    assert objective.weights == {"ce": 1.0, "pefd": 25.0}


def test_the_common_kd_recipe():
    objective = Objective(SETTING, KD_OBJECTIVE)
    _, student, teacher, batch = case()
    losses = objective(student, teacher, batch)
    expected = 0.1 * ce(student.logits, batch.targets) + 0.9 * kd(student.logits, teacher.logits, 4.0)
    torch.testing.assert_close(losses["total"], expected)
    assert isinstance(objective.methods["kd"], KD)
    assert objective.methods["kd"].temperature == 4.0


def test_what_it_needs_is_what_its_terms_need():
    objective = Objective(SETTING, {"ce": 1, "kd": 1, "pefd": 25})
    assert objective.needs == Needs(frozenset({"logits", "embedding"}), frozenset({"logits", "embedding"}), True)
    assert objective.compares_logits == ["kd"]
    assert Objective(SETTING, {"pefd": 1}).needs == Needs(frozenset({"embedding"}), frozenset({"embedding"}), False)
    assert Objective(SETTING, PEFD_OBJECTIVE).compares_logits == []
    assert Objective(SETTING, {HERE: 1}).needs.student == {"maps"}


def test_only_projectors_train_and_they_are_found():
    objective = Objective(SETTING, PEFD_OBJECTIVE)
    assert sorted(objective.state_dict()) == ["terms.pefd.projector.bias_0", "terms.pefd.projector.weight_0"]
    assert not list(Objective(SETTING, KD_OBJECTIVE).parameters())


def test_a_method_by_dotted_path_keeps_its_name():
    objective = Objective(SETTING, {"ce": 1, HERE: 2})
    _, student, teacher, batch = case()
    losses = objective(student, teacher, batch)
    assert list(losses) == ["ce", HERE, "total"]
    assert losses["total"].item() == pytest.approx(losses["ce"].item() + 2 * 4)


def test_plain_training_needs_no_teacher():
    objective = Objective(Setting(FeatureSpec(C, D)), {"ce": 1.0})
    _, student, _, batch = case()
    assert torch.equal(objective(student, None, batch)["total"], ce(student.logits, batch.targets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_terms_are_in_full_precision_outside_autocast(dtype: torch.dtype):
    objective = Objective(SETTING, {"ce": 1, "pefd": 25, HERE: 1})
    if dtype == torch.float64:
        objective.double()
    _, student, teacher, batch = case(dtype)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(student, teacher, batch)
    assert {loss.dtype for loss in losses.values()} == {full}
    term = objective.methods[HERE]
    assert term.dtypes == (full, full, full)
    assert term.product == full
    outside = objective(student, teacher, batch)
    assert torch.equal(losses["total"], outside["total"])


def test_fields_that_nobody_reads_are_not_converted():
    _, student, _, batch = case(torch.bfloat16)
    objective = Objective(SETTING, {HERE: 1})
    objective(student, None, batch)
    assert objective.methods[HERE].dtypes == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_shares_are_the_weighted_gradients_at_the_embedding():
    objective = Objective(SETTING, {"ce": 2, "pefd": 25, HERE: 1})
    head, student, teacher, batch = case()
    losses = objective(student, teacher, batch)
    shares = objective.gradient_shares(losses, student.embedding)
    (by_ce,) = torch.autograd.grad(ce(head(student.embedding), batch.targets), student.embedding, retain_graph=True)
    (by_pefd,) = torch.autograd.grad(losses["pefd"], student.embedding, retain_graph=True)
    one, two = 2 * by_ce.norm().item(), 25 * by_pefd.norm().item()
    assert shares["ce"].item() == pytest.approx(one / (one + two), rel=1e-5)
    assert shares["pefd"].item() == pytest.approx(two / (one + two), rel=1e-5)
    assert HERE not in shares  # it does not reach the embedding
    assert student.embedding.grad is None  # nothing is left behind, and the graph still serves the step
    losses["total"].backward()
    assert student.embedding.grad.norm() > 0


def test_one_term_has_no_share():
    objective = Objective(SETTING, {"ce": 1, HERE: 1})
    _, student, teacher, batch = case()
    losses = objective(student, teacher, batch)
    assert objective.gradient_shares(losses, student.embedding) == {}


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.0), (5, 0.25), (20, 1.0), (100, 1.0)])
def test_a_warm_up_raises_the_weight_epoch_by_epoch(epoch: int, factor: float):
    objective = Objective(SETTING, {"ce": 1, "kd": {"weight": 3, "warmup": 20}, "pefd": 25})
    _, student, teacher, batch = case()
    objective.start_epoch(epoch)
    losses = objective(student, teacher, batch)
    expected = losses["ce"] + 3 * factor * losses["kd"] + 25 * losses["pefd"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(objective.gradient_shares(losses, student.embedding)) == {"ce", "pefd"} | (
        {"kd"} if factor == 1 else set()
    )


def test_methods_hear_of_the_data_and_of_epochs_that_begin():
    objective = Objective(SETTING, {"ce": 1, HERE: 1})
    known, term = Known(labels=torch.arange(3)), objective.methods[HERE]
    heard = []
    term.prepare, term.start_epoch = heard.append, heard.append
    objective.prepare(known)
    objective.start_epoch(3)
    objective.start_epoch(4, resumed=True)
    assert heard == [known, 3]
    assert objective.epoch == 4


def test_half_precision_does_not_lose_the_shares():
    objective = Objective(SETTING, {"ce": 1, "pefd": 25})
    _, student, teacher, batch = case()
    shares = []
    for dtype in (torch.float32, torch.float16):
        embedding = student.embedding.detach().to(dtype).requires_grad_()
        logits = (embedding.float() @ torch.ones(D, C).tril()).to(dtype)
        losses = {name: loss * 1e-4 for name, loss in objective(Features(logits, embedding), teacher, batch).items()}
        shares.append(objective.gradient_shares(losses, embedding)["ce"].item())
    assert shares[1] == pytest.approx(shares[0], rel=0.01)


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ({"ce": 0.5, "pefd": 0.5}, []),
        ({"ce": 0.01, "pefd": 0.99}, []),
        ({"ce": 1.0}, []),
        ({"ce": 0.004, "pefd": 0.996}, ["ce has 0.4 % .* hardly teaches", "pefd has 99.6 % .* other terms hardly"]),
        ({"ce": 0.5, "kd": 0.0, "pefd": 0.5}, ["kd has 0.0 % of the gradient"]),
    ],
)
def test_warnings_about_shares(shares: dict, found: list[str]):
    sentences = share_warnings(shares)
    assert len(sentences) == len(found)
    for sentence, pattern in zip(sentences, found, strict=True):
        assert re.search(pattern, sentence)


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ({}, RecipeError, "The objective is empty; name at least one method"),
        ({"ce": 0}, RecipeError, "weight of the objective's ce is 0, which does nothing; take ce out"),
        ({"ce": -1}, RecipeError, "weight of the objective's ce is -1; expected a positive number"),
        ({"ce": math.inf}, RecipeError, "weight of the objective's ce is inf; expected a positive number"),
        ({"ce": math.nan}, RecipeError, "weight of the objective's ce is nan; expected a positive number"),
        ({"ce": True}, RecipeError, "weight of the objective's ce is True; expected a positive number"),
        ({"ce": "1e-3"}, RecipeError, "weight of the objective's ce is '1e-3'; expected a positive number"),
        ({"pefd": {"projectors": 1}}, RecipeError, r"pefd has no weight; write it as pefd: \{weight: 1, ...\}"),
        ({"ce": {"weight": 1, "warmup": -1}}, RecipeError, "warmup of the objective's ce is -1; expected a number of"),
        ({"ce": {"weight": 1, "warmup": 0.5}}, RecipeError, "warmup of the objective's ce is 0.5; expected a number"),
        ({"ce": None}, RecipeError, "ce has no weight"),
        ({"cee": 1}, RecipeError, "There is no method 'cee'. Did you mean 'ce'"),
        ({"kd": {"weight": 1, "T": 4}}, RecipeError, "kd has no hyper-parameter 'T'. It takes temperature=4.0"),
    ],
)
def test_what_is_refused(terms: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        Objective(SETTING, terms)


def test_a_teacher_of_other_classes_is_refused_only_where_logits_are_compared():
    other = Setting(FeatureSpec(C, D), FeatureSpec(1000, M))
    with pytest.raises(NetworkError, match=f"student has {C} classes and the teacher 1000"):
        Objective(other, KD_OBJECTIVE)
    assert Objective(other, PEFD_OBJECTIVE).weights["pefd"] == 25


def test_what_the_data_lack_is_named():
    check_terms(["ce", "kd", "pefd"], labels=True, teacher=True)
    with pytest.raises(RecipeError, match="The data has no labels, but ce in the objective needs them"):
        check_terms(["ce", "kd", "pefd"], labels=False, teacher=True)
    with pytest.raises(RecipeError, match="There is no teacher, but kd and pefd in the objective need one"):
        check_terms(["ce", "kd", "pefd"], labels=True, teacher=False)
    with pytest.raises(RecipeError, match=r"no labels.*no teacher"):
        check_terms(["ce", "kd", "pefd"], labels=False, teacher=False)
    check_terms(["pefd"], labels=False, teacher=True)
