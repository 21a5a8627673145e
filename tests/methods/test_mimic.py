"""Stage mimicking against a naive second writing, at its edges, and as a method."""

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting
from potstill.methods.mimic import Mimic, mimic
from potstill.networks.features import Features, FeatureSpec, MapSpec


def spec(*channels: int) -> FeatureSpec:
    return FeatureSpec(5, 4, tuple(MapSpec(f"stage{i}", c, 2**i) for i, c in enumerate(channels)))


def case(
    student: list[tuple[int, ...]], teacher: list[tuple[int, ...]], b: int = 2
) -> tuple[Features, Features, Batch]:
    torch.manual_seed(b)
    s, t = (tuple(torch.randn(b, *shape).requires_grad_() for shape in maps) for maps in (student, teacher))
    batch = Batch(torch.zeros(b, 3, 1, 1), None, torch.arange(b), torch.zeros(b, dtype=torch.int64))
    return Features(torch.randn(b, 5), torch.randn(b, 4), s), Features(torch.randn(b, 5), torch.randn(b, 4), t), batch


def naive(a: Tensor, b: Tensor) -> float:
    """Element by element; maps whose sides are multiples are pooled by hand."""
    size = [min(a.shape[k], b.shape[k]) for k in (2, 3)]

    def pooled(x: Tensor, n: int, c: int, h: int, w: int) -> float:
        down, across = x.shape[2] // size[0], x.shape[3] // size[1]
        cells = [x[n, c, h * down + i, w * across + j].item() for i in range(down) for j in range(across)]
        return sum(cells) / len(cells)

    total, count = 0.0, 0
    for n in range(a.shape[0]):
        for c in range(a.shape[1]):
            for h in range(size[0]):
                for w in range(size[1]):
                    total += (pooled(a, n, c, h, w) - pooled(b, n, c, h, w)) ** 2
                    count += 1
    return total / count


@pytest.mark.parametrize(("one", "other"), [((4, 6), (4, 6)), ((8, 3), (4, 6)), ((2, 2), (6, 4))])
def test_agrees_with_a_naive_writing(one: tuple[int, int], other: tuple[int, int]):
    a, b = torch.randn(2, 3, *one, dtype=torch.float64), torch.randn(2, 3, *other, dtype=torch.float64)
    assert mimic(a, b).item() == pytest.approx(naive(a, b), rel=1e-12)


@pytest.mark.parametrize("channels", [(3, 7), (7, 3)])
@pytest.mark.parametrize("adapter", ["auto", "conv", "conv_bn"])
def test_the_adapter_brings_the_students_channels_to_the_teachers(channels: tuple[int, int], adapter: str):
    student, teacher, batch = case([(channels[0], 4, 2)], [(channels[1], 4, 2)])
    method = Mimic(Setting(spec(channels[0]), spec(channels[1])), stage=0, adapter=adapter)
    loss = method(student, teacher, batch)
    assert loss.item() == pytest.approx(mimic(method.adapters[0](student.maps[0]), teacher.maps[0]).item())
    loss.backward()
    assert student.maps[0].grad.abs().sum() > 0
    assert all(p.grad is not None for p in method.parameters())
    assert teacher.maps[0].grad is None
    assert len(list(method.parameters())) == (4 if adapter == "conv_bn" else 2)


def test_equal_channels_need_no_adapter_and_the_same_map_is_no_distance():
    student, _, batch = case([(3, 4, 4), (5, 2, 2)], [])
    method = Mimic(Setting(spec(3, 5), spec(3, 5)), stage=1)
    assert list(method.parameters()) == []
    assert method(student, student, batch).item() == 0


def test_in_one_graph():
    student, teacher, batch = case([(3, 4, 4)], [(6, 2, 2)])
    method = Mimic(Setting(spec(3), spec(6)))
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(student, teacher, batch), method(student, teacher, batch))


@pytest.mark.parametrize(
    ("student", "teacher", "hyper", "error", "message"),
    [
        (
            spec(),
            spec(3),
            {},
            NetworkError,
            r"mimic reads stage -1, and the student shows 0 maps; name its layers in student",
        ),
        (spec(3), spec(3), {"stage": 1}, NetworkError, "mimic reads stage 1, and the student shows 1 maps"),
        (spec(3, 3), spec(3), {"stage": 1}, NetworkError, "the teacher shows 1 maps"),
        (
            spec(3),
            spec(4),
            {"adapter": "none"},
            NetworkError,
            "3 channels and stage0 of the teacher 4; take adapter=conv",
        ),
        (spec(3), spec(4), {"adapter": "cnv"}, RecipeError, "adapter is 'cnv'; .* Did you mean 'conv'"),
        (spec(3), None, {}, RecipeError, "mimic learns from a teacher, and there is none"),
    ],
)
def test_what_is_refused(student, teacher, hyper, error, message):
    with pytest.raises(error, match=message):
        Mimic(Setting(student, teacher), **hyper)


def test_maps_of_other_channels_are_refused():
    with pytest.raises(NetworkError, match=r"the student's is \(2, 3, 4, 4\) and the teacher's \(2, 4, 4, 4\)"):
        mimic(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4))
