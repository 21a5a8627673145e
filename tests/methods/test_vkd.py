"""VkD against the authors' code, against a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.ce import ce
from potstill.methods.kd import kd
from potstill.methods.vkd import VkD, normalised_teacher, vkd, vkd_tokens, whiten
from potstill.networks.features import Features, FeatureSpec
from potstill.projectors.orthogonal import OrthogonalLinear

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
SIZES = [(2, 4, 9), (2, 9, 4), (7, 6, 6), (1, 3, 5)]  # batch, student, teacher
SHAPES = [(8, 14), (14, 8), (10, 10), (1, 5), (5, 1), (1, 1)]  # student, teacher


def naive_vkd(student: Tensor, weight: Tensor, teacher: Tensor) -> float:
    """Projection, layer norm and smooth L1 with lists and loops."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        mean = sum(t) / len(t)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in t) / len(t) + 1e-5)
        for row, x in zip(weight.tolist(), t, strict=True):
            off = abs(sum(w * a for w, a in zip(row, s, strict=True)) - (x - mean) / deviation)
            total += off * off / 2 if off < 1 else off - 0.5
    return total / teacher.numel()


def naive_tokens(projected: Tensor, teacher: Tensor) -> float:
    """Standardised columns and smooth L1 with lists and loops."""
    columns = []
    for tokens in (projected, teacher):
        made = []
        for column in tokens.reshape(-1, tokens.shape[-1]).T.tolist():
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1))
            made.append([(x - mean) / deviation for x in column])
        columns.append(made)
    offs = [abs(a - b) for p, t in zip(*columns, strict=True) for a, b in zip(p, t, strict=True)]
    return sum(x * x / 2 if x < 1 else x - 0.5 for x in offs) / len(offs)


def setting_of(d: int, m: int, batch_size: int = 0) -> Setting:
    return Setting(FeatureSpec(5, d), FeatureSpec(0, m), batch_size=batch_size)


def run(method: VkD, s: Tensor, t: Tensor) -> Tensor:
    b = len(s)
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return method(Features(torch.zeros(b, 5), s), Features(torch.zeros(b, 0), t), batch)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@DTYPES
@pytest.mark.parametrize("name", ["vkd", "vkd_student_wider", "vkd_square"])
def test_golden(golden, name: str, dtype: torch.dtype):
    case = golden(name, dtype)
    inputs = case.inputs
    tokens, cls, dist = (inputs[f"student.{x}"].requires_grad_() for x in ("tokens", "cls", "dist"))
    heads = {
        f"{head}.{kind}": case.parameter(f"param.{head}.{kind}").requires_grad_()
        for head in ("head", "head_dist")
        for kind in ("weight", "bias")
    }
    embedding, teacher = tokens.mean(1), inputs["teacher.map0"].mean((2, 3))
    method = VkD(setting_of(tokens.shape[2], teacher.shape[1])).to(dtype)
    method.projector.load_weight(case.tensors["out.inter.orthogonal_weight"])
    representation = run(method, embedding, teacher)
    xe = ce(F.linear(cls, heads["head.weight"], heads["head.bias"]), inputs["labels"])
    logits = F.linear(dist, heads["head_dist.weight"], heads["head_dist.bias"])
    kl = kd(logits, inputs["teacher.logits"], temperature=1.0)
    total = xe + representation + kl
    total.backward()
    for term, value in (("xe", xe), ("repr", representation), ("kl", kl), ("total", total)):
        case.check(f"out.loss.{term}", value)
    case.check("out.inter.orthogonal_weight", method.projector.weight)
    case.check("out.inter.teacher_normalised", normalised_teacher(teacher))
    case.check("out.inter.projected", method.projector(embedding))
    for key, tensor in (("tokens", tokens), ("cls", cls), ("dist", dist)):
        case.check(f"out.grad.student.{key}", tensor.grad)
    for key, tensor in heads.items():
        case.check(f"out.grad.{key}", tensor.grad)
    free = case.parameter("out.inter.orthogonal_weight").requires_grad_()  # as a matrix that may be any
    vkd(F.linear(embedding.detach(), free), teacher).backward()
    case.check("out.grad_repr.effective_weight", free.grad)
    assert case.all_compared()


