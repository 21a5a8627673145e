"""From a recipe's data section to the two loaders of a run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from potstill.config import DataConfig, Recipe
from potstill.data.decode import decoding
from potstill.data.groups import choose_order
from potstill.data.materialise import materialise
from potstill.data.mixing import Mixing
from potstill.data.open import open_data
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.source import Source, Split, Subset, subset
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation, Evaluation, View
from potstill.data.workers import decoding_workers
from potstill.errors import DataError
from potstill.section import unread
from potstill.training.distributed import Processes

__all__ = [
    "Data", "DataFacts", "Loaded", "all_skipped", "describe_data", "evaluation_loader", "open_split", "prepare_data",
    "resolve_data",
]  # fmt: skip

log = logging.getLogger(__name__)

_MIXED_SIZES = 224  # the side for images of many sizes, as the ImageNet literature has it
_RESIDENT_LIMIT = 2 * 1024**3  # bytes that loader=auto lets the resident loader take; set by hand there is no limit
_PIXEL_BYTES = 7  # while it loads: three channels as decoded, and four packed
_SAID = 5  # of the damaged images; the rest is in result.json
# Images of an evaluation batch, at least: without a gradient a device's memory allows more than a training step's, but
# what a network keeps of 64 stays in a CPU's caches, and more take longer for each.
_EVALUATION_BATCH, _EVALUATION_BATCH_ON_A_CPU = 256, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What is known of a run's data before any image is decoded: all that building its networks takes.

    Attributes:
        classes: names, in the order of their numbers; empty without labels.
        mean: of the channels, in 0..1; what ``Batch.images`` are normalised with.
        std: likewise.
        size: side of the images.
        notes: sentences to say out loud.
        found: how many training and validation images there are, damaged ones among them.
        identity: of the training images, damaged ones among them.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    notes: tuple[str, ...]
    found: tuple[int, int]
    identity: str

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(DataFacts):
    """The facts with the loaders: everything that the rest of a run needs of its data.

    Attributes:
        train: the training loader.
        val: the evaluation loader, or None where there is nothing to evaluate on.
        clean: makes a loader that sees the training images as evaluation does, each once.
        labels: ``(N,)`` int64 of the training images in use, by index; None where they have none.
        augmentation: the map from (index, view) to what training sees.
        samples: N, how many training images are in use.
        decoding: what decodes them and how, as far as pixels depend on it.
        in_use: identity of the training images without damaged ones; the samples' indices are positions among these.
        skipped: of ``train`` and of ``val``, where each damaged image lies that was left out so far and what is wrong
            with it. A streaming loader adds to it as it meets them.
    """

    train: ResidentLoader | StreamingLoader
    val: ResidentLoader | StreamingLoader | None
    clean: Callable[[], ResidentLoader | StreamingLoader]
    labels: Tensor | None
    augmentation: Augmentation
    samples: int
    decoding: str
    in_use: str
    skipped: dict[str, dict[str, str]]


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
    """The section with every "auto" and none replaced by what this source makes of it.

    Raises:
        DataError: names every value that nothing would read, or a crop that the loader cannot make.
    """
    small = source.fixed_size is not None and max(source.fixed_size) <= 64
    size = config.size or (max(source.fixed_size) if small and source.fixed_size else _MIXED_SIZES)
    fits = len(source) * size * size * _PIXEL_BYTES <= _RESIDENT_LIMIT
    loader = config.loader if config.loader != "auto" else ("resident" if small and fits else "streaming")
    crop = config.crop if config.crop != "auto" else ("pad" if small else "resized")
    resolved = config.model_copy(
        update={
            "size": size,
            "crop": crop,
            "flip": config.flip if config.flip is not None else source.mirrors,
            "loader": loader,
            "order": _order(config, source) if loader == "streaming" else config.order,
            "mean": config.mean or source.statistics.mean,
            "std": config.std or source.statistics.std,
        }
    )
    problems = unread("data", resolved)
    if loader == "streaming" and crop == "pad" and source.fixed_size != (size, size):
        problems.append(
            f"data.crop=pad needs images of one size, {size} x {size}; {source.name} holds "
            f"{'images of ' + str(source.fixed_size) if source.fixed_size else 'images of many sizes'}. "
            "Use data.crop=resized, or data.loader=resident, which resizes them once."
        )
    if config.split_seed != DataConfig().split_seed and not isinstance(source, Subset):
        problems.append(
            f"data.split_seed={config.split_seed} does nothing: {source.name} is used whole, so there is no split to "
            "choose. Leave it out."
        )
    if problems:
        raise DataError(" ".join(problems))
    return resolved


def _order(config: DataConfig, source: Source) -> str:
    return "full" if choose_order(source, config.order) is None else "groups"


def describe_data(recipe: Recipe, split: Split) -> DataFacts:
    """The facts of a split, for a recipe whose data section is resolved; nothing is decoded."""
    config, train, val = recipe.data, split.train, split.val
    size = config.size or _MIXED_SIZES
    return DataFacts(
        classes=train.classes if train.labels is not None else (),
        mean=config.mean or train.statistics.mean,
        std=config.std or train.statistics.std,
        size=size,
        notes=(split.note, _loader_note(config.loader, len(train) + (len(val) if val is not None else 0))),
        found=(len(train), len(val) if val is not None else 0),
        identity=train.identity,
    )


def _loader_note(loader: str, images: int) -> str:
    if loader == "resident":
        return f"The resident loader decodes the {images:,} images once and holds them on the device."
    return f"The streaming loader decodes the {images:,} images anew in each epoch."


def prepare_data(recipe: Recipe, split: Split, processes: Processes) -> Data:
    """The loaders of a recipe whose data section is resolved.

    Raises:
        DataError: for data that cannot be used; see the sources.
    """
    config, train, val, facts = recipe.data, split.train, split.val, describe_data(recipe, split)
    mixes = config.mixup or config.cutmix
    mixing_seed = _seed(config.order_seed, recipe)
    mixing = Mixing(max(1, len(train.classes)), config.mixup, config.cutmix, seed=mixing_seed) if mixes else None
    augmentation = Augmentation(
        size=facts.size, crop="none" if config.crop == "auto" else config.crop, padding=config.padding,
        scale=config.scale, ratio=config.ratio, flip=bool(config.flip), seed=_seed(config.view_seed, recipe),
    )  # fmt: skip
    learnt = _loaded(recipe, train, augmentation, mixing, processes)
    judged = _loaded(recipe, val, None, None, processes) if val is not None else None
    return Data(
        **{field.name: getattr(facts, field.name) for field in fields(facts)},
        train=learnt.loader,
        val=judged.loader if judged else None,
        clean=lambda: _loaded(recipe, train, None, None, processes).loader,
        labels=None if learnt.source.labels is None else torch.as_tensor(learnt.source.labels).long(),
        augmentation=augmentation,
        samples=len(learnt.source),
        # Pixels that are read as they are and not resampled depend on no library.
        decoding="none"
        if train.in_memory and config.crop != "resized"
        else decoding(config.draft and config.loader == "streaming"),
        in_use=learnt.source.identity,
        skipped={"train": learnt.skipped, "val": judged.skipped if judged else {}},
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loader with what it loads.

    Attributes:
        loader: gives the batches.
        source: what ``Batch.index`` counts in: the source without the images that were found damaged beforehand.
        skipped: where each damaged image lies that was left out so far, and what is wrong with it.
    """

    loader: ResidentLoader | StreamingLoader
    source: Source
    skipped: dict[str, str]


