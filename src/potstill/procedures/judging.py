"""What is measured of a student after an epoch, and of the teacher at the end."""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from potstill.analysis.cost import measure_cost
from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import mean_projector_distance
from potstill.batch import Batch
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.projectors import ProjectorEnsemble
from potstill.tasks.classification import evaluate
from potstill.tasks.transfer import evaluate_transfer
from potstill.training.distributed import Processes
from potstill.training.step import TrainingStep

__all__ = ["Judge", "teacher_row"]


class Judge:
    """The accuracies of a student on the validation images; without labels, how closely it follows its teacher.

    Args:
        network: the student, or the moving average of its weights.
        spec: the student's.
        teacher: None for a run without one.
        data: with the validation images.
        processes: this process and the others.
        autocast: the dtype to compute in; None for float32.
        measures: also norms, M_BC, M_DA, CKA and the distances of projectors.
    """

    def __init__(
        self, network: nn.Module, spec: FeatureSpec, teacher: Teacher | None, data: Data, processes: Processes,
        autocast: torch.dtype | None, measures: bool,
    ) -> None:  # fmt: skip
        self.network, self.spec, self.teacher = network, spec, teacher
        self.data, self.processes = data, processes
        self.autocast, self.measures = autocast, measures

    def values(self, objective: Objective) -> dict[str, float]:
        """One epoch's values by name; nothing without validation images.

        Args:
            objective: of the phase.
        """
        data = self.data
        if data.val is None:
            return {}
        self.processes.align(self.network)
        if not data.labelled:
            whole = TrainingStep(self.network, objective, autocast=self.autocast)  # type: ignore[arg-type]
            return evaluate_transfer(whole, self.teacher, data.val.epoch(0), self.processes)
        if not self.measures:
            return evaluate(self.network, data.val.epoch(0), self.processes, autocast=self.autocast)
        return self._measured() | _distances(objective)

    def _measured(self) -> dict[str, float]:
        """The accuracies with the measures of the features, as ``val_norm``, ``val_m_bc`` and so on."""
        teacher, data = self.teacher, self.data
        dim = teacher.spec.embedding_dim if teacher else None
        measures = FeatureMeasures(len(data.classes), self.spec.embedding_dim, dim, self.processes.device)

        def observe(features: Features, batch: Batch) -> None:
            taught = teacher(batch.images).embedding if teacher else None
            measures.add(features.embedding, batch.targets, taught)  # type: ignore[arg-type]

        steps = data.val.epoch(0) if data.val else ()
        found = evaluate(self.network, steps, self.processes, autocast=self.autocast, observe=observe)
        measures.sum_over(self.processes.sum)
        return found | {f"val_{name}": value for name, value in measures.values().items()}


def teacher_row(teacher: Teacher, data: Data, processes: Processes, same_classes: bool) -> dict[str, Any]:
    """The teacher's accuracies where its classes are the data's, and what it costs."""
    row: dict[str, Any] = {}
    if same_classes and data.val is not None and data.labelled and teacher.spec.classes == len(data.classes):
        row = evaluate(teacher, data.val.epoch(0), processes)
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
