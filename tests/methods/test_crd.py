"""CRD against the authors' values, against a naive second writing; its draws, its banks and its state."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods import Setting
from potstill.methods.banks import Banks
from potstill.methods.base import Known
from potstill.methods.crd import CRD, crd, scores
from potstill.methods.numerics import unit
from potstill.networks.features import Features, FeatureSpec

SIZES = [(2, 3, 7), (2, 9, 4), (7, 6, 6)]  # batch, student, teacher
DRAWS = pytest.mark.parametrize("draw", ["batch", "image"])


def naive_side(anchors: Tensor, bank: Tensor, own: list[int], rows: list[list[int]], n: int, z: float | None) -> float:
    """The published formula with lists and loops; without z, with the mean of these scores times n."""
    e, m = anchors.tolist(), bank.tolist()
    score = [
        [sum(a * b for a, b in zip(e[i], m[j], strict=True)) / 0.07 for j in (own[i], *rows[i])] for i in range(len(e))
    ]
    if z is None:
        z = n * sum(math.exp(x) for row in score for x in row) / sum(len(row) for row in score)
    total = 0.0
    for first, *others in score:
        if not others:
            continue
        noise, x = len(others) / n, math.exp(first) / z
        total -= math.log(x / (x + noise + 1e-7))
        total -= sum(math.log(noise / (math.exp(y) / z + noise + 1e-7)) for y in others)
    return total / len(score)


def batch_of(index: Tensor, labels: Tensor | None, weight: float = 1.0) -> Batch:
    return Batch(torch.zeros(len(index), 3, 1, 1), labels, index, torch.zeros_like(index), weight)


def build(d: int, m: int, labels: Tensor, **hyper) -> CRD:
    """A method in float64 with labels of all images."""
    setting = Setting(FeatureSpec(5, d), FeatureSpec(0, m), samples=len(labels), batch_size=8)
    method = CRD(setting, **{"negatives": 6, "dim": 4, **hyper}).double()
    method.prepare(Known(labels))
    return method


def case(b: int, d: int, m: int, **hyper) -> tuple[CRD, Features, Features, Batch]:
    labels = torch.arange(20) % 3
    index = torch.randperm(20)[:b]
    student = Features(torch.randn(b, 5), torch.randn(b, d, dtype=torch.float64).requires_grad_())
    teacher = Features(torch.empty(b, 0), torch.randn(b, m, dtype=torch.float64).requires_grad_())
    return build(d, m, labels, **hyper), student, teacher, batch_of(index, labels[index])


def embedded(method: CRD, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    return unit(method.student_embed(student.embedding)), unit(method.teacher_embed(teacher.embedding))


def stored_case(g) -> CRD:
    """The case's method, with the given draws in place of its own."""
    (n, dim), k = g.tensors["state.memory_v1.step0"].shape, g.tensors["in.step1.contrast_index"].shape[1] - 1
    d, m = (g.tensors[f"param.embed_{side}.linear.weight"].shape[1] for side in "st")
    setting = Setting(FeatureSpec(0, d), FeatureSpec(0, m), samples=n)
    method = CRD(setting, negatives=k, dim=dim, draw="image").to(g.dtype)
    method.prepare(Known(g.inputs["dataset_labels"]))
    assert method.banks.count == k
    names = {"banks.student": "state.memory_v1.step0", "banks.teacher": "state.memory_v2.step0"}
    for side in ("student", "teacher"):
        names |= {f"{side}_embed.{part}": f"param.embed_{side[0]}.linear.{part}" for part in ("weight", "bias")}
    method.load_state_dict({"log_z": method.log_z} | {key: g.parameter(name) for key, name in names.items()})
    return method


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["crd", "crd_student_wider"])
def test_two_steps_agree_with_the_authors_code(golden, name: str, dtype: torch.dtype):
    g = golden(name, dtype)
    method = stored_case(g)
    sides = (("s", 0, "v1", method.student_embed), ("t", 1, "v2", method.teacher_embed))
    totals = []
    for step in ("step1", "step2"):
        s, t = g.inputs[f"{step}.student.embedding"].requires_grad_(), g.inputs[f"{step}.teacher.embedding"]
        index, contrast = g.inputs[f"{step}.index"], g.inputs[f"{step}.contrast_index"]
        assert torch.equal(index, contrast[:, 0])
        method.banks.negatives = lambda _, given=contrast[:, 1:]: (given, None)
        before = [method.banks.student.clone(), method.banks.teacher.clone()]
        labels = g.inputs["dataset_labels"][index]
        student, teacher = Features(t[:, :0], s), Features(t[:, :0], t)
        loss = method(student, teacher, batch_of(index, labels))
        g.check(f"out.loss.{step}.crd", loss)
        totals.append(0.8 * loss)
        g.check(f"out.loss.{step}.total", totals[-1])
        method.zero_grad()
        totals[-1].backward()
        g.check(f"out.grad.{step}.student.embedding", s.grad)
        vectors = embedded(method, student, teacher)
        for side, number, version, layer in sides:
            positive, negative = scores(vectors[number], before[1 - number], index, contrast[:, 1:])
            log_z = method.log_z[number]
            g.check(f"out.loss.{step}.Z_{version}", log_z.exp())
            g.check(f"out.inter.{step}.out_{side}", torch.cat([positive[:, None], negative], 1).exp() / log_z.exp())
            g.check(f"out.loss.{step}.{side}_loss", crd(positive, negative, log_z, method.samples))
            g.check(f"out.grad.{step}.embed_{side}.linear.weight", layer.weight.grad)
            g.check(f"out.grad.{step}.embed_{side}.linear.bias", layer.bias.grad)
            bank = (method.banks.student, method.banks.teacher)[number]
            g.check(f"out.state.memory_{version}.{step}", bank[index])
            rest = torch.ones(len(bank), dtype=torch.bool).index_fill(0, index, False)
            assert torch.equal(bank[rest], before[number][rest])
    g.check("out.loss.total", sum(totals))
    assert g.all_compared()