@DTYPES
def test_golden_tokens(golden, dtype: torch.dtype):
    case = golden("vkd_vidt_tokens", dtype)
    inputs = case.inputs
    student = {key: inputs[f"student.{key}"].requires_grad_() for key in ("map0", "map1", "body_det", "neck_det")}
    of_place = {"patch0": "map0", "patch1": "map1", "body": "body_det", "neck": "neck_det"}
    losses, parameters = {}, {}
    for place, key in of_place.items():
        s, t = student[key], inputs[f"teacher.{key}"]
        if key.startswith("map"):
            s, t = s.flatten(2).transpose(1, 2), t.flatten(2).transpose(1, 2)
        project = OrthogonalLinear(8, 8).to(dtype)
        project.load_weight(case.tensors[f"out.inter.{place}.orthogonal_weight"])
        case.check(f"out.inter.{place}.orthogonal_weight", project.weight)
        scale, bias = (case.parameter(f"param.{place}.{x}").requires_grad_() for x in ("scale", "bias"))
        parameters |= {f"{place}.scale": scale, f"{place}.bias": bias}
        losses[place] = vkd_tokens(scale * project(s) + bias, t)
        case.check(f"out.loss.{place}", losses[place])
    loss = sum(losses.values())
    (4 * loss).backward()
    case.check("out.loss.loss_distil", loss)
    case.check("out.loss.total", 4 * loss)
    for key, tensor in student.items():
        case.check(f"out.grad.student.{key}", tensor.grad)
    for key, tensor in parameters.items():
        case.check(f"out.grad.{key}", tensor.grad)
    assert case.all_compared()


@DTYPES
def test_golden_whitening(golden, dtype: torch.dtype):
    case = golden("vkd_whitening", dtype)
    s, t = case.inputs["student.embedding"].requires_grad_(), case.inputs["teacher.embedding"]
    weight = case.parameter("param.projector.weight").requires_grad_()
    total = vkd(F.linear(s, weight), t, "whitening")
    total.backward()
    case.check("out.loss.total", total)
    case.check("out.loss.smooth_l1_cholesky", total)
    case.check("out.grad.student.embedding", s.grad)
    case.check("out.grad.projector.weight", weight.grad)
    case.check("out.loss.mse_cholesky", vkd(F.linear(s, weight), t, "whitening", "mse"))
    case.check("out.inter.teacher_whitened", whiten(t))
    case.check("out.inter.teacher_whitened_zca", whiten(t, zca=True))
    for name, distance in (("smooth_l1", F.smooth_l1_loss), ("mse", F.mse_loss)):
        case.check(f"out.loss.{name}_zca", distance(F.linear(s, weight), whiten(t, zca=True)))
    assert case.all_compared()
    method = VkD(setting_of(10, 6, batch_size=24), normalisation="whitening").to(dtype)
    method.projector.load_weight(case.tensors["param.projector.weight"])
    torch.testing.assert_close(run(method, s, t), total.detach(), rtol=1e-6, atol=0)  # the stored weight is float32


@pytest.mark.parametrize(("b", "d", "m"), SIZES)
def test_agrees_with_a_naive_writing(b: int, d: int, m: int):
    s, t = random(b, d), 3 * random(b, m)
    method = VkD(setting_of(d, m)).double()
    assert run(method, s, t).item() == pytest.approx(naive_vkd(s, method.projector.weight, t), rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 3), (4, 7, 3), (2, 3, 5, 4)])
def test_tokens_agree_with_a_naive_writing(shape: tuple[int, ...]):
    p, t = random(*shape), 3 * random(*shape).flip(0) + 1
    assert vkd_tokens(p, t).item() == pytest.approx(naive_tokens(p, t), rel=1e-12)
    torch.testing.assert_close(vkd_tokens(3 * p - 2, t), vkd_tokens(p, t))


def off_orthonormal(weight: Tensor) -> float:
    short = min(weight.shape)
    product = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    return (product - torch.eye(short, dtype=weight.dtype)).abs().max().item()


