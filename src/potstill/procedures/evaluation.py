"""Judging a finished network: its accuracy on its own validation images, or on others."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.config import Recipe
from potstill.data.source import Source
from potstill.errors import DataError, RecipeError, nearest
from potstill.networks.ship import load_student
from potstill.networks.tap import Tapped
from potstill.procedures.data import all_skipped, evaluation_loader, open_split, resolve_data
from potstill.procedures.networks import class_names, network_of
from potstill.procedures.speed import autocast_of
from potstill.tasks.classification import evaluate
from potstill.training.distributed import Processes

__all__ = ["Evaluation", "evaluate_network"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a network does.

    Attributes:
        images: how many it was judged by.
        skipped: how many damaged ones were left out.
        data: what they are.
        note: how they came to be the ones, said out loud.
        accuracies: ``top1`` and ``top5`` in percent, ``val_loss``.
    """

    images: int
    skipped: int
    data: str
    note: str
    accuracies: dict[str, float]


def evaluate_network(recipe: Recipe, processes: Processes) -> Evaluation:
    """Judge the recipe's student, as its weights are, on the validation images of the recipe's data.

    Where there are none (``data.val_fraction=0``) it is judged by all images. Classes are matched by name where the
    weights know their classes' names (those of a run's folder do), by number elsewhere.

    Args:
        recipe: its student names the weights; its data section may leave mean, deviation and size to the network.
        processes: over which the images are divided.

    Raises:
        RecipeError: no weights.
        NetworkError: weights that cannot be used.
        DataError: no labels, or classes that the network does not know.
    """
    config = recipe.student
    if config.weights is None and not config.pretrained:
        raise RecipeError("There is nothing to judge: name a run's folder, or student.model and student.weights.")
    network = _network(recipe)
    split = open_split(recipe.data)
    source = split.val if split.val is not None else split.train
    note = (
        split.note if split.val is not None else f"There is no validation split: all {len(source)} images are judged."
    )
    source = _numbered_as(source, network, class_names(config.weights))
    data = resolve_data(recipe.data.model_copy(update=_own_input(recipe, network)), source)
    loaded = evaluation_loader(recipe.model_copy(update={"data": data}), source, processes)
    autocast = autocast_of(recipe)
    accuracies = evaluate(network.to(processes.device), loaded.loader.epoch(0), processes, autocast=autocast)
    skipped = all_skipped(processes.gathered({"val": loaded.skipped}))["val"]
    return Evaluation(len(source) - len(skipped), len(skipped), source.name, note, accuracies)


def _network(recipe: Recipe) -> Tapped:
    config = recipe.student
    if config.weights is not None and Path(config.weights).is_dir():
        return load_student(config.weights, config.model)
    return network_of(config, None, recipe.data.size)


def _own_input(recipe: Recipe, network: Tapped) -> dict[str, object]:
    """The network's own normalisation and size, as far as it knows them and the recipe says nothing else."""
    own: dict[str, object] = {}
    if network.normalisation is not None:
        mean, std = network.normalisation
        own = {"mean": recipe.data.mean or mean, "std": recipe.data.std or std}
        own["size"] = recipe.data.size or network.input_size[-1]
    return own


def _numbered_as(source: Source, network: Tapped, names: tuple[str, ...] | None) -> Source:
    """The source with its labels numbered as the network numbers its classes; the one that is given stays as it is."""
    if source.labels is None:
        raise DataError(f"{source.name} has no labels, so accuracy cannot be measured on it.")
    if names is None:
        if len(source.classes) != network.spec.classes:
            raise DataError(
                f"{source.name} has {len(source.classes)} classes and the network {network.spec.classes}, and the "
                "weights do not say which is which. Give data with the network's classes, or a run's folder."
            )
        return source
    unknown = [name for name in source.classes if name not in names]
    if unknown:
        raise DataError(
            f"{source.name} has classes that the network does not know: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}.{nearest(unknown[0], names)}"
        )
    renumbered = copy.copy(source)
    renumbered.labels = np.array([names.index(name) for name in source.classes], dtype=np.int64)[source.labels]
    renumbered.classes = names
    return renumbered
