"""What student and teacher said of each validation image, as a finished run keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.errors import RunError
from potstill.files import write_whole
from potstill.plain_json import to_json

__all__ = ["PREDICTIONS_FILE", "ClassRow", "Confusion", "Predictions"]

PREDICTIONS_FILE = "predictions.safetensors"
"""Its name in a run's folder."""

_FORMAT = 1
_ABOUT = "predictions"  # the file's metadata: the format, the data's identity, the number of classes
_NETWORKS = ("student", "teacher")
_DTYPES = {
    "index": torch.int64, "label": torch.int32, "map_rows": torch.int64,
    **dict.fromkeys(_NETWORKS, torch.int32),
    **{f"{name}_confidence": torch.float16 for name in _NETWORKS},
    **{f"map_{name}": torch.float16 for name in _NETWORKS},
}  # fmt: skip
_ALWAYS = ("index", "label", "student", "student_confidence", "map_rows", "map_student")
_OF_THE_MAP = ("map_rows", "map_student", "map_teacher")


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class.

    Attributes:
        label: its number.
        images: how many of it there are.
        student: percent of them that the student names rightly.
        teacher: likewise; None without a teacher of these classes.
    """

    label: int
    images: int
    student: float
    teacher: float | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """A class that is taken for another one.

    Attributes:
        label: what it is.
        predicted: what it is taken for.
        images: how many of it there are.
        student: how often the student takes it so.
        teacher: likewise; None without a teacher of these classes.
    """

    label: int
    predicted: int
    images: int
    student: int
    teacher: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """``predictions.safetensors``: a row for each of N validation images, in the order of ``index``.

    Attributes:
        data: identity of the data that the run trained on.
        classes: C, how many there are.
        index: ``(N,)`` int64, position in the validation source (of its images that can be read).
        label: ``(N,)`` int32, the class that it is.
        student: ``(N,)`` int32, the class that the student names.
        student_confidence: ``(N,)`` float16, the softmax probability of that class.
        teacher: ``(N,)`` int32, likewise; None without a teacher, or where its classes are others.
        teacher_confidence: ``(N,)`` float16; None where ``teacher`` is.
        map_rows: ``(M,)`` int64, the rows of the N that are on the map, ascending.
        map_student: ``(M, at most 32)`` float16, the student's embeddings of those, centred and reduced by PCA.
        map_teacher: likewise; None without a teacher.

    Raises:
        RunError: tensors that do not fit together.

    Example:
        >>> rows = torch.arange(3)
        >>> found = Predictions(
        ...     data="digits", classes=2, index=rows, label=torch.tensor([0, 1, 1]).int(),
        ...     student=torch.tensor([0, 0, 1]).int(), student_confidence=torch.ones(3).half(),
        ...     map_rows=rows, map_student=torch.zeros(3, 2).half(),
        ... )
        >>> [(row.label, row.images, row.student) for row in found.per_class()]
        [(0, 1, 100.0), (1, 2, 50.0)]
        >>> found.confusions(5)
        [Confusion(label=1, predicted=0, images=2, student=1, teacher=None)]
    """

    data: str
    classes: int
    index: Tensor
    label: Tensor
    student: Tensor
    student_confidence: Tensor
    teacher: Tensor | None = None
    teacher_confidence: Tensor | None = None
    map_rows: Tensor
    map_student: Tensor
    map_teacher: Tensor | None = None

    def __post_init__(self) -> None:
        if problem := _problem(self._tensors(), self.classes):
            raise RunError(f"These are no predictions of a run: {problem}.")

    def write(self, folder: Path) -> None:
        """Write the file into a run's folder, whole or not at all.

        Raises:
            RunError: where it cannot be written.
        """
        # One key: several would be written in any order, and the same predictions are the same bytes.
        about = {"format": _FORMAT, "data": self.data, "classes": self.classes}
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        write_whole(folder / PREDICTIONS_FILE, safetensors.torch.save(tensors, {_ABOUT: to_json(about)}))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a run's predictions: from its folder, or from the file itself.

        Raises:
            RunError: there is no such file, or it is damaged or of another format.
        """
        path = Path(path)
        path = path / PREDICTIONS_FILE if path.is_dir() else path
        if not path.is_file():
            raise RunError(
                f"{path} is missing. A run writes it when it finishes, if it has validation images with labels."
            )
        advice = "Delete it together with result.json beside it, and the run's command writes it anew."
        try:
            with safe_open(path, framework="pt") as file:
                about: Any = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}. {advice}") from None
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            known = about.get("format") if isinstance(about, dict) else None
            raise RunError(f"{path} has the format {known!r}, and this version of Potstill reads {_FORMAT!r}. {advice}")
        data, classes = about.get("data"), about.get("classes")
        if not isinstance(data, str) or not isinstance(classes, int) or classes < 1:
            raise RunError(f"{path} is damaged: it is of data {data!r} and {classes!r} classes. {advice}")
        if problem := _problem(tensors, classes):
            raise RunError(f"{path} is damaged: {problem}. {advice}")
        return cls(data=data, classes=classes, **tensors)

    def per_class(self) -> list[ClassRow]:
        """How well each class is named, in the order of their numbers; classes without an image are left out."""
        images = self.label.bincount(minlength=self.classes)
        rights = {
            name: self.label[said == self.label].bincount(minlength=self.classes) / images.clamp(min=1).double() * 100
            for name, said in self._said().items()
        }
        teacher = rights.get("teacher")
        return [
            ClassRow(k, int(images[k]), float(rights["student"][k]), None if teacher is None else float(teacher[k]))
            for k in images.nonzero().flatten().tolist()
        ]

    def confusions(self, most: int) -> list[Confusion]:
        """The pairs of classes that the student confuses most often, the most frequent first.

        Args:
            most: so many at most.
        """
        images = self.label.bincount(minlength=self.classes)
        kinds = {name: self.label.long() * self.classes + said for name, said in self._said().items()}
        wrong = kinds["student"][self.student != self.label]
        pairs, counts = wrong.unique(return_counts=True)
        first = counts.argsort(descending=True, stable=True)[:most]
        found = []
        for pair, count in zip(pairs[first].tolist(), counts[first].tolist(), strict=True):
            label, predicted = divmod(pair, self.classes)
            theirs = int((kinds["teacher"] == pair).sum()) if "teacher" in kinds else None
            found.append(Confusion(label, predicted, int(images[label]), count, theirs))
        return found

    def _said(self) -> dict[str, Tensor]:
        return {name: said for name in _NETWORKS if (said := getattr(self, name)) is not None}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name in _DTYPES if (tensor := getattr(self, name)) is not None}


