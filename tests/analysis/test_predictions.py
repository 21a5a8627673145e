"""The file of a run's predictions: what it says by class, and what is refused in reading it."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from potstill.analysis.predictions import ClassRow, Confusion, Predictions
from potstill.errors import RunError


def predictions(**others) -> Predictions:
    """Six images of classes 0, 2 and 3 out of four."""
    found = {
        "data": "cafe", "classes": 4, "index": torch.tensor([0, 1, 2, 4, 5, 9]),
        "label": torch.tensor([0, 2, 2, 2, 3, 3]).int(),
        "student": torch.tensor([0, 1, 1, 2, 0, 3]).int(), "student_confidence": torch.full((6,), 0.5).half(),
        "teacher": torch.tensor([0, 1, 2, 2, 3, 0]).int(), "teacher_confidence": torch.full((6,), 0.25).half(),
        "map_rows": torch.tensor([1, 4]), "map_student": torch.ones(2, 3).half(),
        "map_teacher": torch.ones(2, 5).half(),
    }  # fmt: skip
    return Predictions(**{**found, **others})


ALONE = {"teacher": None, "teacher_confidence": None, "map_teacher": None}


def test_accuracy_by_class():
    third = pytest.approx(100 / 3)
    assert predictions().per_class() == [
        ClassRow(0, 1, 100.0, 100.0), ClassRow(2, 3, third, pytest.approx(200 / 3)), ClassRow(3, 2, 50.0, 50.0)
    ]  # fmt: skip
    assert [row.teacher for row in predictions(**ALONE).per_class()] == [None] * 3


def test_confusions_with_the_teachers_beside():
    assert predictions().confusions(10) == [Confusion(2, 1, 3, 2, 1), Confusion(3, 0, 2, 1, 1)]
    assert predictions().confusions(1) == [Confusion(2, 1, 3, 2, 1)]
    assert predictions(**ALONE).confusions(1) == [Confusion(2, 1, 3, 2, None)]
    assert predictions(student=predictions().label).confusions(10) == []


def test_confusions_of_many_classes_do_not_overflow():
    label = torch.tensor([99_999, 99_998]).int()
    found = predictions(
        classes=100_000, index=torch.arange(2), label=label, student=label.flip(0),
        student_confidence=torch.ones(2).half(), **ALONE,
        map_rows=torch.arange(0), map_student=torch.zeros(0, 3).half(),
    )  # fmt: skip
    assert [(one.label, one.predicted) for one in found.confusions(2)] == [(99_998, 99_999), (99_999, 99_998)]


@pytest.mark.parametrize("others", [{}, ALONE, {**ALONE, "map_teacher": torch.ones(2, 5).half()}])
def test_what_is_written_is_read(tmp_path: Path, others: dict):
    written = predictions(**others)
    written.write(tmp_path)
    for path in (tmp_path, tmp_path / "predictions.safetensors"):
        read = Predictions.read(path)
        for field in fields(Predictions):
            ours, theirs = getattr(written, field.name), getattr(read, field.name)
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.safetensors"]


def test_rows_that_are_views_are_written_whole(tmp_path: Path):
    wide = torch.arange(12).reshape(2, 6).half().T  # neither contiguous nor alone in its storage
    predictions(map_rows=torch.arange(6), map_student=wide, map_teacher=wide).write(tmp_path)
    assert torch.equal(Predictions.read(tmp_path).map_student, wide)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"student": None}, "it has no tensor student"),
        ({"student": torch.zeros(6).long()}, r"student is torch.int64 of shape \(6,\); expected torch.int32"),
        ({"map_student": torch.zeros(2).half()}, r"map_student is torch.float16 of shape \(2,\)"),
        ({"label": torch.zeros(5).int()}, "label has 5 rows and index 6"),
        ({"map_teacher": torch.zeros(3, 2).half()}, "map_teacher has 3 rows and map_rows 2"),
        ({"classes": 3}, "label goes from 0 to 3; expected numbers from 0 to 2"),
        ({"teacher": torch.full((6,), -1).int()}, "teacher goes from -1 to -1"),
        ({"teacher": None}, "go together"),
        ({"map_rows": torch.tensor([1, 6])}, "map_rows goes from 1 to 6; expected numbers from 0 to 5"),
        ({"map_rows": torch.tensor([4, 1])}, "map_rows is not in ascending order"),
        ({"index": torch.tensor([0, 1, 1, 2, 3, 4])}, "index is not in ascending order"),
        ({"index": torch.arange(-1, 5)}, "index is not in ascending order"),
    ],
)
def test_tensors_that_do_not_fit_together(tmp_path: Path, others: dict, said: str):
    with pytest.raises(RunError, match=f"These are no predictions of a run: .*{said}"):
        replace(predictions(), **others)
    tensors = {
        field.name: value
        for field in fields(Predictions)
        if isinstance(value := others.get(field.name, getattr(predictions(), field.name)), torch.Tensor)
    }
    path = tmp_path / "predictions.safetensors"
    about = {"format": 1, "data": "cafe", "classes": others.get("classes", 4)}
    safetensors.torch.save_file(tensors, path, {"predictions": json.dumps(about)})
    with pytest.raises(RunError, match=f"{path} is damaged: .*{said}.*Delete it"):
        Predictions.read(tmp_path)


def test_a_damaged_file_is_told(tmp_path: Path):
    path = tmp_path / "predictions.safetensors"
    with pytest.raises(RunError, match=r"is missing\. A run writes it when it finishes"):
        Predictions.read(tmp_path)
    predictions().write(tmp_path)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-10], b"\x80\x04garbage" * 9, whole[:8] + b"[" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"is damaged: .* Delete it together with result.json"):
            Predictions.read(tmp_path)
    tensors = safetensors.torch.load(whole)
    for about, said in (
        (None, "has the format None, and this version of Potstill reads 1"),
        ("[]", "has the format None"),
        ('{"format": 2}', "has the format 2"),
        ('{"format": 1', "is damaged: "),
        ('{"format": 1, "data": "cafe"}', "it is of data 'cafe' and None classes"),
        ('{"format": 1, "data": "cafe", "classes": 0}', "it is of data 'cafe' and 0 classes"),
        ('{"format": 1, "data": null, "classes": 4}', "it is of data None and 4 classes"),
    ):
        path.write_bytes(safetensors.torch.save(tensors, about if about is None else {"predictions": about}))
        with pytest.raises(RunError, match=said):
            Predictions.read(tmp_path)
    good = {"predictions": '{"format": 1, "data": "cafe", "classes": 4}'}
    path.write_bytes(safetensors.torch.save(tensors, good))
    assert Predictions.read(tmp_path).classes == 4
    path.write_bytes(safetensors.torch.save({**tensors, "other": torch.ones(1)}, good))
    with pytest.raises(RunError, match="it has a tensor 'other', which is unknown"):
        Predictions.read(tmp_path)
