"""The teacher's class means: one pass over the training images, once a run."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from potstill.analysis.class_means import ClassMeans
from potstill.batch import Batch
from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.files import write_whole
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.procedures.scenes import each_alone
from potstill.training.distributed import Processes
from potstill.training.folder import RunFolder

__all__ = ["collect_class_means", "keep_class_means"]

log = logging.getLogger(__name__)

FILE = "class_means.safetensors"


def keep_class_means(
    compute: Callable[[], Tensor], made_of: dict[str, str], recipe: Recipe, folder: RunFolder, processes: Processes
) -> Tensor:
    """The mean embedding of each class, ``(C, D)`` float32, from the run's folder where they are there already.

    Args:
        compute: collects them, on all processes.
        made_of: the identities of the teacher and of the images.
        recipe: says on which views, and with which seed.
        folder: where they are kept with what they are made of.
        processes: this process and the others.
    """
    policy = recipe.teacher.class_means if recipe.teacher else "augmented"
    made_of = {**made_of, "policy": policy, "seed": str(recipe.data.view_seed)}
    path = folder.path / FILE
    if not any(processes.gathered(not path.exists() or _made_of(path) != made_of)):
        return safetensors.torch.load_file(path)["class_means"]
    found = compute()
    content = safetensors.torch.save({"class_means": found}, metadata={"made_of": json.dumps(made_of)})
    processes.on_main(lambda: write_whole(path, content))
    return found


def collect_class_means(teacher: Teacher, data: Data, policy: str, processes: Processes) -> Tensor:
    """One pass of the teacher over the training images.

    They are seen as in the training's first epoch (``augmented``, as ND's authors see them through the training
    transform) or as evaluation sees them (``clean``); each process takes its part of the images.

    Raises:
        RecipeError: for images without labels.
        DataError: names the classes without an image.
    """
    if not data.labelled:
        raise RecipeError("The data has no labels, but class means need them: take the methods that read them out.")
    log.info("Collecting the teacher's class means on %d images.", data.found[0])
    detects = isinstance(teacher.network, TappedDetector)
    means = ClassMeans(len(data.classes) + detects, teacher.spec.embedding_dim, device=processes.device)
    for batches in (data.train if policy == "augmented" else data.clean()).epoch(0):
        for batch in batches:
            if batch.weight == 0:  # a filler's image has been seen already
                continue
            if detects and batch.objects is not None:
                for part in each_alone(batch, batch.objects.sizes):
                    means.add(*_of_regions(teacher, part, len(data.classes)))
            elif batch.targets is not None:
                means.add(teacher(batch.images).embedding, batch.targets)
    means.sum_over(processes.sum)
    return means.means().float().cpu()


def _of_regions(teacher: Teacher, batch: Batch, background: int) -> tuple[Tensor, Tensor]:
    """The embeddings and classes of all regions that a detecting teacher proposes, the objects' own boxes among them.

    Nothing is drawn, and each image is padded by itself, so the means do not depend on how the images are divided
    between batches and processes. ND's authors take the regions that a detector in training draws.
    """
    levels = teacher(batch.images, maps=True).maps
    regions = teacher.network.propose(batch.images, levels, batch.objects, background)  # type: ignore[operator]
    return teacher.of_regions(levels, regions)[1], regions.labels


def _made_of(path: Path) -> object:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("made_of", "null"))
