"""Judging a finished network: its accuracy on its own validation images, or on others."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.config import DataConfig, Recipe
from potstill.data.faces import open_test, otherwise_aligned
from potstill.data.source import Source, Split
from potstill.errors import DataError, RecipeError, nearest
from potstill.networks.ship import load_student
from potstill.networks.tap import Tapped
from potstill.procedures.data import all_skipped, evaluation_loader, prepare_data
from potstill.procedures.faces import embed_images, embedding_of, measured, told_by
from potstill.procedures.networks import class_names, network_of
from potstill.procedures.opening import open_split, resolve_data
from potstill.procedures.scenes import SCENE_TASKS
from potstill.procedures.speed import autocast_of
from potstill.procedures.tasks import judge_of, must_fit
from potstill.tasks.classification import evaluate
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder

__all__ = ["Evaluation", "evaluate_network"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a network does.

    Attributes:
        images: how many it was judged by.
        skipped: how many damaged ones were left out.
        data: what they are.
        note: how they came to be the ones, said out loud.
        accuracies: ``top1`` and ``top5`` in percent, ``val_loss``; of other tasks their own values.
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
    if recipe.task == "faces":
        return _of_faces(recipe, network, processes)
    split = open_split(recipe)
    source = split.val if split.val is not None else split.train
    note = (
        split.note if split.val is not None else f"There is no validation split: all {len(source)} images are judged."
    )
    if recipe.task != "classification":
        return _of_another_task(recipe, network, split, note, processes)
    source = _numbered_as(source, network, class_names(config.weights))
    own = recipe.data.model_copy(update=_own_input(recipe, network))
    data = resolve_data(recipe.model_copy(update={"data": own}), source)
    loaded = evaluation_loader(recipe.model_copy(update={"data": data}), source, processes)
    autocast = autocast_of(recipe)
    accuracies = evaluate(network.to(processes.device), loaded.loader.epoch(0), processes, autocast=autocast)
    skipped = all_skipped(processes.gathered({"val": loaded.skipped}))["val"]
    return Evaluation(len(source) - len(skipped), len(skipped), source.name, note, accuracies)


def _of_another_task(recipe: Recipe, network: Tapped, split: Split, note: str, processes: Processes) -> Evaluation:
    """Detection and segmentation are judged as a run judges its student."""
    must_fit(recipe, network)
    if split.val is None:
        raise DataError(f"There is nothing to judge by: {note} Name a part that is there (data.judged), or other data.")
    own = recipe.data.model_copy(update=_own_input(recipe, network))
    recipe = recipe.model_copy(update={"data": own})
    recipe = recipe.model_copy(update={"data": resolve_data(recipe, split.train)})
    names = class_names(recipe.student.weights)
    if names is not None and names != split.val.classes:
        raise DataError(
            f"{split.val.name} has the classes {', '.join(split.val.classes)}, and the network {', '.join(names)}; "
            "they must be the same, in one order."
        )
    data = prepare_data(recipe, split, processes)
    network = network.to(processes.device)
    values = judge_of(recipe, network, network, None, data, processes).values(None)
    skipped = all_skipped(processes.gathered({"val": data.skipped["val"]}))["val"]
    return Evaluation(len(split.val) - len(skipped), len(skipped), split.val.name, note, values)


def _of_faces(recipe: Recipe, network: Tapped, processes: Processes) -> Evaluation:
    """Faces are judged by a protocol alone, or by people that are kept apart; those learned from are not looked at."""
    must_fit(recipe, network)
    config = recipe.data
    test, note = open_test(
        config.path, config.protocol, source=config.source, val_fraction=config.val_fraction, seed=config.split_seed
    )
    images = test.images
    if images is None:
        raise DataError(f"There is nothing to judge by: {note}")
    told_by(test, config.far)
    own = {**_own_input(recipe, network), "split_seed": DataConfig().split_seed}  # which has been read
    recipe = recipe.model_copy(update={"data": config.model_copy(update=own)})
    data = resolve_data(recipe, images)
    built_for = getattr(network.network, "img_size", None)
    if isinstance(built_for, tuple) and built_for != (data.size, data.size):
        raise DataError(
            f"data.size={data.size} cannot be: the network was built for images of {built_for[0]} x {built_for[1]}. "
            "Leave data.size out."
        )
    if said := _otherwise_aligned(recipe.student.weights, test.alignment):
        log.warning(said)
    loaded = evaluation_loader(recipe.model_copy(update={"data": data}), images, processes)
    embedding = embedding_of(network.to(processes.device), autocast_of(recipe))
    found = embed_images(embedding, loaded.loader, loaded.source, test, processes)
    skipped = all_skipped(processes.gathered({"val": loaded.skipped}))["val"]
    values = measured(found, test, config.far)
    return Evaluation(len(images) - len(skipped), len(skipped), images.name, note, values)


def _otherwise_aligned(weights: str | None, judged: str | None) -> str | None:
    """A warning where a run's folder says that it learned from faces that are placed otherwise."""
    result = RunFolder(weights).result() if weights is not None and Path(weights).is_dir() else None
    known = (result or {}).get("alignment")
    return otherwise_aligned(known.get("learned"), judged) if isinstance(known, dict) else None


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
        scenes = recipe.task in SCENE_TASKS  # whose recipes say it: a network's own size has two sides
        own["size"] = recipe.data.size or (None if scenes else network.input_size[-1])
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
