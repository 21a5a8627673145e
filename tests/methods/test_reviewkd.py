"""ReviewKD against the authors' code, a naive second writing, at its edges, and as a method."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.methods.reviewkd import ReviewKD, hcl
from potstill.networks.features import Features, FeatureSpec, MapSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
Shapes = list[tuple[int, int, int]]  # channels, height, width

# student, teacher (stages only), length of the student's embedding and of the teacher's, batch
SIZES: list[tuple[Shapes, Shapes, int, int, int]] = [
    ([(3, 8, 8), (4, 4, 4)], [(5, 8, 8), (7, 4, 4)], 6, 9, 3),  # narrower
    ([(6, 8, 8), (9, 4, 4)], [(4, 8, 8), (5, 4, 4)], 8, 3, 2),  # wider, two images
    ([(3, 6, 10), (5, 3, 5)], [(4, 6, 10), (6, 3, 5)], 6, 6, 3),  # not square
    ([(3, 4, 4), (5, 2, 2), (6, 1, 1)], [(4, 8, 8), (6, 4, 4), (7, 2, 2)], 7, 5, 3),  # the teacher's larger
    ([(3, 8, 8), (5, 3, 3)], [(4, 4, 4), (6, 5, 5)], 7, 5, 3),  # the teacher's smaller, and no multiple
]


def spec(shapes: Shapes, embedding: int, stem: bool = True) -> FeatureSpec:
    maps = [MapSpec(f"stage{k}", c, 2**k) for k, (c, _, _) in enumerate(shapes)]
    return FeatureSpec(5, embedding, ((MapSpec("stem", 2, 1),) if stem else ()) + tuple(maps))


def batch_of(count: int) -> Batch:
    index = torch.arange(count)
    return Batch(torch.zeros(count, 3, 1, 1), None, index, index)


def random_maps(batch: int, shapes: Shapes, dtype: torch.dtype) -> tuple[Tensor, ...]:
    stem = torch.full((batch, 2, 3, 3), torch.nan, dtype=dtype)  # who reads it is found
    return (stem, *(torch.randn(batch, *shape, dtype=dtype).requires_grad_() for shape in shapes))


def case(
    student: Shapes, teacher: Shapes, d: int, m: int, b: int, dtype: torch.dtype = torch.float64, **hyper: Any
) -> tuple[ReviewKD, Features, Features]:
    torch.manual_seed(d + m + b)
    method = ReviewKD(Setting(spec(student, d), spec(teacher, m)), **hyper).to(dtype)
    own, theirs = random_maps(b, student, dtype), random_maps(b, teacher, dtype)
    key = "preacts" if hyper.get("student_preacts") else "maps"
    s = Features(torch.randn(b, 5), torch.randn(b, d, dtype=dtype).requires_grad_(), **{key: own})
    return method, s, Features(torch.randn(b, 5), torch.randn(b, m, dtype=dtype).requires_grad_(), preacts=theirs)


def naive_pool(image: list[list[float]], grid: int) -> list[float]:
    """Averages over the parts that adaptive pooling makes: from floor(i h / n) to ceil((i + 1) h / n)."""
    h, w = len(image), len(image[0])
    found = []
    for i in range(grid):
        for j in range(grid):
            rows = range(i * h // grid, -(-(i + 1) * h // grid))
            columns = range(j * w // grid, -(-(j + 1) * w // grid))
            values = [image[y][x] for y in rows for x in columns]
            found.append(sum(values) / len(values))
    return found


def naive_hcl(student: list[Tensor], teacher: list[Tensor]) -> float:
    """With lists and loops, pooling both maps apart as the authors do."""
    loss = 0.0
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = s.flatten(0, 1).tolist(), t.flatten(0, 1).tolist()
        level, weight, total = 0.0, 1.0, 0.0
        for grid in (0, 4, 2, 1):
            if grid >= min(s.shape[-2:]):
                continue
            squares = []
            for a, b in zip(ours, theirs, strict=True):
                left = naive_pool(a, grid) if grid else [v for row in a for v in row]
                right = naive_pool(b, grid) if grid else [v for row in b for v in row]
                squares += [(x - y) ** 2 for x, y in zip(left, right, strict=True)]
            level += weight * sum(squares) / len(squares)
            total += weight
            weight /= 2
        loss += level / total
    return loss


def naive_fused(method: ReviewKD, maps: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The fusion as the paper draws it: both maps side by side at full size, and every convolution in full."""

    def repeated(x: Tensor, h: int, w: int) -> Tensor:
        rows = [y * x.shape[-2] // h for y in range(h)]
        columns = [z * x.shape[-1] // w for z in range(w)]
        return x[:, :, rows][:, :, :, columns]

    def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    found: list[Tensor] = []
    passed = None
    for k in reversed(range(len(maps))):
        fusion: Any = method.fusions[k]
        x = normed(nn.functional.conv2d(maps[k], fusion.reduce.weight), fusion.reduce_norm)
        if passed is not None:
            y = repeated(passed, *x.shape[-2:])
            side = torch.cat([x, y], dim=1)
            a = torch.einsum("bchw,oc->bohw", side, fusion.attention.weight[:, :, 0, 0])
            a = 1 / (1 + (-a - fusion.attention.bias[:, None, None]).exp())
            x = x * a[:, :1] + y * a[:, 1:]
        passed = repeated(x, *sizes[k])
        found.insert(0, normed(nn.functional.conv2d(passed, fusion.expand.weight, padding=1), fusion.expand_norm))
    return found


def parts(method: ReviewKD) -> dict[str, nn.Module]:
    """Our modules by the names of the golden cases, which count from the deepest level."""
    found = {}
    for k, fusion in enumerate(reversed(method.fusions)):
        names = {"conv1.0": "reduce", "conv1.1": "reduce_norm", "conv2.0": "expand", "conv2.1": "expand_norm"}
        if k:
            names["att_conv.0"] = "attention"
        found |= {f"abfs.{k}.{theirs}": fusion.get_submodule(ours) for theirs, ours in names.items()}
    return found


@DTYPES
@pytest.mark.parametrize("name", ["reviewkd", "reviewkd_resize"])
def test_agrees_with_the_authors_code(golden, name: str, dtype: torch.dtype):
    """Loss of each level, fused maps, gradients of maps and parameters, and the batch norms' averages."""
    case = golden(name, dtype)
    count = sum(key.startswith("student.map") for key in case.inputs)
    own = [case.inputs[f"student.map{k}"].requires_grad_() for k in range(count)]
    theirs = [case.inputs[f"teacher.map{k}"] for k in range(count)]
    of_student, of_teacher = ([tuple(m.shape[1:]) for m in maps[:-1]] for maps in (own, theirs))
    setting = Setting(spec(of_student, own[-1].shape[1]), spec(of_teacher, theirs[-1].shape[1]))
    objective = Objective(setting, {"reviewkd": {"weight": 5, "warmup": 20}})
    method: Any = objective.methods["reviewkd"].to(dtype)
    modules = parts(method)
    with torch.no_grad():
        for key, module in modules.items():
            for parameter_name, parameter in module.named_parameters():
                parameter.copy_(case.parameter(f"param.{key}.{parameter_name}"))
    b = len(own[0])
    logits, stem = torch.zeros(b, 5, dtype=dtype), torch.full((b, 2, 3, 3), torch.nan, dtype=dtype)
    student = Features(logits, own[-1].flatten(1), maps=(stem, *own[:-1]))
    teacher = Features(logits, theirs[-1].flatten(1), preacts=(stem, *theirs[:-1]))

    objective.start_epoch(40)
    losses = objective(student, teacher, batch_of(b))
    losses["total"].backward()
    case.check("out.loss.review", losses["reviewkd"])
    case.check("out.loss.total", losses["total"])
    for k, x in enumerate(own):
        case.check(f"out.grad.student.map{k}", x.grad)
    for key, module in modules.items():
        for parameter_name, parameter in module.named_parameters():
            case.check(f"out.grad.{key}.{parameter_name}", parameter.grad)
        for buffer_name in ("running_mean", "running_var") if isinstance(module, nn.BatchNorm2d) else ():
            case.check(f"out.state.{key}.{buffer_name}", module.get_buffer(buffer_name))

    fused = method.fused(own, [tuple(t.shape[-2:]) for t in theirs])
    for k, (out, target) in enumerate(zip(fused, theirs, strict=True)):
        case.check(f"out.inter.map{k}", out)
        case.check(f"out.loss.hcl{k}", hcl([out], [target]))
    objective.start_epoch(5)
    case.check("out.loss.review_weighted_epoch5", objective(student, teacher, batch_of(b))["total"])
    assert case.all_compared()


@DTYPES
def test_the_context_loss_agrees_with_the_authors_code(golden, dtype: torch.dtype):
    case = golden("hcl", dtype)
    own = [case.inputs[f"student.map{k}"].requires_grad_() for k in range(4)]
    theirs = [case.inputs[f"teacher.map{k}"].requires_grad_() for k in range(4)]
    for k in range(4):
        case.check(f"out.loss.hcl{k}", hcl(own[k : k + 1], theirs[k : k + 1]))
    loss = hcl(own, theirs)
    loss.backward()
    case.check("out.loss.total", loss)
    for k in range(4):
        case.check(f"out.grad.student.map{k}", own[k].grad)
        assert theirs[k].grad is None
    assert case.all_compared()


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (8, 8), (7, 7), (6, 6), (5, 9), (12, 4), (1, 3)])
def test_the_context_loss_agrees_with_a_naive_writing(size: tuple[int, int]):
    torch.manual_seed(sum(size))
    own, theirs = (torch.randn(2, 3, *size, dtype=torch.float64) for _ in range(2))
    assert hcl([own], [theirs]).item() == pytest.approx(naive_hcl([own], [theirs]), rel=1e-12)