def evaluation_loader(recipe: Recipe, source: Source, processes: Processes) -> Loaded:
    """The loader that judges by a source alone, where nothing is trained; the recipe's data section is resolved."""
    return _loaded(recipe, source, None, None, processes)


def all_skipped(parts: Sequence[dict[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
    """What all processes skipped, as :attr:`Data.skipped`; said out loud where it is anything.

    Example:
        >>> all_skipped([{"train": {}}, {"train": {}}])
        {'train': {}}
    """
    found = {
        name: dict(sorted({place: reason for part in parts for place, reason in part[name].items()}.items()))
        for name in parts[0]
    }
    reasons = [reason for images in found.values() for reason in images.values()]
    if reasons:
        images = "1 damaged image was" if len(reasons) == 1 else f"{len(reasons)} damaged images were"
        more = f" And {len(reasons) - _SAID} more." if len(reasons) > _SAID else ""
        log.warning("%s skipped. %s%s", images, " ".join(reasons[:_SAID]), more)
    return found


def _loaded(
    recipe: Recipe, source: Source, augmentation: Augmentation | None, mixing: Mixing | None, processes: Processes
) -> Loaded:
    """A loader for training (with an augmentation) or for evaluation (without)."""
    config, size = recipe.data, recipe.data.size or _MIXED_SIZES
    mean, std = config.mean or source.statistics.mean, config.std or source.statistics.std
    training = augmentation is not None
    views = config.views if training else None
    images = None
    skipped: dict[str, str] = {}
    if config.loader == "resident":
        images, kept, missing = materialise(source, size, on_error=config.on_error)
        skipped = {one.where: one.reason for one in missing}
        source = subset(source, kept) if missing else source
    streams = config.loader == "streaming"
    least = _EVALUATION_BATCH_ON_A_CPU if torch.device(processes.device).type == "cpu" else _EVALUATION_BATCH
    plan = Plan(
        length=len(source),
        batch_size=recipe.batch_size if training else max(recipe.batch_size, least),
        seed=_seed(config.order_seed, recipe),
        shuffle=training,
        rank=processes.rank,
        world=processes.world,
        accumulate=recipe.accumulate if training else 1,
        fillers=training,
        groups=choose_order(source, config.order) if streams else None,
    )
    if images is not None:
        resident = ResidentLoader(
            images, source.labels, plan, augmentation, mean, std, processes.device, mixing, views
        )  # fmt: skip
        return Loaded(resident, source, skipped)
    # Images of one size that are not cropped anew are evaluated whole, others by the usual centre crop.
    view: View = augmentation or Evaluation(size, **({"resize": 1.0} if config.crop != "resized" else {}))
    workers = decoding_workers() if config.workers is None else config.workers
    streaming = StreamingLoader(
        source, plan, view, mean, std, processes.device, workers=workers, mixing=mixing, on_error=config.on_error,
        views=views, draft=config.draft,
    )  # fmt: skip
    return Loaded(streaming, source, streaming.skipped)


def _seed(own: int | None, recipe: Recipe) -> int:
    return recipe.seed if own is None else own
