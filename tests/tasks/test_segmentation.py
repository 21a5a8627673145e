"""Mean IoU against a count pixel by pixel, at its edges."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.errors import DataError, NetworkError
from potstill.tasks.segmentation import MeanIoU

CPU = torch.device("cpu")
CLASSES = ["ground", "cell", "rod", "dust", "air"]


def counted(predicted: Tensor, targets: Tensor, classes: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The same by sets of pixels, class by class."""
    pairs = [(p, t) for p, t in zip(predicted.flatten().tolist(), targets.flatten().tolist(), strict=True) if t != 255]
    per_class = {}
    for number, name in enumerate(classes):
        named = {i for i, (p, _) in enumerate(pairs) if p == number}
        there = {i for i, (_, t) in enumerate(pairs) if t == number}
        if named | there:
            per_class[name] = 100 * len(named & there) / len(named | there)
    accuracy = 100 * sum(p == t for p, t in pairs) / len(pairs)
    return {"miou": sum(per_class.values()) / len(per_class), "pixel_accuracy": accuracy}, per_class


def drawn(seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits and targets of a batch, a part of which does not count."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, len(CLASSES), 7, 9, generator=generator)
    logits[:, classes:] -= 100  # the last classes are never named
    targets = torch.randint(classes - 1, (4, 7, 9), generator=generator)  # and the one before them is never there
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = 255
    return logits, targets


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_counted_pixel_by_pixel(seed: int):
    logits, targets = drawn(seed)
    expected, per_class = counted(logits.argmax(1), targets, CLASSES)
    found = MeanIoU(CLASSES, CPU)
    for part in range(4):  # image by image
        found.add(logits[part : part + 1], targets[part : part + 1])
    assert found.values() == pytest.approx(expected, rel=1e-12)
    assert found.per_class() == pytest.approx(per_class, rel=1e-12)
    assert list(found.per_class()) == CLASSES[:3]
    assert found.per_class()["rod"] == 0  # named, and nowhere


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_class_numbers_of_any_integer_dtype_are_as_good_as_logits(dtype: torch.dtype):
    logits, targets = drawn(7)
    by_logits, by_numbers = MeanIoU(CLASSES, CPU), MeanIoU(CLASSES, CPU)
    by_logits.add(logits.bfloat16(), targets)
    by_numbers.add(logits.bfloat16().argmax(1).to(dtype), targets.to(dtype))
    assert by_logits.values() == by_numbers.values()


def test_processes_together_see_what_one_would():
    whole, one, other = (MeanIoU(CLASSES, CPU) for _ in range(3))
    for seed, part in ((1, one), (2, other)):
        whole.add(*drawn(seed))
        part.add(*drawn(seed))
    total = one._counts + other._counts
    assert one.values(lambda counts: total) == whole.values()
    assert one.per_class(lambda counts: total) == whole.per_class()
    assert one.values() != whole.values()  # and nothing is lost of its own


def test_a_perfect_and_a_wholly_wrong_network():
    _, targets = drawn(3)
    perfect, wrong = MeanIoU(CLASSES, CPU), MeanIoU(CLASSES, CPU)
    perfect.add(targets.where(targets != 255, 0), targets)
    wrong.add(torch.full_like(targets, 4), targets)
    assert perfect.values() == {"miou": 100, "pixel_accuracy": 100}
    assert wrong.values() == {"miou": 0, "pixel_accuracy": 0}
    assert wrong.per_class() == {"ground": 0, "cell": 0, "air": 0}


def test_what_is_named_where_nothing_counts_does_not_count():
    found = MeanIoU(["ground", "cell"], CPU)
    found.add(torch.tensor([[[0, 1, 77]]]), torch.tensor([[[0, 255, 255]]]))
    assert found.values() == {"miou": 100, "pixel_accuracy": 100}
    assert found.per_class() == {"ground": 100}


def test_255_classes_leave_255_to_what_does_not_count():
    found = MeanIoU([str(i) for i in range(255)], CPU)
    numbers = torch.arange(256).view(1, 16, 16)
    found.add(numbers.clamp(max=254), numbers)
    assert found.values() == {"miou": 100, "pixel_accuracy": 100}
    assert len(found.per_class()) == 255


class Reads(TorchDispatchMode):
    """What would wait for a device: values read, shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in function.__name__ for word in ("scalar_dense", "nonzero", "masked", "unique", "bincount")):
            self.found.append(str(function))
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if "index." in function.__name__ else []
        self.found += ["index by a mask"] * len(masks)
        return function(*args, **(kwargs or {}))


def test_adding_never_waits_for_the_device():
    logits, targets = drawn(0)
    found = MeanIoU(CLASSES, CPU)
    with Reads() as reads:
        found.add(logits, targets)
        assert reads.found == []
        targets[targets == 255].sum().item()
    assert reads.found  # it does see what waits


def test_what_is_refused():
    for classes in ([], ["a", "a"], [str(i) for i in range(256)]):
        with pytest.raises(DataError, match=rf"1 to 255 classes of different names, but got {len(classes)} classes of"):
            MeanIoU(classes, CPU)
    found = MeanIoU(["ground", "cell"], CPU)
    zeros = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(DataError, match="No pixel of the targets counts"):
        found.values()
    found.add(zeros, zeros + 255)
    with pytest.raises(DataError, match="No pixel of the targets counts"):
        found.per_class()
    with pytest.raises(NetworkError, match="names 3 classes, but the data has 2"):
        found.add(torch.zeros(1, 3, 2, 2), zeros)
    with pytest.raises(NetworkError, match=r"the network's are \(1, 4, 4\) torch.int64 and the targets \(1, 2, 2\)"):
        found.add(torch.zeros(1, 2, 4, 4), zeros)
    with pytest.raises(NetworkError, match=r"the network's are \(1, 2, 2\) torch.float32"):
        found.add(zeros.float(), zeros)
    found.add(zeros + 2, zeros)
    with pytest.raises(NetworkError, match="4 pixels were named a number that is no class from 0 to 1"):
        found.values()
    for number in (2, 200, -1):
        found = MeanIoU(["ground", "cell"], CPU)
        found.add(zeros, zeros + number)
        with pytest.raises(DataError, match="4 pixels of the targets are no class: expected 0 to 1, or 255"):
            found.values()
