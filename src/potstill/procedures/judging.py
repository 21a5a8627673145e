"""What is measured of a student after an epoch, and of both networks at the end."""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from potstill.analysis.cost import measure_cost
from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import mean_projector_distance
from potstill.batch import Batch
from potstill.data.scene_loader import SceneLoader
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.procedures.taught import TaughtImages, measured, slots, taught_images
from potstill.projectors import ProjectorEnsemble
from potstill.tasks.classification import evaluate
from potstill.tasks.transfer import evaluate_transfer
from potstill.training.distributed import Processes
from potstill.training.step import TrainingStep

__all__ = ["Judge", "teacher_row"]


class Judge:
    """The accuracies of a student on the validation images; without labels, how closely it follows its teacher.

    With both come the distances of projectors: they are of parameters, and cost next to nothing.

    Args:
        network: the student, or the moving average of its weights.
        spec: the student's.
        teacher: None for a run without one.
        data: with the validation images.
        processes: this process and the others.
        autocast: the dtype to compute in; None for float32.
        measures: also norms, M_BC, M_DA and CKA.
    """

    def __init__(
        self, network: nn.Module, spec: FeatureSpec, teacher: Teacher | None, data: Data, processes: Processes,
        autocast: torch.dtype | None, measures: bool,
    ) -> None:  # fmt: skip
        self.network, self.spec, self.teacher = network, spec, teacher
        self.data, self.processes = data, processes
        self.autocast, self.measures = autocast, measures

    def values(self, objective: Objective) -> dict[str, float]:
        """One epoch's values by name.

        Args:
            objective: of the phase.
        """
        return self._judged(objective) | _distances(objective)

    def _judged(self, objective: Objective) -> dict[str, float]:
        data = self.data
        if data.val is None:
            return {}
        self.processes.align(self.network)
        if not data.labelled:
            whole = TrainingStep(self.network, objective, autocast=self.autocast)  # type: ignore[arg-type]
            return evaluate_transfer(whole, self.teacher, data.val.epoch(0), self.processes)
        if not self.measures:
            return evaluate(self.network, data.val.epoch(0), self.processes, autocast=self.autocast)
        return self._measured()

    def _measured(self) -> dict[str, float]:
        """The accuracies with the measures of the features, as ``val_norm``, ``val_m_bc`` and so on."""
        taught, loader = taught_of(self.teacher, self.data), self.data.val
        dim = self.teacher.spec.embedding_dim if self.teacher else None
        measures = FeatureMeasures(len(self.data.classes), self.spec.embedding_dim, dim, self.processes.device)
        images = 0 if loader is None or loader.labels is None else len(loader.labels)
        chosen = measured(images)
        places = slots(chosen, images, self.processes.device) if len(chosen) < images else None

        def observe(features: Features, batch: Batch) -> None:
            if taught is not None:
                taught.see(batch)
            student, targets, index = features.embedding, batch.targets, batch.index
            if places is not None:
                within = places[index] >= 0
                student, targets, index = student[within], targets[within], index[within]  # type: ignore[index]
            measures.add(student, targets, None if taught is None else taught.embeddings(index))  # type: ignore[arg-type]

        steps = () if loader is None else loader.epoch(0)
        found = evaluate(self.network, steps, self.processes, autocast=self.autocast, observe=observe)
        measures.sum_over(self.processes.sum)
        return found | {f"val_{name}": value for name, value in measures.values().items()}


def taught_of(teacher: Teacher | None, data: Data) -> TaughtImages | None:
    """What the teacher shows of the validation images; None without a teacher, or without images with labels."""
    if teacher is None or data.val is None or isinstance(data.val, SceneLoader) or data.val.labels is None:
        return None
    return taught_images(teacher, data.val, len(data.classes))


def teacher_row(teacher: Teacher, data: Data, processes: Processes, same_classes: bool) -> dict[str, Any]:
    """The teacher's accuracies where its classes are the data's, and what it costs.

    Args:
        teacher: which has seen the validation images.
        data: with these images.
        processes: this process and the others.
        same_classes: whether the teacher's classes, as far as their names are known, are the data's.
    """
    taught = taught_of(teacher, data)
    row: dict[str, Any] = {}
    if same_classes and taught is not None and taught.comparable:
        row = taught.accuracies.values(processes.sum)
    if processes.main:
        row |= asdict(measure_cost(teacher.network, (3, *(teacher.input_size or (data.size, data.size)))))
    return row


def _distances(objective: Objective) -> dict[str, float]:
    """The mean distance of two projectors of each ensemble, plain and squared, as ``val_pefd_distance`` and so on."""
    found = {}
    for name, method in objective.methods.items():
        ensemble = getattr(method, "projector", None)
        if isinstance(ensemble, ProjectorEnsemble) and ensemble.projectors > 1:
            projectors = [ensemble.projector(k) for k in range(ensemble.projectors)]
            found[f"val_{name}_distance"] = mean_projector_distance(projectors).item()
            found[f"val_{name}_distance_squared"] = mean_projector_distance(projectors, squared=True).item()
    return found
