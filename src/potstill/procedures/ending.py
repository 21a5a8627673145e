"""The last look of a run at its validation images, for what is kept of them: of both networks, image by image."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.analysis.cost import measure_cost
from potstill.config import Recipe
from potstill.files import write_whole
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.procedures.faces import FaceJudge, embed, measured, receiver_curve
from potstill.procedures.judging import taught_of, teacher_row
from potstill.procedures.networks import class_names
from potstill.procedures.pictures import DetectionPictures, MaskPictures
from potstill.procedures.predicting import predict
from potstill.procedures.scene_judging import DetectionJudge, SegmentationJudge, look_for, name_pixels
from potstill.procedures.speed import autocast_of
from potstill.training.distributed import Processes

__all__ = ["Ending", "look_again"]


@dataclass(frozen=True, slots=True)
class Ending:
    """What the last look found.

    Attributes:
        teacher: its row: how well it does, where that can be told, and what it costs.
        write: leaves what is kept in the run's folder; called on the main process.
        result: what ``result.json`` has beside what all tasks have.
    """

    teacher: dict[str, Any]
    write: Callable[[Path], object] = lambda folder: None
    result: dict[str, Any] = field(default_factory=dict)


def look_again(recipe: Recipe, judged: Any, teacher: Teacher | None, data: Data, processes: Processes) -> Ending:
    """Look once more at the validation images; every process must call it.

    Args:
        recipe: of the run.
        judged: the network that ships.
        teacher: None for a run without one.
        data: with the validation images.
        processes: this process and the others.
    """
    if recipe.task == "detection":
        return _detections(recipe, judged, teacher, data, processes)
    if recipe.task == "faces":
        return _faces(recipe, judged, teacher, data, processes)
    if recipe.task == "segmentation":
        return _masks(recipe, judged, teacher, data, processes)
    names = class_names(recipe.teacher.weights if recipe.teacher else None)
    same_classes = names in (None, data.classes)
    taught = taught_of(teacher, data)
    predictions = predict(judged, data, taught, same_classes, processes, autocast_of(recipe))
    row = teacher_row(teacher, data, processes, same_classes) if teacher else {}
    return Ending(row, lambda folder: None if predictions is None else predictions.write(folder))


def _detections(recipe: Recipe, judged: Any, teacher: Teacher | None, data: Data, processes: Processes) -> Ending:
    pictures, row = DetectionPictures(data), {}
    judge = DetectionJudge(judged, data, processes, autocast_of(recipe))
    looks = {"student": judge.look(pictures.observer("student"))}
    if teacher is not None and _knows_the_classes(recipe, teacher, data):
        looks["teacher"] = look_for(teacher.detect, data, processes, pictures.observer("teacher"))
    per_class = {name: found.per_class() for name, found in looks.items() if found is not None}
    if (found := looks.get("teacher")) is not None:
        row = found.values()
    if teacher is not None and processes.main:
        row |= asdict(measure_cost(teacher.network, data.input_size))
    shown = pictures.gathered(processes)
    return Ending(row, shown.write, {"per_class": per_class})


def _masks(recipe: Recipe, judged: Any, teacher: Teacher | None, data: Data, processes: Processes) -> Ending:
    pictures, row = MaskPictures(data), {}
    judge = SegmentationJudge(judged, data, processes, autocast_of(recipe))
    looks = {"student": judge.look(pictures.observer("student"))}
    if teacher is not None and _knows_the_classes(recipe, teacher, data):
        looks["teacher"] = name_pixels(
            lambda images: teacher(images).logits, data, processes, pictures.observer("teacher")
        )
    per_class = {name: found.per_class(processes.sum) for name, found in looks.items() if found is not None}
    if (found := looks.get("teacher")) is not None:
        row = found.values(processes.sum)
    if teacher is not None and processes.main:
        row |= asdict(measure_cost(teacher.network, data.input_size))
    shown = pictures.gathered(processes)
    return Ending(row, shown.write, {"per_class": per_class})


def _faces(recipe: Recipe, judged: Any, teacher: Teacher | None, data: Data, processes: Processes) -> Ending:
    judge, far, row = FaceJudge(judged, data, processes, autocast_of(recipe), recipe.data.far), recipe.data.far, {}
    curves, test, aligned = {}, data.test, {}
    if test is not None:
        aligned = {"alignment": {"learned": test.learned, "judged": test.alignment}}
    if data.val is not None:
        curves["student"] = receiver_curve(judge.embedded(), test)
        if teacher is not None:
            embedded = embed(lambda images: teacher(images).embedding, data, processes)
            row, curves["teacher"] = measured(embedded, test, far), receiver_curve(embedded, test)
    if teacher is not None and processes.main:
        row |= asdict(measure_cost(teacher.network, (3, *(teacher.input_size or (data.size, data.size)))))

    def write(folder: Path) -> None:
        if curves:
            write_whole(folder / "roc.json", json.dumps(curves) + "\n")

    return Ending(row, write, aligned)


def _knows_the_classes(recipe: Recipe, teacher: Teacher, data: Data) -> bool:
    names = class_names(recipe.teacher.weights if recipe.teacher else None)
    return names == data.classes or (names is None and teacher.network.classes == len(data.classes))
