"""From a recipe's data section to the two loaders of a run."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from potstill.config import DataConfig, Recipe
from potstill.data.materialise import Skipped, materialise
from potstill.data.mixing import Mixing
from potstill.data.open import open_data
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.source import Source, Split
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation, Evaluation, View
from potstill.errors import DataError
from potstill.training.distributed import Processes

__all__ = ["Data", "evaluation_loader", "open_split", "prepare_data", "resolve_data"]

_MIXED_SIZES = 224  # the side for images of many sizes, as the ImageNet literature has it
_EVALUATION_BATCH = 256  # no gradient: memory allows more than a training step's images, and nothing depends on it


@dataclass(frozen=True, slots=True)
class Data:
    """Everything that the rest of a run needs to know of its data.

    Attributes:
        train: the training loader.
        val: the evaluation loader, or None where there is nothing to evaluate on.
        classes: names, in the order of their numbers; empty without labels.
        mean: of the channels, in 0..1; what ``Batch.images`` are normalised with.
        std: likewise.
        size: side of the images.
        notes: sentences to say out loud.
        identity: of the training source.
        counts: how many training and validation images there are.
        skipped: asks for the damaged images that were skipped so far, with the reason of each.
    """

    train: ResidentLoader | StreamingLoader
    val: ResidentLoader | StreamingLoader | None
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    notes: tuple[str, ...]
    identity: str
    counts: tuple[int, int]
    skipped: Callable[[], dict[str, str]]

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)


def open_split(config: DataConfig) -> Split:
    """The training and validation sources that a recipe names."""
    return open_data(
        config.source,
        config.path,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        image_column=config.image_column,
        label_column=config.label_column,
        size=config.size,
    )


def resolve_data(config: DataConfig, source: Source) -> DataConfig:
    """The section with every "auto" and none replaced by what this source makes of it."""
    small = source.fixed_size is not None and max(source.fixed_size) <= 64
    digits = source.name.startswith("digits")
    size = config.size or (max(source.fixed_size) if small and source.fixed_size else _MIXED_SIZES)
    loader = config.loader if config.loader != "auto" else ("resident" if small else "streaming")
    crop = config.crop if config.crop != "auto" else ("pad" if small else "resized")
    if loader == "streaming" and crop == "pad" and source.fixed_size != (size, size):
        raise DataError(
            f"data.crop=pad needs images of one size, {size} x {size}; {source.name} holds "
            f"{'images of ' + str(source.fixed_size) if source.fixed_size else 'images of many sizes'}. "
            "Use data.crop=resized, or data.loader=resident, which resizes them once."
        )
    return config.model_copy(
        update={
            "size": size,
            "crop": crop,
            "flip": config.flip if config.flip is not None else not digits,
            "loader": loader,
            "mean": config.mean or source.statistics.mean,
            "std": config.std or source.statistics.std,
        }
    )


def prepare_data(recipe: Recipe, split: Split, processes: Processes) -> Data:
    """The loaders of a recipe whose data section is resolved.

    Raises:
        DataError: for data that cannot be used; see the sources.
    """
    config, train, val = recipe.data, split.train, split.val
    size = config.size or _MIXED_SIZES
    mean, std = config.mean or train.statistics.mean, config.std or train.statistics.std
    mixes = config.mixup or config.cutmix
    mixing = Mixing(max(1, len(train.classes)), config.mixup, config.cutmix, seed=recipe.seed) if mixes else None
    augmentation = Augmentation(
        size=size, crop=config.crop, padding=config.padding, scale=config.scale, ratio=config.ratio,
        flip=bool(config.flip), seed=recipe.seed,
    )  # fmt: skip
    train_loader, missing = _loader(recipe, train, augmentation, mixing, processes)
    val_loader, val_missing = _loader(recipe, val, None, None, processes) if val is not None else (None, [])
    skipped = [*missing, *val_missing]

    def all_skipped() -> dict[str, str]:
        found = {item.where: item.reason for item in skipped}
        for loader in (train_loader, val_loader):
            found |= getattr(loader, "skipped", {})
        return found

    return Data(
        train=train_loader,
        val=val_loader,
        classes=train.classes if train.labels is not None else (),
        mean=mean,
        std=std,
        size=size,
        notes=(split.note,),
        identity=train.identity,
        counts=(len(train), len(val) if val is not None else 0),
        skipped=all_skipped,
    )


def evaluation_loader(recipe: Recipe, source: Source, processes: Processes) -> ResidentLoader | StreamingLoader:
    """The loader that judges by a source alone, where nothing is trained; the recipe's data section is resolved."""
    return _loader(recipe, source, None, None, processes)[0]


def _loader(
    recipe: Recipe, source: Source, augmentation: Augmentation | None, mixing: Mixing | None, processes: Processes
) -> tuple[ResidentLoader | StreamingLoader, list[Skipped]]:
    """A loader for training (with an augmentation) or for evaluation (without)."""
    config, size = recipe.data, recipe.data.size or _MIXED_SIZES
    mean, std = config.mean or source.statistics.mean, config.std or source.statistics.std
    training = augmentation is not None
    images, labels = None, source.labels
    missing: list[Skipped] = []
    if config.loader == "resident":
        images, kept, missing = materialise(source, size, on_error=config.on_error)
        labels = None if labels is None else labels[kept]
    plan = Plan(
        length=len(source) if images is None else len(images),
        batch_size=recipe.batch_size if training else max(recipe.batch_size, _EVALUATION_BATCH),
        seed=recipe.seed,
        shuffle=training,
        rank=processes.rank,
        world=processes.world,
        accumulate=recipe.accumulate if training else 1,
        fillers=training,
    )
    if images is not None:
        return ResidentLoader(images, labels, plan, augmentation, mean, std, processes.device, mixing), missing
    # Images of one size that are not cropped anew are evaluated whole, others by the usual centre crop.
    view: View = augmentation or Evaluation(size, **({"resize": 1.0} if config.crop != "resized" else {}))
    return StreamingLoader(
        source, plan, view, mean, std, processes.device,
        workers=_workers(config.workers), mixing=mixing, on_error=config.on_error,
    ), missing  # fmt: skip


def _workers(asked: int | None) -> int:
    """One process a core that this process may use, up to eight: decoding saturates before that."""
    return (
        asked if asked is not None else min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    )
