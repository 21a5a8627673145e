"""PEFD on maps against a naive second writing, at its edges, and as a method."""

import math

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import PEFDMaps, Setting
from potstill.methods.levels import foreground, inside, level_pairs
from potstill.methods.objective import Objective
from potstill.methods.pefd import pefd
from potstill.methods.pyramid import pefd_maps
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.objects import Objects

SIDES = (48, 80)  # of the batch's images
AT = pytest.mark.parametrize("at", ["locations", "foreground", "pooled"])


def spec(strides: tuple[int, ...], *channels: int) -> FeatureSpec:
    return FeatureSpec(0, 4, tuple(MapSpec(f"p{s}", c, s) for s, c in zip(strides, channels, strict=True)))


def maps(spec: FeatureSpec, images: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    sizes = [(math.ceil(SIDES[0] / m.stride), math.ceil(SIDES[1] / m.stride)) for m in spec.maps]
    return tuple(
        torch.randn(images, m.channels, *size, dtype=dtype).requires_grad_()
        for m, size in zip(spec.maps, sizes, strict=True)
    )


def objects(*boxes: list[list[float]], sizes: tuple[tuple[int, int], ...] | None = None) -> Objects:
    sizes = sizes or (SIDES,) * len(boxes)
    numbers = tuple(torch.zeros(len(each), dtype=torch.int64) for each in boxes)
    return Objects(tuple(torch.tensor(each).view(-1, 4) for each in boxes), numbers, sizes, sizes)


def batch_of(images: int, found: Objects | None = None) -> Batch:
    index = torch.arange(images)
    return Batch(torch.zeros(images, 3, *SIDES), None, index, torch.zeros_like(index), objects=found)


BOXES = objects(
    [[3.0, 3, 30, 40], [20, 10, 79, 20]], [], [[60.0, 30, 62, 31]], sizes=((48, 80), (40, 64), (48, 70))
)  # of the last one no level has a centre


def features(maps: tuple[Tensor, ...]) -> Features:
    return Features(torch.zeros(len(maps[0]), 1), torch.zeros(len(maps[0]), 4), maps)


def case(dtype: torch.dtype = torch.float32, ours: int = 5, theirs: int = 7, images: int = 3, **hyper):
    torch.manual_seed(ours)
    student, teacher = spec((4, 8, 16), ours, ours + 1, ours), spec((8, 16, 32), theirs, theirs, theirs + 1)
    method = PEFDMaps(Setting(student, teacher), **hyper).to(dtype)
    return method, features(maps(student, images, dtype)), features(maps(teacher, images, dtype))


def naive(method: PEFDMaps, student: Features, teacher: Features, found: Objects | None, at: str) -> float:
    """Level by level, image by image, location by location, with numbers; maps of equal sizes."""
    levels = []
    for (s, t), stride, project in zip(method.pairs, method.strides, method.levels, strict=True):
        total = 0.0
        own, other = student.maps[s].detach(), teacher.maps[t].detach()
        for image in range(len(own)):
            counted = []
            for row in range(own.shape[2]):
                for column in range(own.shape[3]):
                    y, x = (row + 0.5) * stride, (column + 0.5) * stride
                    height, width = found.sizes[image] if found else SIDES
                    ok = (y < height and x < width) or found is None
                    if at == "foreground":
                        boxes = found.boxes[image].tolist()
                        ok = ok and any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)
                    if ok:
                        counted.append((row, column))
            vectors = [(own[image, :, r, c], other[image, :, r, c]) for r, c in counted]
            if at == "pooled":
                vectors = [(sum(v for v, _ in vectors) / len(vectors), sum(v for _, v in vectors) / len(vectors))]
            losses = []
            for a, b in vectors:
                f = [0.0] * len(b)
                for k in range(project.projectors):
                    ((weight, bias),) = project.projector(k)
                    out = [sum(w * v for w, v in zip(r, a.tolist(), strict=True)) for r in weight.tolist()]
                    f = [
                        have + max(0.0, o + c) / project.projectors
                        for have, o, c in zip(f, out, bias.tolist(), strict=True)
                    ]
                dot = sum(x * y for x, y in zip(f, b.tolist(), strict=True))
                norms = math.hypot(*f) * math.hypot(*b.tolist())
                losses.append(1 - dot / norms if norms else 1.0)
            total += sum(losses) / len(losses) if losses else 0.0
        levels.append(total / len(own))
    return sum(levels) / len(levels)