@pytest.mark.parametrize(("d", "m"), SHAPES)
def test_the_projector_takes_any_orthonormal_weight(d: int, m: int):
    for seed in range(5):
        torch.manual_seed(seed)
        weight = torch.nn.init.orthogonal_(torch.empty(m, d, dtype=torch.float64))
        if seed == 4:
            weight = -torch.eye(m, d, dtype=torch.float64)  # as far as can be from what Cayley's map starts at
        project = OrthogonalLinear(d, m).double()
        project.load_weight(weight)
        torch.testing.assert_close(project.weight, weight)
        project.float().load_weight(weight)
        torch.testing.assert_close(project.weight, weight.float())


@pytest.mark.parametrize("decay", [0.0, 0.5, 5.0])
@pytest.mark.parametrize(("d", "m"), SHAPES)
def test_the_projector_stays_orthonormal_in_training_and_under_weight_decay(d: int, m: int, decay: float):
    """The authors' parametrisation becomes exactly zero in the first step with any decay."""
    torch.manual_seed(0)
    project, first = OrthogonalLinear(d, m), None
    optimizer = torch.optim.AdamW(project.parameters(), lr=0.1, weight_decay=decay)
    pull = torch.randn(m, d)
    for _ in range(30):
        loss = (project.weight * pull).sum()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert off_orthonormal(project.weight.detach()) < 1e-5
    if not decay and (d, m) != (1, 1):  # of one value the sign is fixed
        assert loss.item() < first


def test_the_projector_reaches_the_nearest_orthonormal_matrix():
    """What training can reach: the polar factor of a target is the best orthonormal weight there is."""
    torch.manual_seed(0)
    target = torch.randn(7, 4, dtype=torch.float64)
    left, _, right = torch.linalg.svd(target, full_matrices=False)
    project = OrthogonalLinear(4, 7).double()
    optimizer = torch.optim.Adam(project.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (project.weight - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(project.weight, left @ right, rtol=0, atol=1e-3)


def test_gradients_are_those_of_finite_differences():
    for d, m in ((3, 5), (5, 3), (4, 4)):
        method = VkD(setting_of(d, m)).double()
        with torch.no_grad():
            method.projector.orthonormal.free.normal_()
        names, values = zip(*method.named_parameters(), strict=True)
        s, t = random(6, d).requires_grad_(), random(6, m)

        def loss(s: Tensor, *values: Tensor, method=method, names=names, t=t) -> Tensor:
            state = dict(zip(names, values, strict=True))
            features = Features(t, s), Features(t, t)
            return torch.func.functional_call(method, state, (*features, None))

        assert torch.autograd.gradcheck(loss, (s, *values))


def test_the_projector_is_not_decayed_and_is_state():
    assert not VkD.decays
    torch.manual_seed(0)
    one, other = VkD(setting_of(4, 6)), VkD(setting_of(4, 6))
    with torch.no_grad():
        one.projector.orthonormal.free.normal_()
    s, t = torch.randn(3, 4), torch.randn(3, 6)
    assert not torch.equal(run(one, s, t), run(other, s, t))
    other.load_state_dict(one.state_dict())
    assert torch.equal(run(one, s, t), run(other, s, t))


@pytest.mark.parametrize("zca", [False, True])
def test_whitened_embeddings_have_the_identity_as_covariance(zca: bool):
    x = random(40, 5) @ random(5, 5) + 7
    white = whiten(x, zca=zca)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(white.mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)
    # values that never change or repeat another are no numbers without a floor below the covariance
    for worse in (torch.zeros(40, 5), torch.cat([x, x, torch.ones(40, 2)], 1), 1e6 * torch.cat([x, x], 1).float()):
        assert whiten(worse, zca=zca).isfinite().all()
    assert not whiten(torch.zeros(40, 5), zca=zca).any()


def test_zeros_give_numbers():
    s = torch.zeros(9, 4, requires_grad=True)
    for normalisation in ("layer_norm", "whitening"):
        for distance in ("smooth_l1", "mse"):
            method = VkD(setting_of(4, 6), normalisation=normalisation, distance=distance)
            loss = run(method, s, torch.zeros(9, 6))
            loss.backward()
            assert loss.item() == 0
            assert not any(x.grad.any() for x in (s, *method.parameters()))
    for tokens, target in ((s, torch.randn(9, 4)), (torch.randn(9, 4, requires_grad=True), torch.zeros(9, 4))):
        tokens.grad = None
        loss = vkd_tokens(tokens, target)
        loss.backward()
        assert loss.item() > 0
        assert tokens.grad.isfinite().all()
    assert not s.grad.any()  # a constant channel is left alone


def test_half_precision_embeddings_are_computed_in_full():
    p, t = torch.randn(8, 5).bfloat16(), torch.randn(8, 5).half()
    for loss in (vkd, lambda p, t: vkd(p, t, "whitening"), vkd_tokens):
        assert loss(p, t).dtype == torch.float32
        assert torch.equal(loss(p, t), loss(p.float(), t.float()))


@pytest.mark.parametrize("normalisation", ["layer_norm", "whitening"])
@pytest.mark.parametrize(("d", "m"), [(4, 6), (6, 4), (5, 5)])
def test_in_one_graph(d: int, m: int, normalisation: str):
    method = VkD(setting_of(d, m), normalisation=normalisation)
    inputs = (torch.randn(8, d, requires_grad=True), torch.randn(8, m))
    leaves = [inputs[0], *method.parameters()]
    torch._dynamo.reset()
    found = torch.compile(lambda s, t: run(method, s, t), fullgraph=True, backend="aot_eager")(*inputs)
    expected = run(method, *inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    torch._dynamo.reset()


def test_tokens_in_one_graph():
    p, t = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4)
    torch._dynamo.reset()
    found, expected = torch.compile(vkd_tokens, fullgraph=True, backend="aot_eager")(p, t), vkd_tokens(p, t)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, p), torch.autograd.grad(expected, p))
    torch._dynamo.reset()