@pytest.mark.parametrize(("student", "teacher", "d", "m", "b"), SIZES)
def test_the_method_agrees_with_a_naive_writing(student: Shapes, teacher: Shapes, d: int, m: int, b: int):
    method, own, theirs = case(student, teacher, d, m, b)
    loss = method(own, theirs, batch_of(b))
    maps = [*own.maps[1:], own.embedding[:, :, None, None]]
    targets = [*theirs.preacts[1:], theirs.embedding[:, :, None, None]]
    expected = naive_hcl(naive_fused(method, maps, [tuple(t.shape[-2:]) for t in targets]), targets)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_levels_are_counted_from_the_deepest_and_a_shallower_end_has_no_partner():
    shapes: Shapes = [(3, 8, 8), (4, 4, 4), (5, 2, 2)]
    method, own, theirs = case(shapes, shapes, 6, 6, 3, levels=2)
    own.maps[1].detach().fill_(torch.nan)  # the stage that is left out
    assert len(method.fusions) == 3
    assert method(own, theirs, batch_of(3)).isfinite()

    method, own, theirs = case(shapes, shapes[1:], 6, 6, 3)
    own.maps[1].detach().fill_(torch.nan)
    assert len(method.fusions) == 3
    assert method(own, theirs, batch_of(3)).isfinite()


