import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RunError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.networks.build import build_network
from potstill.networks.fold import fold_batchnorms
from potstill.networks.tap import Taps, tap
from potstill.networks.teacher import Teacher, fingerprint
from potstill.training.step import TrainingStep

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
OTHER_MEAN, OTHER_STD = (0.1, 0.2, 0.6), (0.5, 0.5, 0.25)
SAME = {"mean": MEAN, "std": STD, "student_mean": MEAN, "student_std": STD}


def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


def make(bare=None, **changes):
    return Teacher(tap(bare or network(), input_size=(3, 32, 32)), **(SAME | changes))


def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_it_shows_the_network_in_evaluation_without_gradients():
    bare = network().train()
    teacher = make(bare)
    x = images().requires_grad_()
    features = teacher(x, maps=True)
    with torch.no_grad():
        expected = bare.eval()(x)
    torch.testing.assert_close(features.logits, expected)
    assert teacher.spec.classes == 5
    assert len(features.maps) == 5
    assert not any(value.requires_grad for value in (features.logits, features.embedding, *features.maps))
    # A loss of the student may save the teacher's features for its backward, which inference mode would forbid.
    weight = torch.ones(5, requires_grad=True)
    (weight * features.logits).sum().backward()
    torch.testing.assert_close(weight.grad, expected.sum(0))


def test_training_a_module_that_holds_it_leaves_it_alone():
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = nn.Linear(96, 96)
            self.teacher = make()

    trainer = Trainer().train()
    assert list(trainer.state_dict()) == ["student.weight", "student.bias"]
    assert len(list(trainer.parameters())) == 2
    before = {key: value.clone() for key, value in trainer.teacher.network.state_dict().items()}
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.1, weight_decay=0.1)
    start = trainer.student.weight.clone()
    for _ in range(3):
        trainer.train()
        trainer.teacher.network.train()  # even this must not move its BatchNorm statistics
        embedding = trainer.teacher(images()).embedding
        optimizer.zero_grad()
        F.mse_loss(trainer.student(embedding), 2 * embedding).backward()
        optimizer.step()
    assert not torch.equal(trainer.student.weight, start)
    assert all(torch.equal(value, before[key]) for key, value in trainer.teacher.network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.network.parameters())
    trainer.teacher.verify()


def test_a_change_is_found():
    teacher = make()
    teacher.verify()
    with torch.no_grad():
        teacher.network.network.fc.bias[0] += 1e-6
    with pytest.raises(RunError, match="the teacher has changed during the run: its fingerprint was"):
        teacher.verify()


def test_a_change_of_the_copy_that_ran_is_found():
    teacher = make()
    assert teacher.running is not teacher.network
    with torch.no_grad():
        teacher.running.network.conv1[0].bias[0] += 1e-6
    teacher.network.network.load_state_dict(network().state_dict())  # the same state: no change
    with pytest.raises(RunError, match="the copy of the teacher that ran has changed during the run"):
        teacher.verify()
    both = make(others=[make(), teacher])
    with pytest.raises(RunError, match="the copy of the teacher that ran has changed during the run"):
        both.verify()


