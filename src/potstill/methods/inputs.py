"""What a method that learns from a teacher is entitled to."""

from potstill.errors import RecipeError
from potstill.methods.base import Setting
from potstill.networks.features import Features, FeatureSpec

__all__ = ["teacher_features", "teacher_spec"]


def teacher_spec(setting: Setting, method: str) -> FeatureSpec:
    """The teacher's spec.

    Raises:
        RecipeError: in a setting without a teacher.
    """
    if setting.teacher is None:
        raise _no_teacher(method)
    return setting.teacher


def teacher_features(teacher: Features | None, method: str) -> Features:
    """The teacher's features of a batch.

    Raises:
        RecipeError: where there are none.
    """
    if teacher is None:
        raise _no_teacher(method)
    return teacher


def _no_teacher(method: str) -> RecipeError:
    return RecipeError(f"{method} learns from a teacher, and there is none: name one, or take {method} out.")