@AT
@pytest.mark.parametrize(("ours", "theirs"), [(5, 7), (7, 4), (6, 6)])
@pytest.mark.parametrize("found", [None, BOXES], ids=["no boxes", "boxes"])
def test_agrees_with_a_naive_writing(at: str, ours: int, theirs: int, found: Objects | None):
    if at == "foreground" and found is None:
        return
    method, student, teacher = case(torch.float64, ours, theirs, at=at)
    assert method.pairs == [(1, 0), (2, 1)]  # of one stride
    loss = method(student, teacher, batch_of(3, found))
    assert loss.item() == pytest.approx(naive(method, student, teacher, found, at), rel=1e-12)


@AT
def test_gradients_are_those_of_finite_differences(at: str):
    method, student, teacher = case(torch.float64, activation="gelu", at=at)

    def loss(*own: Tensor) -> Tensor:
        return method(features((student.maps[0], *own)), teacher, batch_of(3, BOXES))

    inputs = tuple(m.detach().requires_grad_() for m in student.maps[1:])
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@AT
def test_no_gradient_reaches_the_teacher_or_what_does_not_count(at: str):
    method, student, teacher = case(at=at)
    method(student, teacher, batch_of(3, BOXES)).backward()
    assert all(m.grad is None for m in teacher.maps)
    assert student.maps[0].grad is None  # has no partner
    gradient = student.maps[1].grad
    assert gradient.any()
    assert not gradient[1, :, 5:].any()  # below the second image, which is 40 pixels high
    assert not gradient[1, :, :, 8:].any()
    if at == "foreground":
        assert not gradient[1:].any()
        assert gradient[0, :, 0:5, 0:3].any()
        assert not gradient[0, :, 5:].any()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_a_batch_is_the_mean_of_its_images():
    method, student, teacher = case(torch.float64, at="foreground")
    whole = method(student, teacher, batch_of(3, BOXES))
    parts = []
    for i in range(3):
        one = Objects(
            BOXES.boxes[i : i + 1], BOXES.labels[i : i + 1], BOXES.sizes[i : i + 1], BOXES.originals[i : i + 1]
        )
        own, other = (features(tuple(m[i : i + 1] for m in f.maps)) for f in (student, teacher))
        parts.append(method(own, other, batch_of(1, one)))
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_what_is_padded_changes_nothing():
    for at in ("locations", "foreground", "pooled"):
        method, student, teacher = case(at=at)
        loss = method(student, teacher, batch_of(3, BOXES))
        with torch.no_grad():
            for m in (*student.maps[1:], *teacher.maps[:2]):
                stride = SIDES[0] // m.shape[2]
                m[1, :, 40 // stride + 1 :] = 99  # rows whose centres are below the second image
        assert torch.equal(method(student, teacher, batch_of(3, BOXES)), loss)


def test_without_foreground_it_is_zero():
    method, student, teacher = case(at="foreground")
    loss = method(student, teacher, batch_of(3, objects([], [], [])))
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in method.parameters())
    assert all(m.grad.isfinite().all() and not m.grad.any() for m in student.maps[1:])


def test_an_image_smaller_than_half_a_stride_counts_for_nothing_where_it_has_no_location():
    for at in ("locations", "pooled"):
        method, student, teacher = case(torch.float64, images=1, at=at)
        tiny = objects([[0.0, 0, 5, 5]], sizes=((5, 5),))
        loss = method(student, teacher, batch_of(1, tiny))
        one = method.levels[0](student.maps[1][0, :, 0, 0])  # of stride 8 one location, of stride 16 none
        cosine = torch.cosine_similarity(one, teacher.maps[0][0, :, 0, 0], dim=0)
        torch.testing.assert_close(loss, (1 - cosine) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@AT
def test_half_precision_maps_are_computed_in_full(at: str, dtype: torch.dtype):
    method, student, teacher = case(at=at)
    half = [features(tuple(m.detach().to(dtype) for m in f.maps)) for f in (student, teacher)]
    full = [features(tuple(m.float() for m in f.maps)) for f in half]
    loss = method(*half, batch_of(3, BOXES))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, method(*full, batch_of(3, BOXES)))