@DRAWS
@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_two_steps_agree_with_a_naive_writing(b: int, d: int, m: int, draw: str):
    torch.manual_seed(b + d)
    method, student, teacher, batch = case(b, d, m, draw=draw)
    z: list[float | None] = [None, None]
    for step in (1, 2):
        banks = [method.banks.student.clone(), method.banks.teacher.clone()]
        torch.manual_seed(step)
        rows, others = method.banks.negatives(batch.index)
        if others is None:
            drawn = rows.tolist()
        else:
            drawn = [[r for r, counts in zip(rows.tolist(), row, strict=True) if counts] for row in others.tolist()]
        torch.manual_seed(step)
        loss = method(student, teacher, batch)
        s, t = embedded(method, student, teacher)
        own = batch.index.tolist()
        expected = naive_side(s, banks[1], own, drawn, 20, z[0]) + naive_side(t, banks[0], own, drawn, 20, z[1])
        assert loss.item() == pytest.approx(expected, rel=1e-10)
        z = method.log_z.exp().tolist()
        for vectors, old, new in zip((s, t), banks, (method.banks.student, method.banks.teacher), strict=True):
            for i, row in enumerate(own):
                mean = [0.5 * a + 0.5 * e for a, e in zip(old[row].tolist(), vectors[i].tolist(), strict=True)]
                length = math.sqrt(sum(x * x for x in mean))
                assert new[row].tolist() == pytest.approx([x / length for x in mean], rel=1e-9)


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_without_banks_the_batch_is_compared_with_itself(b: int, d: int, m: int):
    torch.manual_seed(b)
    method, student, teacher, batch = case(b, d, m, bank=False)
    assert method.banks is None
    labels = batch.targets.tolist()
    loss = method(student, teacher, batch)
    s, t = embedded(method, student, teacher)
    others = [[j for j in range(b) if labels[j] != labels[i]] for i in range(b)]
    own = list(range(b))
    expected = naive_side(s, t, own, others, 1, None) + naive_side(t, s, own, others, 1, None)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    alone = method(student, teacher, batch_of(batch.index, torch.zeros(b).long()))
    alone.backward()  # of one class: no negatives, nothing to learn
    assert alone.item() == 0
    assert not student.embedding.grad.any()


