"""What explains a finished run: the measures of its student's and its teacher's features, of its projectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.analysis.measures import FeatureMeasures
from potstill.analysis.metrics import mean_projector_distance
from potstill.config import Recipe
from potstill.errors import DataError, RecipeError, RunError
from potstill.networks.ship import load_student
from potstill.networks.teacher import Teacher
from potstill.procedures.data import describe_data, evaluation_loader
from potstill.procedures.networks import DTYPES, build_teacher
from potstill.procedures.opening import open_split, resolve_data
from potstill.projectors import Layer
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder

__all__ = ["Analysis", "analyze_run"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The measures of a run.

    Attributes:
        data: the images that they were taken on.
        images: how many.
        networks: ``student`` and, where the run has one, ``teacher``: the measures of each by name, see
            :class:`potstill.analysis.measures.FeatureMeasures`.
        pair: ``m_da`` (where the embeddings have one length) and ``cka``, between the two.
        projectors: the mean distance of two projectors, plain and squared, by the method whose they are.
    """

    data: str
    images: int
    networks: dict[str, dict[str, float]]
    pair: dict[str, float]
    projectors: dict[str, dict[str, float]]


def analyze_run(recipe: Recipe, folder: Path, processes: Processes, model: str | None = None) -> Analysis:
    """Measure a finished run on its validation images, or on all of them where there are none.

    Args:
        recipe: the run's.
        folder: the run's.
        processes: over which the images are divided.
        model: for a student of your own code, its ``package.module:factory``.

    Raises:
        RunError: for a run that has not finished.
        DataError: for images without labels, or of fewer than two classes.
    """
    student = load_student(folder, model).to(processes.device)
    if recipe.task != "classification":
        raise RecipeError(
            f"`potstill analyze` measures embeddings of classes, and this run has task={recipe.task}; its report has "
            "what was measured of it."
        )
    split = open_split(recipe)
    source = split.val if split.val is not None else split.train
    if source.labels is None:
        raise DataError(f"{source.name} has no labels, and the between-class measures need them.")
    recipe = recipe.model_copy(update={"data": resolve_data(recipe, split.train)})
    teacher = build_teacher(recipe, describe_data(recipe, split), processes)
    loader = evaluation_loader(recipe, source, processes).loader
    sides: dict[str, Any] = {"student": student.eval()} | ({"teacher": teacher} if teacher else {})
    measures = {
        name: FeatureMeasures(len(source.classes), network.spec.embedding_dim, _other(name, teacher), processes.device)
        for name, network in sides.items()
    }
    precision = DTYPES[recipe.precision]
    with torch.no_grad():
        for batches in loader.epoch(0):
            for batch in batches:
                if batch.weight == 0 or batch.targets is None:
                    continue
                with torch.autocast(processes.device.type, dtype=precision, enabled=precision != torch.float32):
                    embedding = student(batch.images).embedding
                taught = teacher(batch.images).embedding if teacher else None
                measures["student"].add(embedding, batch.targets, taught)
                if taught is not None:
                    measures["teacher"].add(taught, batch.targets)
    for one in measures.values():
        one.sum_over(processes.sum)
    values = {name: one.values() for name, one in measures.items()}
    if "m_bc" not in values["student"]:
        raise DataError(f"{source.name} is of one class, and the between-class cosine needs images of two or more.")
    pair: dict[str, float] = {
        name: values["student"].pop(name) for name in ("m_da", "cka") if name in values["student"]
    }
    values["student"].pop("norm_teacher", None)
    return Analysis(source.name, len(source), values, pair, projector_distances(folder))


def projector_distances(folder: Path) -> dict[str, dict[str, float]]:
    """The mean distance of each two projectors of every ensemble in a run's newest checkpoint."""
    checkpoints = Checkpoints(RunFolder(folder).checkpoints)
    newest = checkpoints.newest()
    if newest is None:
        raise RunError(f"{folder} has no checkpoint to read projectors from; it may have been cleaned up.")
    state = checkpoints.load(newest)["objective"]
    found = {}
    for key in (key for key in state if key.endswith("projector.weight_0")):
        ensemble = _ensemble(state, key.removesuffix("weight_0"))
        if len(ensemble) > 1:
            name = key.split(".")[1]
            found[name] = {
                "distance": mean_projector_distance(ensemble).item(),
                "squared": mean_projector_distance(ensemble, squared=True).item(),
            }
    return found


def _ensemble(state: dict[str, torch.Tensor], prefix: str) -> list[list[Layer]]:
    depth = sum(f"{prefix}weight_{layer}" in state for layer in range(len(state)))
    weights = [state[f"{prefix}weight_{layer}"] for layer in range(depth)]
    return [[(weight[k], None) for weight in weights] for k in range(len(weights[0]))]


def _other(name: str, teacher: Teacher | None) -> int | None:
    return teacher.spec.embedding_dim if teacher is not None and name == "student" else None
