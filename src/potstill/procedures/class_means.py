"""The teacher's class means: one pass over the training images, once a run."""

import json
import logging

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from potstill.analysis.class_means import ClassMeans
from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.files import write_whole
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder

__all__ = ["collect_class_means"]

log = logging.getLogger(__name__)

FILE = "class_means.safetensors"


def collect_class_means(
    teacher: Teacher, data: Data, recipe: Recipe, folder: RunFolder, processes: Processes
) -> Tensor:
    """The mean embedding of each class, ``(C, D)`` float32, from the run's folder where they are there already.

    They are collected on the views of the training's first epoch (``teacher.class_means=augmented``, as ND's authors
    see the images through the training transform) or on the images as evaluation sees them (``clean``); each process
    takes its part of the images.

    Raises:
        RecipeError: for images without labels.
        DataError: names the classes without an image.
    """
    policy = recipe.teacher.class_means if recipe.teacher else "augmented"
    made_of = {"teacher": teacher.identity, "data": data.in_use, "policy": policy, "seed": recipe.seed}
    path = folder.path / FILE
    if not any(processes.gathered(not path.exists() or _made_of(path) != made_of)):
        return safetensors.torch.load_file(path)["class_means"]
    if not data.labelled:
        raise RecipeError("The data has no labels, but class means need them: take the methods that read them out.")
    log.info("Collecting the teacher's class means on %d images.", data.found[0])
    means = ClassMeans(len(data.classes), teacher.spec.embedding_dim, device=processes.device)
    for batches in (data.train if policy == "augmented" else data.clean()).epoch(0):
        for batch in batches:
            if batch.weight > 0 and batch.targets is not None:  # a filler's image has been seen already
                means.add(teacher(batch.images).embedding, batch.targets)
    means.sum_over(processes.sum)
    found = means.means().to("cpu", torch.float32)
    content = safetensors.torch.save({"class_means": found}, metadata={"made_of": json.dumps(made_of)})
    processes.on_main(lambda: write_whole(path, content))
    return found


def _made_of(path: object) -> object:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("made_of", "null"))