def test_images_that_are_evaluated_are_compared_among_themselves_and_leave_no_trace():
    torch.manual_seed(0)
    method, student, teacher, batch = case(7, 6, 5)
    elsewhere = batch_of(batch.index + 1000, batch.targets)  # the banks have no such rows
    method.eval()
    first = method(student, teacher, elsewhere)
    assert first.isfinite()
    assert method.log_z.isnan().all()
    method.train()
    method(student, teacher, batch)
    state = copy.deepcopy(method.state_dict())
    method.eval()
    loss = method(student, teacher, elsewhere)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    own = [[j for j in range(7) if batch.targets[j] != batch.targets[i]] for i in range(7)]
    vectors, z = embedded(method, student, teacher), method.log_z.exp().tolist()
    expected = sum(naive_side(vectors[i], vectors[1 - i], list(range(7)), own, 20, z[i]) for i in (0, 1))
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@DRAWS
@pytest.mark.parametrize("sizes", [[10, 10, 10, 10], [1, 2, 30, 7]])
@pytest.mark.parametrize("count", [1, 5, 10, 10_000])
def test_the_draws_are_of_other_classes_and_as_many_as_asked(sizes: list[int], count: int, draw: str):
    torch.manual_seed(count)
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])[torch.randperm(40)]
    banks = Banks(40, 4, count, 0.5, draw == "batch", 8)
    banks.sort(labels)
    expected = min(count, 40 - max(sizes))
    assert banks.count == expected
    index = torch.arange(40)
    rows, others = banks.negatives(index)
    if draw == "batch":
        assert len(set(rows.tolist())) == len(rows) <= expected + max(sizes)  # none twice
        assert others.sum(1).tolist() == [expected] * 40
        assert not (others.bool() & (labels[rows] == labels[:, None])).any()
    else:
        assert rows.shape == (40, expected)
        assert (labels[rows] != labels[:, None]).all()


@DRAWS
def test_every_image_of_another_class_is_drawn_equally_often(draw: str):
    torch.manual_seed(7)
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 2, 2, 3])
    banks = Banks(9, 4, 3, 0.5, draw == "batch", 8)
    banks.sort(labels)
    seen, rounds = torch.zeros(9, 9), 6000
    for _ in range(rounds):
        rows, others = banks.negatives(torch.arange(9))
        if others is None:
            seen.scatter_add_(1, rows, torch.ones(rows.shape))
        else:
            seen.index_add_(1, rows, others)
    other = labels[:, None] != labels
    expected = 3 * rounds / other.sum(1, keepdim=True) * other
    # Six standard deviations of a binomial: about one run in a million would fail by chance, and the seed is fixed.
    assert ((seen - expected).abs() <= 6 * (expected * (1 - expected / (3 * rounds)) + 1e-9).sqrt()).all()