def test_no_gradient_reaches_the_teacher():
    p, t = random(9, 5).requires_grad_(), random(9, 5).flip(0).requires_grad_()
    for loss in (vkd(p, t), vkd(p, t, "whitening"), vkd_tokens(p, t)):
        p.grad = None
        loss.backward()
        assert t.grad is None
        assert p.grad.any()


def test_an_epochs_last_batch_that_is_too_small_to_whiten_counts_for_nothing():
    method = VkD(setting_of(4, 6, batch_size=8), normalisation="whitening")
    s = torch.randn(6, 4, requires_grad=True)
    loss = run(method, s, torch.randn(6, 6))
    loss.backward()
    assert loss.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in (s, *method.parameters()))
    assert run(method, torch.randn(7, 4), torch.randn(7, 6)).item() > 0


def test_what_is_refused():
    with pytest.raises(NetworkError, match=r"projected ones are \(2, 3\) and the teacher's \(2, 1\)"):
        vkd(torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(NetworkError, match=r"projected ones are \(1, 3\) and the teacher's \(1, 3\)"):
        vkd_tokens(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(NetworkError, match=r"takes a batch of more than 3 images; got 3\. Raise batch_size"):
        whiten(torch.ones(3, 3))
    with pytest.raises(RecipeError, match=r"embedding has values \(64\), and batch_size is 64\. Raise it, or take"):
        VkD(setting_of(8, 64, batch_size=64), normalisation="whitening")
    with pytest.raises(RecipeError, match=r"normalisation is 'layernorm'; .* Did you mean 'layer_norm'"):
        VkD(setting_of(8, 64), normalisation="layernorm")
    with pytest.raises(RecipeError, match="distance is 'l1'; it is smooth_l1 or mse"):
        VkD(setting_of(8, 64), distance="l1")
    with pytest.raises(RecipeError, match="vkd learns from a teacher, and there is none"):
        VkD(Setting(FeatureSpec(5, 4)))
    with pytest.raises(NetworkError, match=r"has shape \(6, 4\); got \(4, 6\)"):
        OrthogonalLinear(4, 6).load_weight(torch.eye(4, 6))
    with pytest.raises(NetworkError, match="not orthonormal"):
        OrthogonalLinear(4, 6).load_weight(torch.ones(6, 4))
    with pytest.raises(NetworkError, match="lengths of at least 1; got 0 -> 6"):
        OrthogonalLinear(0, 6)