def test_images_are_renormalised_for_it():
    teacher = make(student_mean=OTHER_MEAN, student_std=OTHER_STD)
    raw = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    view = lambda row: torch.tensor(row).view(1, 3, 1, 1)  # noqa: E731
    for_student = (raw - view(OTHER_MEAN)) / view(OTHER_STD)
    for_teacher = (raw - view(MEAN)) / view(STD)
    expected = make()(for_teacher)
    torch.testing.assert_close(teacher(for_student).logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert make().renormalises is False


def test_images_are_resized_for_it():
    x = images()
    small = make(input_size=(16, 24))
    expected = make()(F.interpolate(x, (16, 24), mode="bilinear", antialias=True))
    torch.testing.assert_close(small(x).logits, expected.logits)
    torch.testing.assert_close(make(input_size=(32, 32))(x).logits, make()(x).logits)


def test_half_precision_gives_float32_vectors():
    teacher = make(precision=torch.bfloat16)
    features, exact = teacher(images(), maps=True), make()(images())
    assert features.logits.dtype == features.embedding.dtype == torch.float32
    assert features.maps[-1].dtype == torch.bfloat16
    difference = (features.logits - exact.logits).abs().max()
    assert 0 < difference < 0.05 * exact.logits.abs().max()
    assert all(p.dtype == torch.float32 for p in teacher.network.parameters())


def test_a_float32_teacher_stays_so_under_the_students_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = make()(images(), maps=True)
    assert inside.maps[-1].dtype == torch.float32
    assert torch.equal(inside.logits, make()(images()).logits)


def test_fingerprints_tell_states_apart():
    state = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(4.0)}
    assert fingerprint(state) == fingerprint(same)
    others = [
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(1)},
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0), "b": torch.tensor(2)},
        {"a": torch.arange(4.0).view(torch.int32), "b": torch.tensor(1)},
    ]
    assert len({fingerprint(s) for s in (state, *others)}) == 5
    first = make()
    assert first.identity == make(channels_last=False).identity
    assert len(first.identity) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": (0.2, 0.0, 0.3)}, "a standard deviation must be positive"),
        ({"mean": (0.5,)}, "mean and std need one number a channel each, of both networks: mean has 1, std has 3"),
        ({"precision": torch.float64}, "a teacher runs in one of .*, not in torch.float64"),
        ({"chunk": 0}, "a teacher is asked to run 0 images at a time; expected 1 or more, or None"),
    ],
)
def test_what_a_teacher_cannot_be(changes, message):
    with pytest.raises(NetworkError, match=message):
        make(**changes)


EVERYTHING = {"maps": True, "preacts": True, "blocks": True}


def zoo(name, seed=0):
    """A network of the CIFAR zoo whose batch norms have seen images."""
    torch.manual_seed(seed)
    tapped = build_network(name, classes=10, input_size=(3, 32, 32)).train()
    with torch.no_grad():
        for _ in range(5):
            tapped(torch.randn(32, 3, 32, 32))
    return tapped.eval()


def tensors(features):
    return [features.logits, features.embedding, *features.maps, *features.preacts, *features.blocks, *features.peers]


