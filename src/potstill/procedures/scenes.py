"""From a recipe's data section to the loaders of detection and segmentation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill.batch import Batch
from potstill.config import DataConfig, Recipe
from potstill.data.decode import decoding
from potstill.data.layouts import find_layout
from potstill.data.order import Plan
from potstill.data.scene_decoder import padded
from potstill.data.scene_loader import SceneLoader
from potstill.data.scene_view import SceneAugmentation, SceneEvaluation, SceneView
from potstill.data.scenes import choose, open_scenes
from potstill.data.source import Source, Split
from potstill.data.workers import decoding_workers
from potstill.errors import DataError
from potstill.objects import Objects, Size
from potstill.training.distributed import Processes

__all__ = ["SCENE_TASKS", "each_alone", "open_scene_split", "prepare_scenes", "resolve_scenes"]

SCENE_TASKS = ("detection", "segmentation")

_SHORT = {"detection": 800, "segmentation": 520}  # the shorter side in torchvision's reference trainings
_LONGEST = 1333 / 800  # of the shorter side, likewise

# What the loader of scenes does not read, and why.
_UNREAD = {
    "crop": "detection shows whole images, and segmentation windows of data.size",
    "padding": "scenes are not cut with padding", "scale": "scenes have data.sizes", "ratio": "scenes keep their ratio",
    "mixup": "boxes and masks are not mixed", "cutmix": "boxes and masks are not mixed",
    "loader": "scenes are decoded as they are needed", "order": "scenes lie in files of their own",
    "draft": "boxes are pixels of the full image", "image_column": "it is for Parquet files",
    "label_column": "it is for Parquet files", "protocol": "it is for task=faces", "far": "it is for task=faces",
}  # fmt: skip

_RESOLVED = {"loader": "streaming", "crop": "none", "draft": False, "order": "full"}  # what a resolved section has


def open_scene_split(config: DataConfig, task: str) -> Split:
    """The training and validation sources that a recipe names.

    Raises:
        DataError: no path, a seed of a split that nothing would draw, or what
            :func:`~potstill.data.scenes.open_scenes` finds wrong.
    """
    if config.path is None:
        raise DataError(f"task={task} needs data.path: a folder in the layout of COCO or VOC, or images with masks.")
    if config.source not in ("auto", "coco", "voc", "masks"):
        raise DataError(f"data.source={config.source} is no data for task={task}; take coco, voc or masks.")
    drawn = choose(find_layout(task, Path(config.path), config.source), config.judged) is None
    if config.split_seed != DataConfig().split_seed and not drawn:
        raise DataError(
            f"data.split_seed={config.split_seed} does nothing: {config.path} brings a part to judge by, so there is "
            "no split to choose. Leave it out."
        )
    return open_scenes(
        task, config.path, judged=config.judged, val_fraction=config.val_fraction, seed=config.split_seed,
        source=config.source,
    )  # fmt: skip


def resolve_scenes(config: DataConfig, source: Source, task: str) -> DataConfig:
    """The section with every "auto" and none said, for detection and segmentation.

    Raises:
        DataError: names every value that nothing would read.
    """
    own, problems = DataConfig(), []
    for name, reason in _UNREAD.items():
        value = getattr(config, name)
        said = _RESOLVED.get(name)
        if value not in (getattr(own, name), said):
            problems.append(f"data.{name}={value} does nothing with task={task}: {reason}. Leave it out.")
    if problems:
        raise DataError(" ".join(problems))
    size = config.size or _SHORT[task]
    sizes = config.sizes or (size,)
    return config.model_copy(
        update={
            "size": size, "sizes": sizes, "longest": config.longest or round(max(size, *sizes) * _LONGEST),
            "flip": source.mirrors if config.flip is None else config.flip, **_RESOLVED,
            "mean": config.mean or source.statistics.mean, "std": config.std or source.statistics.std,
        }
    )  # fmt: skip


def prepare_scenes(recipe: Recipe, split: Split, processes: Processes) -> dict[str, Any]:
    """The loaders of a recipe for detection or segmentation, whose data section is resolved.

    Args:
        recipe: resolved.
        split: the sources.
        processes: this process and the others.

    Returns:
        What a :class:`~potstill.procedures.data.Data` has beside the facts.
    """
    config, task = recipe.data, recipe.task
    view_seed = recipe.seed if config.view_seed is None else config.view_seed
    longest, size = config.longest or 0, config.size or 0
    view = SceneAugmentation(
        sizes=config.sizes, longest=longest, flip=bool(config.flip), crop=size if task == "segmentation" else None,
        seed=view_seed,
    )  # fmt: skip
    train: Any = split.train
    learnt = _loader(recipe, train, view, processes)
    judged = _loader(recipe, split.val, None, processes) if split.val is not None else None
    return {
        "train": learnt, "val": judged, "clean": lambda: _loader(recipe, train, None, processes), "labels": None,
        "augmentation": view, "samples": len(train), "decoding": decoding(draft=False), "in_use": train.identity,
        "skipped": {"train": learnt.skipped, "val": judged.skipped if judged else {}}, "judged": split.val,
    }  # fmt: skip


def each_alone(batch: Batch, sizes: Sequence[Size]) -> Iterator[Batch]:
    """A batch's images, each padded as if it were by itself; those that come to one size together.

    What a network makes of an image near its right and lower edge depends on the padding, and a batch is padded to its
    largest image. So what is measured would depend on the batch size and the number of processes.

    Args:
        batch: of a loader of scenes.
        sizes: (height, width) of each image inside it.
    """
    rows: dict[Size, list[int]] = defaultdict(list)
    for row, size in enumerate(sizes):
        rows[padded([size])].append(row)
    for (height, width), chosen in rows.items():
        objects = batch.objects
        yield replace(
            batch,
            images=batch.images[chosen, :, :height, :width],
            targets=None if batch.targets is None else batch.targets[chosen, :height, :width],
            index=batch.index[chosen],
            view=batch.view[chosen],
            objects=None if objects is None else _some(objects, chosen),
        )


def _some(objects: Objects, rows: Sequence[int]) -> Objects:
    return Objects(
        tuple(objects.boxes[row] for row in rows), tuple(objects.labels[row] for row in rows),
        tuple(objects.sizes[row] for row in rows), tuple(objects.originals[row] for row in rows),
    )  # fmt: skip


def _loader(recipe: Recipe, source: Any, view: SceneView | None, processes: Processes) -> SceneLoader:
    """For training (with an augmentation) or for evaluation (without)."""
    config, training = recipe.data, view is not None
    plan = Plan(
        length=len(source), batch_size=recipe.batch_size,
        seed=recipe.seed if config.order_seed is None else config.order_seed, shuffle=training,
        rank=processes.rank, world=processes.world, accumulate=recipe.accumulate if training else 1, fillers=training,
    )  # fmt: skip
    return SceneLoader(
        source, plan, view or SceneEvaluation(config.size or 0, config.longest or 0),
        config.mean or source.statistics.mean, config.std or source.statistics.std, torch.device(processes.device),
        workers=decoding_workers() if config.workers is None else config.workers, on_error=config.on_error,
        views=config.views if training else None, masks=recipe.task == "segmentation",
    )  # fmt: skip
