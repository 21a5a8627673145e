"""What a run trains on: its images, and the teacher's outputs for them, live or from a store."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Needs
from potstill.networks.teacher import Teacher, Teaches
from potstill.procedures.class_means import collect_class_means
from potstill.procedures.data import Data
from potstill.procedures.stored import open_stored
from potstill.procedures.together import SharedLoader, SharedTeaching
from potstill.training.distributed import Processes
from potstill.training.settings import Loader

__all__ = ["Prepared", "prepare_teaching", "shared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a run reads while it trains.

    Attributes:
        data: the images.
        loader: gives the training batches: the data's own, or one that several students share.
        teaching: gives the teacher's features of a batch; None without a teacher.
        class_means: collects the teacher's class means, ``(C, D)`` float32 on the CPU; every process must call it.
    """

    data: Data
    loader: Loader
    teaching: Teaches | None
    class_means: Callable[[], Tensor]


def prepare_teaching(
    recipe: Recipe, teacher: Teacher | None, needs: Needs, data: Data, processes: Processes
) -> Prepared:
    """The data with what its teacher gives.

    Args:
        recipe: resolved.
        teacher: the recipe's.
        needs: what the objectives read.
        data: the images.
        processes: this process and the others.
    """
    if teacher is None or recipe.teacher is None:
        return Prepared(data, data.train, None, _no_means)
    policy = recipe.teacher.class_means
    live = functools.partial(collect_class_means, teacher, data, policy, processes)
    if recipe.teacher.store is None:
        return Prepared(data, data.train, teacher, live)
    stored = open_stored(recipe, teacher, needs, data, processes)

    def means() -> Tensor:
        kept = stored.store.class_means(policy)
        return live() if kept is None else kept

    return Prepared(data, data.train, stored, means)


def shared(prepared: Prepared, needs: Needs) -> Prepared:
    """The same for several students that train side by side: each batch, the teacher's features and the means once."""
    teaching = SharedTeaching(prepared.teaching, needs.on_demand("teacher")) if prepared.teaching else None
    means = functools.cache(prepared.class_means)
    return replace(prepared, loader=SharedLoader(prepared.loader), teaching=teaching, class_means=means)


def _no_means() -> Tensor:
    raise RecipeError("Class means are the teacher's, and there is no teacher.")
