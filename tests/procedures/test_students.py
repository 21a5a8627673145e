"""Several students of one teacher in one process: each is the student that it would be alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.procedures.running import TINY, call

from potstill.networks.teacher import Teacher
from potstill.training.checkpoints import Checkpoints

SEEDS = ("data.order_seed=0", "data.view_seed=0")


@pytest.fixture
def distill(teacher: Path) -> Callable[..., str]:
    return lambda *values, code=0: call("distill", *TINY, f"teacher.weights={teacher}", *values, code=code)


STUDENTS = (
    "students=[{seed: 1}, {model: resnet14, name: larger, objective: {ce: 1, at: {weight: 10, layers: [[1, 1]]}}}, "
    "{teacher: null, objective: {ce: 1}, name: control}]"
)


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def test_each_student_is_bit_for_bit_the_one_it_would_be_alone(distill, tmp_path: Path) -> None:
    said = distill(STUDENTS, f"run={tmp_path / 'all'}")
    assert all(name in said for name in ("student-1", "larger", "control"))
    distill("seed=1", *SEEDS, f"run={tmp_path / 'one'}")
    distill(
        "student.model=resnet14", "objective={ce: 1, at: {weight: 10, layers: [[1, 1]]}}", f"run={tmp_path / 'larger'}"
    )
    call("train", *TINY, f"run={tmp_path / 'control'}")
    assert weights(tmp_path / "all" / "student-1") == weights(tmp_path / "one")
    assert weights(tmp_path / "all" / "larger") == weights(tmp_path / "larger")
    assert weights(tmp_path / "all" / "control") == weights(tmp_path / "control")
    rows = json.loads((tmp_path / "all" / "student-1" / "result.json").read_text())["rows"]
    assert rows["teacher"]["top1"] > 0


def test_the_teacher_sees_each_batch_once(distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    features = Teacher.features
    monkeypatch.setattr(
        Teacher, "features", lambda self, batch, **reads: passes.append(reads) or features(self, batch, **reads)
    )
    distill(STUDENTS, f"run={tmp_path / 'all'}")
    assert len(passes) == 6  # three steps in each of two epochs, for three students
    assert all(reads == {"maps": True} for reads in passes)


@pytest.mark.parametrize("saves", [1, pytest.param(3, marks=pytest.mark.long)])
def test_interrupted_students_end_as_undisturbed_ones(
    distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Killed after some saves, of which one student has had more than another."""
    distill(STUDENTS, f"run={tmp_path / 'whole'}")
    save, count = Checkpoints.save, iter(range(1, 100))

    def killed(self: Checkpoints, step: int, state: dict) -> Path:
        path = save(self, step, state)
        if next(count) == saves:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        distill(STUDENTS, f"run={tmp_path / 'cut'}", code=130)
    distill(STUDENTS, f"run={tmp_path / 'cut'}")
    for name in ("student-1", "larger", "control"):
        assert weights(tmp_path / "cut" / name) == weights(tmp_path / "whole" / name), name


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["students=[{epochs: 3}]"], "students[1] has the key 'epochs', which the students share"),
        (["students=[{batch_size: 3}]"], "has the key 'batch_size'"),
        (["students=[{name: a}, {name: a}]"], "two of them are called 'a'"),
        (["students=[{name: a}, {name: A}]"], "two of them are called 'A'"),
        (["students=[{nam: a}]"], "students[1]: unknown key 'nam'. Did you mean 'name'?"),
        (["students=[{name: ../a}]"], "it becomes a folder's name"),
        (["students=[{seed: 1}]", "control=true"], "add the control to the students"),
        (["students=[{seed: one}]"], "the student 'student-1'"),
        (["students=[{model: resnet20, objective: {pfed: 1}}]"], "pefd"),
        (["students=[{student: resnet20}]"], "student"),
    ],
)
def test_what_students_cannot_differ_in_is_refused(distill, tmp_path: Path, values: list[str], sentence: str) -> None:
    said = distill(*values, f"run={tmp_path / 'run'}", code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_students_own_precision_is_not_the_teachers(distill, tmp_path: Path) -> None:
    """The teacher that all share computes as the recipe around them says; alone, that has to be said."""
    distill("students=[{precision: bf16, name: half}, {seed: 1}]", f"run={tmp_path / 'all'}")
    distill("precision=bf16", "teacher.precision=fp32", f"run={tmp_path / 'alone'}")
    assert weights(tmp_path / "all" / "half") == weights(tmp_path / "alone")
