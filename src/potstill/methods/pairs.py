"""What two networks must have in common to be compared: classes, shapes, pairs of feature maps."""

from torch import Tensor

from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Setting
from potstill.methods.inputs import teacher_spec
from potstill.networks.features import MapSpec

__all__ = ["Pairs", "check_shapes", "common_classes", "map_pairs"]

Pairs = tuple[tuple[int, int], ...]
"""Indices into ``Features.maps``: the student's and the teacher's of each pair."""


def common_classes(setting: Setting, method: str) -> int:
    """The number of classes of both networks.

    Raises:
        NetworkError: where they differ or a network has none.
        RecipeError: in a setting without a teacher.
    """
    teacher, classes = teacher_spec(setting, method), setting.student.classes
    if classes != teacher.classes or not classes:
        raise NetworkError(
            f"{method} compares logits, but the student has {classes} classes and the teacher {teacher.classes}. Take "
            "a teacher of the same classes, or a method that compares embeddings, such as pefd."
        )
    return classes


def check_shapes(student: Tensor, teacher: Tensor, method: str, what: str = "logits") -> None:
    """Refuse two tensors of different shapes.

    Raises:
        NetworkError: names both shapes.
    """
    if student.shape != teacher.shape:
        raise NetworkError(
            f"{method} compares {what} of one shape, but the student's are {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}."
        )


def map_pairs(setting: Setting, layers: Pairs | None, method: str) -> list[tuple[int, int]]:
    """Which of the student's feature maps is compared with which of the teacher's.

    Args:
        setting: both networks.
        layers: the pairs of indices, counted from 0, the stem; None pairs all but the stem in their order.
        method: its name, for the sentence.

    Raises:
        NetworkError: where the numbers of maps differ and no pairs are named, or there are no maps.
        RecipeError: for an index that there is not, no pairs at all, or no teacher.

    Example:
        >>> from potstill.networks.features import FeatureSpec
        >>> spec = FeatureSpec(10, 64, (MapSpec("stem", 16, 1), MapSpec("layer1", 16, 1), MapSpec("layer2", 32, 2)))
        >>> map_pairs(Setting(spec, spec), None, "vid")
        [(1, 1), (2, 2)]
    """
    teacher = teacher_spec(setting, method)
    ours, theirs = len(setting.student.maps), len(teacher.maps)
    if layers is None:
        if ours != theirs or ours < 2:
            raise NetworkError(
                f"{method} compares the ends of the stages one by one, without the stem, but the student has "
                f"{_listed(setting.student.maps)} and the teacher {_listed(teacher.maps)}. Name the pairs in "
                f"{method}'s layers, for instance [[1, 1], [2, 3]], or the layers in student.taps and teacher.taps."
            )
        return [(i, i) for i in range(1, ours)]
    if not layers:
        raise RecipeError(f"layers of {method} is empty; name pairs of maps, for instance [[1, 1], [2, 2]].")
    for s, t in layers:
        if not (0 <= s < ours and 0 <= t < theirs):
            raise RecipeError(
                f"layers of {method} has the pair [{s}, {t}], but the student has {_listed(setting.student.maps)} and "
                f"the teacher {_listed(teacher.maps)}, counted from 0."
            )
    return [(s, t) for s, t in layers]


def _listed(maps: tuple[MapSpec, ...]) -> str:
    return f"{len(maps)} maps ({', '.join(m.name for m in maps)})" if maps else "no maps"