def off(features, expected):
    """The largest difference of any feature, relative to the feature's largest entry."""
    pairs = zip(tensors(features), tensors(expected), strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


NAMES = ["resnet20", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


@pytest.mark.parametrize("name", NAMES)
def test_the_folded_copy_shows_the_same_features(name):
    plain = Teacher(zoo(name), **SAME, fold=False)
    folded = Teacher(zoo(name), **SAME)
    assert plain.running is plain.network
    assert not plain.folds.folded
    assert folded.folds.folded
    for reads in ({}, EVERYTHING):
        assert off(folded(images(), **reads), plain(images(), **reads)) < 1e-5
    assert folded.identity == plain.identity
    folded.verify()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_runs_the_network_as_it_is(precision):
    plain = Teacher(zoo("resnet8"), **SAME, precision=precision, fold=False)
    teacher = Teacher(zoo("resnet8"), **SAME, precision=precision)
    assert teacher.running is teacher.network
    assert teacher.folds.folded == {}
    assert torch.equal(teacher(images()).logits, plain(images()).logits)


def test_why_nothing_is_folded_in_half_precision():
    """Autocast rounds a folded bias, and a mean over pixels keeps that error; those of single pixels it evens out."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    exact = nn.Sequential(*layers).eval()
    with torch.no_grad():  # weights that are the same in bfloat16, folded or not, so that only the biases differ
        exact[0].weight.copy_(exact[0].weight.bfloat16())
        exact[1].running_var.fill_(1 - exact[1].eps)
        exact[1].running_mean.uniform_(-3, 3)
    folded = tap(copy.deepcopy(exact), input_size=(3, 32, 32))
    assert fold_batchnorms(folded).folded == {"1": "0"}
    x, off_by = images().bfloat16().float(), {}
    with torch.no_grad():
        expected = exact[:2](x).mean((2, 3))
        for name, runs in {"plain": exact, "folded": folded.network}.items():
            with torch.autocast("cpu", torch.bfloat16):
                means = runs[:2](x).float().mean((2, 3))
            off_by[name] = float((means - expected).square().mean().sqrt())
    assert off_by["folded"] > 3 * off_by["plain"], off_by


def test_the_network_itself_is_left_alone():
    given = zoo("resnet8x4")
    before = copy.deepcopy(given.network)
    teacher = Teacher(given, **SAME)
    teacher(images(), preacts=True)
    assert teacher.network is given
    assert str(given.network) == str(before)
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in given.network.state_dict().items())
    # What nothing is folded into is held once.
    mine, runs = dict(given.network.named_parameters()), dict(teacher.running.network.named_parameters())
    assert runs["fc.weight"] is mine["fc.weight"]
    assert {name for name in mine if name in runs and runs[name] is mine[name]} == {"fc.weight", "fc.bias"}
    assert not any(p.requires_grad for p in runs.values())
    weight, _ = teacher.network.classifier()
    assert weight.data_ptr() == mine["fc.weight"].data_ptr()
    assert teacher.network.norms()[0] is not None


def test_a_network_with_nothing_to_fold_is_not_copied():
    network = timm.create_model("test_vit", num_classes=5)
    teacher = Teacher(tap(network, input_size=(3, 160, 160)), **SAME)
    assert teacher.running is teacher.network
    teacher.verify()


class Uncopied(nn.BatchNorm2d):
    def __deepcopy__(self, memo):
        raise TypeError("there is one of me")


def test_a_network_that_cannot_be_copied_is_said():
    layers = [nn.Conv2d(3, 4, 3), Uncopied(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    tapped = tap(nn.Sequential(*layers), input_size=(3, 32, 32))
    with pytest.raises(NetworkError, match=r"Sequential cannot be copied .*there is one of me.*; give fold=False"):
        Teacher(tapped, **SAME)
    assert Teacher(tapped, **SAME, fold=False)(images()).logits.shape == (4, 5)


def test_a_tap_on_a_convolution_shows_what_the_convolution_returns():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    bare = nn.Sequential(*layers, nn.Linear(4, 5)).eval()
    nn.init.uniform_(bare[1].weight, 2, 3)
    teacher = Teacher(tap(bare, Taps(maps=("0",)), input_size=(3, 32, 32)), **SAME)
    torch.testing.assert_close(teacher(images(), maps=True).maps[0], bare[0](images()).detach())
    assert teacher.folds.kept == {"1": "it does not read a plain convolution or linear layer without hooks"}


def curve(fold):
    """The losses of ten steps of a student, and its weights then."""
    teacher = Teacher(zoo("resnet8x4", seed=1), **SAME, fold=fold)
    torch.manual_seed(2)
    student = build_network("resnet8", classes=10, input_size=(3, 32, 32))
    objective = Objective(Setting(student.spec, teacher.spec), {"ce": 1, "kd": 1, "pefd": 25})
    step = TrainingStep(student, objective).train()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for index in range(10):
        generator = torch.Generator().manual_seed(index)
        targets = torch.randint(10, (16,), generator=generator)
        numbers = torch.arange(16)
        batch = Batch(torch.randn(16, 3, 32, 32, generator=generator), targets, numbers, torch.zeros_like(numbers))
        seen = teacher.features(batch, **objective.needs.on_demand("teacher"))
        terms, _ = step(batch, seen)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        losses.append(terms["total"].detach())
    teacher.verify()
    return torch.stack(losses)


def test_a_student_learns_the_same_from_the_folded_copy():
    losses = curve(fold=True)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, curve(fold=False), rtol=1e-5, atol=0)


def test_chunks_of_a_batch_show_the_same():
    whole, chunked = make(), make(chunk=3, others=[make()])
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected, features = whole(x, **EVERYTHING), chunked(x, **EVERYTHING)
    for one, other in zip(tensors(features), [*tensors(expected), expected.logits], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)
    assert features.maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(chunked(x[:2]).logits, expected.logits[:2])


@pytest.mark.slow
def test_the_compiled_copy_shows_the_same():
    plain, compiled = Teacher(zoo("resnet8"), **SAME), Teacher(zoo("resnet8"), **SAME, compile=True)
    assert compiled.folds.folded
    for reads in ({}, {"maps": True}, EVERYTHING, {}):
        assert off(compiled(images(), **reads), plain(images(), **reads)) < 1e-5
    compiled.verify()


def test_what_is_said_of_its_input():
    teacher = make(student_mean=OTHER_MEAN, input_size=(16, 24))
    rows = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "student_mean": [0.1, 0.2, 0.6], "size": [16, 24]}
    assert teacher.input() == rows | {"student_std": [0.2, 0.25, 0.3]}
    assert make().input()["size"] is None
