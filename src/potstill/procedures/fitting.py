"""What a task asks of an objective and of networks: detectors show regions and pyramids, masks name pixels."""

import logging
from collections.abc import Sequence

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective
from potstill.methods.registry import find_method
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.segmentation.tapped import TappedSegmenter
from potstill.networks.tapped import Tapped
from potstill.procedures.scenes import SCENE_TASKS

__all__ = ["objective_must_fit", "peers_must_fit", "teacher_must_fit", "terms_must_fit"]

log = logging.getLogger(__name__)

# Methods that keep something for each image, or compare whole networks; a detector's rows are regions.
_OF_IMAGES = ("crd", "mutual", "dgkd", "cid", "srrl", "afd")
# Methods that take an image's embedding and its logits, or its class, together; a mask names pixels.
_OF_CLASSED_IMAGES = ("crd", "cid", "srrl")
_MAPS = frozenset({"maps", "preacts", "blocks"})


def terms_must_fit(recipe: Recipe, setting: Setting) -> None:
    """Refuse terms that read regions where there are none, before they are built and miss the classes.

    Raises:
        RecipeError: names the terms, and what to take.
    """
    needs = {name: find_method(name).needs for name in recipe.objective}
    rows = [name for name, need in needs.items() if need.class_means or "logits" in need.student | need.teacher]
    _must_look(recipe, setting, rows)


def objective_must_fit(recipe: Recipe, objective: Objective, setting: Setting) -> None:
    """Refuse terms that read what a task's networks do not show.

    Raises:
        RecipeError: names the terms, and what to take.
    """
    needs, task = objective.needs, recipe.task
    own = {name: method.needs for name, method in objective.methods.items()}
    if task != "detection" and "losses" in needs.student:
        raise RecipeError(f"task of the objective is for task=detection; with task={task} take ce or a margin.")
    classed = [name for name, need in own.items() if need.class_means or name in _OF_CLASSED_IMAGES]
    if task == "segmentation" and classed:
        raise RecipeError(
            f"{' and '.join(classed)} of the objective compares images by their classes, and in segmentation an image "
            "has no one class. Take terms of pixels (kd, dkd, dist) or of maps (pefd_maps, at, reviewkd)."
        )
    if task != "detection":
        return
    if images := [name for name in own if name in _OF_IMAGES]:
        raise RecipeError(
            f"{' and '.join(images)} of the objective is for whole images; a detector's rows are regions."
        )
    if mixed := [name for name, need in own.items() if "embedding" in need.student and need.student & _MAPS]:
        raise RecipeError(
            f"{' and '.join(mixed)} of the objective takes an image's maps and its embedding together, and a "
            f"detector's embeddings are of regions: set {mixed[0]}: {{weight: 1, embedding: false}}."
        )
    rows = [name for name, need in own.items() if (need.student | need.teacher) & {"logits", "embedding"}]
    _must_look(recipe, setting, rows)
    if "losses" not in needs.student:
        log.warning(
            "No term of the objective is the detector's own losses: its proposals and boxes stay as they were drawn. "
            "Add task."
        )


def teacher_must_fit(recipe: Recipe, network: Tapped) -> None:
    """Refuse a teacher of detection or segmentation that is for another task.

    Raises:
        RecipeError: names both.
    """
    kinds = {"detection": TappedDetector, "segmentation": TappedSegmenter}
    if recipe.task in kinds and not isinstance(network, kinds[recipe.task]):
        raise RecipeError(
            f"task={recipe.task}, but the teacher is a {type(network.network).__name__}, which is for another task: "
            f"take a network that was trained with task={recipe.task}."
        )


def peers_must_fit(recipe: Recipe) -> None:
    """Refuse peers where their logits are not of the same regions or pixels.

    Raises:
        RecipeError: names the task.
    """
    if recipe.procedure.name == "mutual" and recipe.task in SCENE_TASKS:
        raise RecipeError(
            f"procedure.name=mutual compares the peers' logits of whole images, which task={recipe.task} does not "
            "have: take procedure.name=joint with a teacher."
        )


def _must_look(recipe: Recipe, setting: Setting, rows: Sequence[str]) -> None:
    """Refuse terms that read regions where a detector looks at none."""
    networks = {"student": setting.student, "teacher": setting.teacher}
    dense = [who for who, spec in networks.items() if spec is not None and not spec.classes]
    if recipe.task == "detection" and rows and dense:
        raise RecipeError(
            f"{' and '.join(rows)} of the objective reads regions, and the {' and the '.join(dense)} looks at none: "
            "RetinaNet and FCOS name every place of their pyramid. Take terms of the pyramid (pefd_maps, at, "
            "fitnets), or fasterrcnn for both."
        )