@DRAWS
def test_the_step_is_a_function_of_torchs_seed(draw: str):
    losses = []
    for _ in range(2):
        torch.manual_seed(4)
        method, student, teacher, batch = case(7, 6, 5, draw=draw)
        losses.append([method(student, teacher, batch).item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


def test_the_shared_scores_are_the_picked_ones():
    torch.manual_seed(3)
    anchors, bank = torch.randn(4, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    index, rows = torch.tensor([3, 1, 8, 0]), torch.tensor([5, 2, 7])
    shared, picked = scores(anchors, bank, index, rows), scores(anchors, bank, index, rows.expand(4, 3))
    torch.testing.assert_close(shared, picked)
    others = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).bool()
    log_z = torch.tensor(2.0)
    whole = crd(*shared, log_z, 9, others)
    parts = [crd(shared[0][[i]], shared[1][i, others[i]][None], log_z, 9) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    torch.testing.assert_close(crd(*shared, log_z, 9, others.double()), whole)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(1)
    bank, index, rows = torch.randn(9, 3).double(), torch.tensor([3, 1]), torch.tensor([5, 2, 7])
    anchors = torch.randn(2, 3).double().requires_grad_()
    others = torch.tensor([[1, 0, 1], [1, 1, 1]])
    log_z = torch.tensor(3.0).double()
    assert torch.autograd.gradcheck(lambda e: crd(*scores(e, bank, index, rows, 0.5), log_z, 9, others), anchors)


@DRAWS
def test_no_gradient_reaches_the_teacher_nor_the_banks(draw: str):
    method, student, teacher, batch = case(7, 6, 5, draw=draw)
    method(student, teacher, batch).backward()
    assert teacher.embedding.grad is None
    assert student.embedding.grad.any()
    assert all(p.grad.any() for p in method.parameters())
    assert {name for name, _ in method.named_parameters()} == {
        "student_embed.weight", "student_embed.bias", "teacher_embed.weight", "teacher_embed.bias",
    }  # fmt: skip


@pytest.mark.parametrize("bank", [True, False])
def test_zero_embeddings_give_numbers(bank: bool):
    method, student, teacher, batch = case(4, 3, 5, bank=bank)
    for layer in (method.student_embed, method.teacher_embed):
        torch.nn.init.zeros_(layer.bias)
    zero = torch.zeros(4, 3, dtype=torch.float64).requires_grad_()
    for _ in range(2):
        loss = method(Features(student.logits, zero), Features(teacher.logits, torch.zeros(4, 5).double()), batch)
        loss.backward()
        assert loss.isfinite()
        assert not zero.grad.any()
    assert all(value.isfinite().all() for value in method.state_dict().values())


def test_sharp_temperatures_stay_numbers():
    torch.manual_seed(1)
    method, student, teacher, batch = case(7, 6, 5, temperature=1e-3)  # exp(1000) is no float
    loss = method(student, teacher, batch)
    loss.backward()
    assert loss.isfinite()
    assert student.embedding.grad.isfinite().all()


@DRAWS
def test_a_state_is_taken_up(draw: str):
    torch.manual_seed(5)
    method, student, teacher, batch = case(7, 6, 5, draw=draw)
    method(student, teacher, batch)
    state = copy.deepcopy(method.state_dict())
    assert set(state) == {
        "log_z", "banks.student", "banks.teacher",
        "student_embed.weight", "student_embed.bias", "teacher_embed.weight", "teacher_embed.bias",
    }  # fmt: skip
    other = build(6, 5, torch.arange(20) % 3, draw=draw)
    other.load_state_dict(state)
    losses = []
    for each in (method, other):
        torch.manual_seed(9)
        losses.append([each(student, teacher, batch).item() for _ in range(2)])
    assert losses[0] == losses[1]
    assert torch.equal(other.log_z, state["log_z"])  # the first batch's, not the resumed run's first
    assert torch.equal(method.banks.student, other.banks.student)


def test_a_filler_counts_for_nothing():
    method, student, teacher, batch = case(1, 6, 5)
    before = method.banks.student.clone()
    method(student, teacher, batch_of(batch.index, batch.targets, weight=0.0))
    assert torch.equal(method.banks.student, before)


# Each process: a batch of its own size, then a step in which the second has a filler.
RANK = """
import sys
import torch
import torch.distributed as dist
from potstill.batch import Batch
from potstill.methods.banks import Banks
from potstill.methods.base import Known, Setting
from potstill.methods.crd import CRD
from potstill.networks.features import Features, FeatureSpec

rank, meeting, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}/meet{size}", rank=rank, world_size=2)
torch.manual_seed(0)
labels = torch.arange(20) % 3
setting = Setting(FeatureSpec(0, 6), FeatureSpec(0, 5), samples=20, batch_size=size)
method = CRD(setting, negatives=6, dim=4)
method.prepare(Known(labels))
student, teacher = torch.randn(8, 6), torch.randn(8, 5)
parts = [[slice(0, 4), slice(4, 7)], [slice(0, 3), slice(0, 1)]]
torch.manual_seed(rank)
for step, part in enumerate(parts):
    here = part[rank]
    index = torch.arange(8)[here] + 10 * step
    weight = 0.0 if (step, rank) == (1, 1) else 1.0
    batch = Batch(torch.zeros(len(index), 3, 1, 1), labels[index], index, torch.zeros_like(index), weight)
    method(Features(student[here, :0], student[here]), Features(teacher[here, :0], teacher[here]), batch)
torch.save(method.state_dict(), f"{meeting}/{size}-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("size", [5, 0])  # the largest batch, known and not known
def test_the_banks_of_several_processes_stay_equal(tmp_path: Path, size: int):
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path), str(size)] for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    one, two = (torch.load(tmp_path / f"{size}-{rank}.pt") for rank in (0, 1))
    assert set(one) == set(two)
    assert all(torch.equal(value, two[key]) for key, value in one.items())

    torch.manual_seed(0)
    alone = CRD(Setting(FeatureSpec(0, 6), FeatureSpec(0, 5), samples=20), negatives=6, dim=4)
    labels, student, teacher = torch.arange(20) % 3, torch.randn(8, 6), torch.randn(8, 5)
    alone.prepare(Known(labels))
    for step, here in enumerate((slice(0, 7), slice(0, 3))):  # both processes' images, without the filler
        index = torch.arange(8)[here] + 10 * step
        batch = batch_of(index, labels[index])
        alone(Features(student[here, :0], student[here]), Features(teacher[here, :0], teacher[here]), batch)
    for key in ("banks.student", "banks.teacher"):
        torch.testing.assert_close(one[key], alone.state_dict()[key])


@pytest.mark.parametrize("what", ["function", "method"])
def test_what_is_compiled_agrees(what: str):
    torch.manual_seed(6)
    method, student, teacher, batch = case(7, 6, 5, bank=False)
    rows, others = torch.arange(7), batch.targets[:, None] != batch.targets

    def loss(s: Tensor, t: Tensor) -> Tensor:
        if what == "method":
            return method(Features(student.logits, s), Features(teacher.logits, t), batch)
        return crd(*scores(unit(s[:, :5]), unit(t), rows, rows), torch.tensor(2.0), 7, others)

    inputs = (student.embedding, teacher.embedding.detach())
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    expected = loss(*inputs)
    torch.testing.assert_close(found, expected)
    (a,), (b,) = (torch.autograd.grad(value, student.embedding) for value in (found, expected))
    torch.testing.assert_close(a, b)


def test_half_precision_is_computed_in_full():
    e, bank, index = torch.randn(4, 8).bfloat16(), torch.randn(6, 8), torch.arange(4)
    found, expected = (scores(x, bank, index, torch.tensor([4, 5])) for x in (e, e.float()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_banks_are_taken_where_memory_holds_them():
    def banked(samples: int, **hyper) -> bool:
        with torch.device("meta"):
            return CRD(Setting(FeatureSpec(0, 3), FeatureSpec(0, 4), samples=samples), **hyper).banks is not None

    assert banked(50_000)
    assert banked(4_194_304)  # 4 GiB
    assert not banked(4_194_305)
    assert banked(4_194_305, bank=True)
    assert banked(4_194_305, dim=64)
    assert not banked(50_000, bank=False)
    assert not banked(0)


def test_what_is_refused():
    setting = Setting(FeatureSpec(5, 4), FeatureSpec(0, 3), samples=20)
    for wrong in ({"negatives": 0}, {"dim": 0}, {"temperature": 0.0}, {"temperature": math.nan}, {"momentum": 1.0}):
        with pytest.raises(RecipeError, match=r"crd got negatives=.*; expected whole numbers from 1"):
            CRD(setting, **wrong)
    with pytest.raises(RecipeError, match="their number is not known; use bank=false"):
        CRD(Setting(FeatureSpec(5, 4), FeatureSpec(0, 3)), bank=True)
    with pytest.raises(RecipeError, match="crd without a bank compares the images of a batch"):
        CRD(Setting(FeatureSpec(5, 4), FeatureSpec(0, 3), samples=20, batch_size=1), bank=False)
    with pytest.raises(RecipeError, match="crd learns from a teacher, and there is none"):
        CRD(Setting(FeatureSpec(5, 4), samples=20))
    for labels, sentence in (
        (None, "these have no labels; take crd out"),
        (torch.arange(19), "crd's banks have 20 rows and there are 19 labels"),
        (torch.ones(20).long(), "all of these are of one; take crd out"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            CRD(setting).prepare(Known(labels))
    method, student, teacher, batch = case(4, 3, 5)
    for targets in (None, torch.full((4, 3), 1 / 3)):
        with pytest.raises(RecipeError, match="by one label an image: use labels, and no mixup or CutMix"):
            method(student, teacher, batch_of(batch.index, targets))
    with pytest.raises(RecipeError, match="crd learns from a teacher, and there is none"):
        method(student, None, batch)
    untold = CRD(Setting(FeatureSpec(5, 3), FeatureSpec(0, 5), samples=20)).double()
    with pytest.raises(RecipeError, match=r"was told no labels: call prepare\(Known\(labels\)\)"):
        untold(student, teacher, batch)