def test_zero_vectors_give_numbers():
    method, student, teacher = case()
    with torch.no_grad():
        for m in (*student.maps, *teacher.maps):
            m.zero_()
        for level in method.levels:
            level.bias_0.zero_()
    loss = method(student, teacher, batch_of(3))
    loss.backward()
    assert loss.item() == 1
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_of_maps_of_two_sizes_the_larger_is_averaged_down():
    student, teacher = spec((4,), 5), spec((8,), 6)
    torch.manual_seed(0)
    ours, theirs = maps(student, 2), maps(teacher, 2)
    for at, found in (
        ("locations", None),
        ("pooled", None),
        ("foreground", objects([[0.0, 0, 30, 30]], [[9.0, 9, 50, 40]])),
    ):
        torch.manual_seed(1)
        method = PEFDMaps(Setting(student, teacher), layers=((0, 0),), at=at)
        torch.manual_seed(1)
        same = PEFDMaps(Setting(spec((8,), 5), teacher), at=at)
        small = torch.nn.functional.avg_pool2d(ours[0], 2)
        expected = same(features((small,)), features(theirs), batch_of(2, found))
        torch.testing.assert_close(method(features(ours), features(theirs), batch_of(2, found)), expected)
        # and a teacher's map that is the larger
        torch.manual_seed(1)
        other = PEFDMaps(Setting(teacher, student), layers=((0, 0),), at=at)
        torch.manual_seed(1)
        same = PEFDMaps(Setting(teacher, spec((8,), 5)), at=at)
        expected = same(features(theirs), features((small,)), batch_of(2, found))
        torch.testing.assert_close(other(features(theirs), features(ours), batch_of(2, found)), expected)


def test_one_location_is_pefd_itself():
    s, t = torch.randn(6, 9), torch.randn(6, 9)
    torch.testing.assert_close(pefd_maps([s[:, :, None, None]], [t[:, :, None, None]]), pefd(s, t))


def test_weights_weigh():
    s, t = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    weights = torch.tensor([[[1.0, 2], [0, 5]], [[0.0, 0], [0, 0]]], dtype=torch.float64)
    cosines = torch.cosine_similarity(s, t, dim=1)[0]
    expected = (weights[0] * (1 - cosines)).sum() / 8 / 2
    torch.testing.assert_close(pefd_maps([s], [t], [weights]), expected)


def test_levels_count_alike_whatever_their_size():
    big, small = torch.randn(1, 2, 9, 9), torch.randn(1, 2, 1, 1)
    assert pefd_maps([big, small], [big, -small]).item() == pytest.approx(1, abs=1e-6)


def test_which_locations_are_foreground():
    # centres at 4, 12, 20, ...: a box from 4 to 12 has the first, for its right end is not in it
    found = foreground(objects([[4.0, 4, 12, 28], [70.0, 40, 90, 60]], []), (6, 10), (8, 8))
    expected = torch.zeros(2, 6, 10, dtype=torch.bool)
    expected[0, 0:3, 0] = True
    expected[0, 5, 9] = True  # of a box that reaches beyond the image
    assert torch.equal(found, expected)
    assert not foreground(objects([[10.0, 10, 10, 30]]), (6, 10), (8, 8)).any()  # of no width
    within = inside(BOXES, (6, 10), (8, 8), torch.device("cpu"))
    assert within.sum((1, 2)).tolist() == [60, 40, 6 * 9]


def test_pairs_are_those_of_one_stride():
    resnet = spec((1, 1, 2, 4), 4, 4, 8, 8)
    assert level_pairs(Setting(resnet, resnet), None, "pefd_maps") == [(1, 1), (2, 2), (3, 3)]
    vgg = spec((1, 2, 4, 8, 8), 4, 4, 4, 4, 4)
    assert level_pairs(Setting(resnet, vgg), None, "pefd_maps") == [(1, 0), (2, 1), (3, 2)]
    assert level_pairs(Setting(resnet, vgg), ((0, 4),), "pefd_maps") == [(0, 4)]