def _problem(tensors: Mapping[str, Tensor], classes: int) -> str | None:
    """What is wrong with a file's tensors, as a sentence without its full stop; None where they are as they must be."""
    for name in _ALWAYS:
        if name not in tensors:
            return f"it has no tensor {name}"
    for name, tensor in tensors.items():
        if name not in _DTYPES:
            return f"it has a tensor {name!r}, which is unknown"
        if tensor.dtype != _DTYPES[name] or tensor.ndim != (2 if name in _OF_THE_MAP[1:] else 1):
            return f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected {_DTYPES[name]}"
        beside = "map_rows" if name in _OF_THE_MAP else "index"
        if len(tensor) != len(tensors[beside]):
            return f"{name} has {len(tensor)} rows and {beside} {len(tensors[beside])}"
    if ("teacher" in tensors) != ("teacher_confidence" in tensors):
        return "teacher and teacher_confidence go together, and one of them is missing"
    for name, end in {**dict.fromkeys(("label", *_NETWORKS), classes), "map_rows": len(tensors["index"])}.items():
        values = tensors.get(name)
        if values is not None and len(values) and not 0 <= int(values.min()) <= int(values.max()) < end:
            return f"{name} goes from {int(values.min())} to {int(values.max())}; expected numbers from 0 to {end - 1}"
    for name in ("index", "map_rows"):
        if (tensors[name].diff() <= 0).any() or (tensors[name] < 0).any():
            return f"{name} is not in ascending order"
    return None
