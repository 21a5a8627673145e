"""From a recipe's data section to the two loaders of a run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from potstill.config import Recipe
from potstill.data.decode import decoding
from potstill.data.faces import FaceTest
from potstill.data.groups import choose_order
from potstill.data.materialise import materialise
from potstill.data.mixing import Mixing
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.scene_loader import SceneLoader
from potstill.data.scene_view import SceneAugmentation
from potstill.data.source import Source, Split, subset
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation, Evaluation, View
from potstill.data.workers import decoding_workers
from potstill.errors import RecipeError
from potstill.procedures.opening import MIXED_SIZES, NO_STORE
from potstill.procedures.scenes import SCENE_TASKS, prepare_scenes
from potstill.training.distributed import Processes

__all__ = [
    "AnyLoader", "Data", "DataFacts", "Loaded", "all_skipped", "by_request", "describe_data", "evaluation_loader",
    "prepare_data",
]  # fmt: skip

log = logging.getLogger(__name__)

AnyLoader = ResidentLoader | StreamingLoader | SceneLoader

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
        size: side of the images; of scenes the shorter one.
        longest: bound of the longer side of scenes; None where images are square.
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
    longest: int | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """``(3, H, W)`` that networks are made for and measured at: of scenes, sides that are multiples of 32."""
        if self.longest is None:
            return (3, self.size, self.size)
        return (3, -(-self.size // 32) * 32, -(-min(self.longest, self.size * 4 // 3) // 32) * 32)

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
        judged: the source of the validation images in use, where the judge reads more of it than the loader gives.
        test: of faces what is done with them.
    """

    train: AnyLoader
    val: AnyLoader | None
    clean: Callable[[], AnyLoader]
    labels: Tensor | None
    augmentation: Augmentation | SceneAugmentation
    samples: int
    decoding: str
    in_use: str
    skipped: dict[str, dict[str, str]]
    judged: Source | None = None
    test: FaceTest | None = None


def by_request(loader: AnyLoader) -> ResidentLoader | StreamingLoader:
    """A loader as one that gives any views of any images on request, as a store is made and checked.

    Raises:
        RecipeError: for a loader of scenes.
    """
    if isinstance(loader, SceneLoader):
        raise RecipeError(NO_STORE)
    return loader


def describe_data(recipe: Recipe, split: Split) -> DataFacts:
    """The facts of a split, for a recipe whose data section is resolved; nothing is decoded."""
    config, train, val = recipe.data, split.train, split.val
    size = config.size or MIXED_SIZES
    return DataFacts(
        classes=train.classes if train.labels is not None or recipe.task in SCENE_TASKS else (),
        mean=config.mean or train.statistics.mean,
        std=config.std or train.statistics.std,
        size=size,
        notes=(split.note, _loader_note(config.loader, len(train) + (len(val) if val is not None else 0))),
        found=(len(train), len(val) if val is not None else 0),
        identity=train.identity,
        longest=config.longest,
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
    if recipe.task in SCENE_TASKS:
        return Data(**_fields(facts), **prepare_scenes(recipe, split, processes))
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
        **_fields(facts),
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
        judged=judged.source if judged else None,
        test=split.test,
    )


def _fields(facts: DataFacts) -> dict[str, Any]:
    return {field.name: getattr(facts, field.name) for field in fields(facts)}


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
    config, size = recipe.data, recipe.data.size or MIXED_SIZES
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