@AT
def test_in_one_graph(at: str):
    torch._dynamo.reset()
    method, student, teacher = case(at=at, depth=2)
    found = BOXES if at == "foreground" else None

    def loss(*own: Tensor) -> Tensor:
        return method(features(own), teacher, batch_of(3, found))

    expected = loss(*student.maps)
    gradients = torch.autograd.grad(expected, student.maps[1:])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*student.maps)
    torch.testing.assert_close(compiled, expected)
    for one, other in zip(torch.autograd.grad(compiled, student.maps[1:]), gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@AT
def test_steps_lower_it_in_an_objective(at: str):
    torch.manual_seed(0)
    student, teacher = spec((8, 16), 6, 6), spec((8, 16), 9, 9)
    objective = Objective(Setting(student, teacher), {"pefd_maps": {"weight": 25, "at": at, "activation": "none"}})
    own, other = features(maps(student, 3)), features(maps(teacher, 3))
    assert objective.needs.on_demand("student") == objective.needs.on_demand("teacher") == {"maps": True}
    optimizer = torch.optim.Adam([*own.maps, *objective.parameters()], lr=0.05)
    values = []
    for _ in range(40):
        losses = objective(own, other, batch_of(3, BOXES))
        assert losses["total"].item() == pytest.approx(25 * losses["pefd_maps"].item(), rel=1e-6)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(losses["pefd_maps"].item())
    assert values[-1] < 0.4 * values[0]


def test_what_is_refused():
    ours, theirs = spec((4, 8), 5, 5), spec((8, 16), 6, 6)
    method = PEFDMaps(Setting(ours, theirs), at="foreground")
    with pytest.raises(RecipeError, match="at=foreground looks where the boxes are, and these images have none"):
        method(features(maps(ours, 1)), features(maps(theirs, 1)), batch_of(1))
    with pytest.raises(RecipeError, match="pefd_maps learns from a teacher, and there is none"):
        method(features(maps(ours, 1)), None, batch_of(1))
    with pytest.raises(RecipeError, match="pefd_maps learns from a teacher, and there is none"):
        PEFDMaps(Setting(ours))
    with pytest.raises(
        RecipeError, match=r"at is 'pool'; it is one of locations, foreground, pooled\. Did you mean 'pooled'"
    ):
        PEFDMaps(Setting(ours, theirs), at="pool")
    with pytest.raises(NetworkError, match=r"the student has p4 \(stride 4\) and the teacher p16 \(stride 16\). Name"):
        PEFDMaps(Setting(spec((4,), 5), spec((16,), 5)))
    with pytest.raises(NetworkError, match=r"the student has p4 \(stride 4\) and the teacher no maps"):
        PEFDMaps(Setting(spec((4,), 5), FeatureSpec(3, 4)))
    with pytest.raises(RecipeError, match=r"layers of pefd_maps has the pair \[0, 2\]"):
        PEFDMaps(Setting(ours, theirs), layers=((0, 2),))
    with pytest.raises(RecipeError, match="a projector is needed"):
        PEFDMaps(Setting(ours, theirs), projectors=0)
    ones = torch.ones(1, 2, 3, 3)
    for arguments in (([], []), ([ones], []), ([ones], [ones], [])):
        with pytest.raises(NetworkError, match="compares level by level"):
            pefd_maps(*arguments)
    with pytest.raises(NetworkError, match=r"maps of one shape, but the student's are \(1, 2, 3, 3\)"):
        pefd_maps([ones], [ones[:, :1]])
    with pytest.raises(
        NetworkError, match=r"weighs each location of \(1, 3, 3\), but the weights of level 0 are \(1, 9\)"
    ):
        pefd_maps([ones], [ones], [torch.ones(1, 9)])


def test_maps_of_equal_channels_without_projectors():
    method, student, teacher = case(ours=6, theirs=6, projectors=0, layers=((2, 1),))
    assert not list(method.parameters())
    torch.testing.assert_close(method(student, teacher, batch_of(3)), pefd_maps([student.maps[2]], [teacher.maps[1]]))