def test_the_students_preacts_are_read_where_they_are_asked_for():
    shapes: Shapes = [(3, 4, 4)]
    method, own, theirs = case(shapes, shapes, 6, 6, 3, student_preacts=True)
    assert method.needs.student == {"preacts", "embedding"}
    assert ReviewKD.needs.student == {"maps", "embedding"}
    assert method.needs.teacher == ReviewKD.needs.teacher == {"preacts", "embedding"}
    loss = method(own, theirs, batch_of(3))
    method.student_preacts = False
    torch.testing.assert_close(method(Features(own.logits, own.embedding, maps=own.preacts), theirs, batch_of(3)), loss)


def test_the_fusions_width_is_bounded():
    shapes: Shapes = [(3, 4, 4)]
    assert case(shapes, shapes, 600, 6, 3)[0].fusions[0].reduce.out_channels == 512
    assert case(shapes, shapes, 600, 6, 3, width=256)[0].fusions[0].reduce.out_channels == 256
    assert case(shapes, shapes, 60, 6, 3)[0].fusions[0].reduce.out_channels == 60


@pytest.mark.parametrize("number", [0, 3])
def test_compiled_in_one_graph_it_gives_the_same(number: int):
    student, teacher, d, m, b = SIZES[number]
    method, own, theirs = case(student, teacher, d, m, b)
    compiled = torch.compile(lambda s, t: method(s, t, batch_of(b)), fullgraph=True, backend="aot_eager", dynamic=False)
    loss = method(own, theirs, batch_of(b))
    expected = torch.autograd.grad(loss, [own.maps[1], own.embedding, *method.parameters()])
    again = compiled(own, theirs)
    torch.testing.assert_close(again, loss)
    got = torch.autograd.grad(again, [own.maps[1], own.embedding, *method.parameters()])
    torch.testing.assert_close(got, expected)


