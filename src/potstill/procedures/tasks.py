"""What differs from task to task: the terms of an objective, the step, the judge."""

import copy
from typing import Any, Protocol

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.objective import default_objective
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.segmentation.tapped import TappedSegmenter
from potstill.networks.tapped import Tapped
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.procedures.faces import FaceJudge
from potstill.procedures.judging import Judge
from potstill.procedures.phases import Phase
from potstill.procedures.scene_judging import DetectionJudge, SegmentationJudge
from potstill.procedures.speed import autocast_of
from potstill.training.detection import DetectionStep
from potstill.training.distributed import Processes
from potstill.training.segmentation import SegmentationStep
from potstill.training.step import TrainingStep

__all__ = ["Judges", "judge_of", "must_fit", "own_term", "step_of", "terms_of", "untaught"]

# The term that the labels give alone, and what a teacher adds where a recipe says nothing.
_OWN = {"classification": "ce", "detection": "task", "segmentation": "ce", "faces": "arcface"}
_TAUGHT: dict[str, dict[str, Any]] = {
    "detection": {"task": 1.0, "pefd_maps": {"weight": 1.0, "projectors": 3}},
    "segmentation": {"ce": 1.0, "pefd_maps": {"weight": 1.0, "projectors": 3}},
    "faces": {"arcface": 1.0, "pefd": {"weight": 25.0, "projectors": 3}},
}


class Judges(Protocol):
    """Measures a student after an epoch."""

    def values(self, objective: Any) -> dict[str, float]:
        """One epoch's values by name; every process calls it."""


def own_term(task: str) -> str:
    """The method that trains a network of a task on its labels alone."""
    return _OWN[task]


def terms_of(task: str, taught: bool) -> dict[str, Any]:
    """What a recipe that names no objective trains on.

    Example:
        >>> terms_of("detection", taught=False)
        {'task': 1.0}
    """
    if task == "classification":
        return default_objective(taught)
    return copy.deepcopy(_TAUGHT[task]) if taught else {_OWN[task]: 1.0}


def untaught(recipe: Recipe) -> dict[str, Any]:
    """The objective of a control: the term of the labels alone, as the recipe has it, with weight 1."""
    name = _OWN[recipe.task]
    term = recipe.objective.get(name)
    return {name: {**term, "weight": 1.0} if isinstance(term, dict) else 1.0}


def step_of(recipe: Recipe, student: Tapped, phase: Phase, teacher: Teacher | None) -> TrainingStep:
    """What is computed for a batch in a phase of a run."""
    common: dict[str, Any] = {
        "autocast": autocast_of(recipe), "channels_last": recipe.channels_last, "trains": phase.trains
    }  # fmt: skip
    if isinstance(student, TappedDetector):
        return DetectionStep(student, phase.objective, teacher=teacher, **common)
    if recipe.task == "segmentation":
        return SegmentationStep(student, phase.objective, compiled=recipe.compile is True, **common)
    return TrainingStep(student, phase.objective, compiled=recipe.compile is True, **common)


def judge_of(
    recipe: Recipe, judged: Any, student: Tapped, teacher: Teacher | None, data: Data, processes: Processes
) -> Judges:
    """What measures a student in a run.

    Args:
        recipe: of the run.
        judged: the student, or the moving average of its weights.
        student: which says what it shows.
        teacher: None for a run without one.
        data: with the validation images.
        processes: this process and the others.
    """
    autocast = autocast_of(recipe)
    if recipe.task == "detection":
        return DetectionJudge(judged, data, processes, autocast)
    if recipe.task == "segmentation":
        return SegmentationJudge(judged, data, processes, autocast)
    if recipe.task == "faces":
        return FaceJudge(judged, data, processes, autocast, recipe.data.far)
    return Judge(judged, student.spec, teacher, data, processes, autocast, recipe.log.measures)


def must_fit(recipe: Recipe, student: Tapped) -> None:
    """Refuse a network that is not for the recipe's task.

    Raises:
        RecipeError: names both.
    """
    kinds = {"detection": TappedDetector, "segmentation": TappedSegmenter}
    kind = next((task for task, network in kinds.items() if isinstance(student, network)), None)
    if kind != (recipe.task if recipe.task in kinds else None):
        raise RecipeError(
            f"task={recipe.task}, but the student is a {type(student.network).__name__}. Detectors are named "
            "fasterrcnn/BACKBONE, retinanet/BACKBONE or fcos/BACKBONE (task=detection), networks for segmentation "
            "fcn/BACKBONE, deeplabv3/BACKBONE or lraspp/BACKBONE (task=segmentation)."
        )
