import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import NetworkError, RunError
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher, fingerprint

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
    ],
)
def test_what_a_teacher_cannot_be(changes, message):
    with pytest.raises(NetworkError, match=message):
        make(**changes)