def test_maps_in_channels_last_give_the_same():
    method, own, theirs = case(*SIZES[0])
    last = [m.detach().contiguous(memory_format=torch.channels_last) for m in own.maps]
    again = method(Features(own.logits, own.embedding, maps=tuple(last)), theirs, batch_of(3))
    torch.testing.assert_close(again, method(own, theirs, batch_of(3)))


def test_no_gradient_reaches_the_teacher_and_every_parameter_gets_one():
    method, own, theirs = case(*SIZES[3])
    method(own, theirs, batch_of(3)).backward()
    assert all(t.grad is None for t in (*theirs.preacts, theirs.embedding))
    assert all(x.grad.any() for x in (*own.maps[1:], own.embedding))
    # A bias before a batch norm, and a weight that only such a norm sees, move nothing; there is none among these.
    assert all(p.grad.any() for p in method.parameters())


def test_zeros_give_numbers():
    method, own, theirs = case(*SIZES[0])
    zero = Features(own.logits, torch.zeros_like(own.embedding), tuple(torch.zeros_like(m) for m in own.maps))
    for tensor in (zero.embedding, *zero.maps):
        tensor.requires_grad_()
    loss = method(zero, theirs, batch_of(3))
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*zero.maps[1:], zero.embedding, *method.parameters()))


def test_half_precision_maps_are_compared_in_full():
    own, theirs = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    assert torch.equal(hcl([own], [theirs]), hcl([own.float()], [theirs.float()]))


def test_what_is_refused():
    with pytest.raises(
        NetworkError, match=r"the student's are \[\(1, 2, 3, 3\)\] and the teacher's \[\(1, 2, 4, 4\)\]"
    ):
        hcl([torch.ones(1, 2, 3, 3)], [torch.ones(1, 2, 4, 4)])
    with pytest.raises(NetworkError, match=r"the teacher's \[\]"):
        hcl([torch.ones(1, 2, 3, 3)], [])
    full, bare = spec([(3, 4, 4)], 6), FeatureSpec(5, 6)
    with pytest.raises(RecipeError, match="reviewkd learns from a teacher, and there is none"):
        ReviewKD(Setting(full))
    with pytest.raises(NetworkError, match="ends of the stages, but the student shows 0 maps"):
        ReviewKD(Setting(bare, full))
    with pytest.raises(NetworkError, match="the 3 deepest maps, but the student shows 2 maps"):
        ReviewKD(Setting(full, full), levels=3)
    with pytest.raises(NetworkError, match="but the teacher shows 1 maps"):
        ReviewKD(Setting(full, spec([], 6)))
    with pytest.raises(RecipeError, match="levels is -1; expected how many"):
        ReviewKD(Setting(full, full), levels=-1)
    with pytest.raises(RecipeError, match="width is 0; expected the most channels"):
        ReviewKD(Setting(full, full), width=0)
    with pytest.raises(RecipeError, match="batch_size is 1 in a process, but reviewkd has batch norms"):
        ReviewKD(Setting(full, full, batch_size=1))
    method, own, theirs = case(*SIZES[0])
    with pytest.raises(RecipeError, match="reviewkd learns from a teacher, and there is none"):
        method(own, None, batch_of(3))
    with pytest.raises(NetworkError, match="reads 2 of the teacher's preacts, but the network gave 0"):
        method(own, Features(theirs.logits, theirs.embedding), batch_of(3))
