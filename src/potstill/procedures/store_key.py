"""What a recipe's store is made of: the key that it must have, and what a record holds."""

from dataclasses import asdict
from typing import Any

from potstill.config import Recipe
from potstill.data.resident import ResidentLoader
from potstill.errors import RecipeError
from potstill.methods.base import Needs
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data
from potstill.store import StoreKey

__all__ = ["VECTORS", "store_key", "taps_to_keep", "views_of"]

VECTORS = ("logits", "embedding", "peers")
"""What is kept without being asked for: a record of these is small."""

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def views_of(recipe: Recipe) -> int:
    """How many views of each image a run of the recipe sees: as many as it has epochs, unless it says fewer."""
    return min(recipe.data.views or recipe.epochs, recipe.epochs)


def taps_to_keep(recipe: Recipe, needs: Needs) -> tuple[str, ...]:
    """What a store that this recipe builds holds of the teacher's features.

    Raises:
        RecipeError: the objective reads no teacher.
    """
    if recipe.store.keep is not None:
        left_out = [name for name in VECTORS if name in needs.teacher and name not in recipe.store.keep]
        if left_out and not recipe.store.live:
            raise RecipeError(
                f"store.keep=[{', '.join(recipe.store.keep)}] leaves out {' and '.join(left_out)}, which the objective "
                "reads. Name them too; or set store.live=true, for runs that ask the live teacher for them."
            )
        return recipe.store.keep
    kept = tuple(name for name in VECTORS if name in needs.teacher or (name == "embedding" and needs.class_means))
    if not kept:
        raise RecipeError(
            f"No method of the objective ({', '.join(recipe.objective)}) reads the teacher's logits or embedding, so a "
            "store would hold nothing. Name what it shall hold, store.keep=[logits, embedding]; feature maps are "
            "large, and have to be named too."
        )
    return kept


def store_key(recipe: Recipe, teacher: Teacher, data: Data, taps: tuple[str, ...]) -> StoreKey:
    """All that the teacher's outputs for this recipe's images depend on.

    Args:
        recipe: resolved.
        teacher: the recipe's.
        data: the images.
        taps: what is kept, or read.

    Raises:
        RecipeError: for mixed images, whose outputs no record stands for.
    """
    if recipe.data.mixup or recipe.data.cutmix:
        raise RecipeError(
            "teacher.store holds the teacher's outputs of single images, and data.mixup or data.cutmix shows it "
            "mixtures, which are others in every batch. Take the mixing out, or learn from the live teacher."
        )
    return StoreKey(
        teacher=teacher.identity,
        teacher_input=teacher.input(),
        precision=_PRECISIONS[str(teacher.precision)],
        taps=taps,
        data=data.in_use,
        classes=data.classes,
        samples=data.samples,
        augmentation=_augmentation(recipe, data),
        dtype=recipe.store.dtype or "fp16",
        top_k=recipe.store.top,
    )


def _augmentation(recipe: Recipe, data: Data) -> dict[str, Any]:
    """All that decides over a view's pixels: the augmentation, and what decodes and resamples the images."""
    resident = isinstance(data.train, ResidentLoader)
    return {
        **asdict(data.augmentation),
        "loader": "resident" if resident else "streaming",
        "decoding": data.decoding,
    }
