"""What reading a teacher's store would take in its pass's place, timed on a small one that is thrown away."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from potstill.batch import Batch
from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Needs
from potstill.networks.features import Features
from potstill.networks.teacher import Teacher
from potstill.procedures.advice import StepTimes, Trial
from potstill.procedures.data import Data, by_request
from potstill.procedures.store_key import store_key, taps_to_keep, views_of
from potstill.procedures.stored import StoredTeaching, on_demand
from potstill.store import Layout, Store

__all__ = ["FewRows", "store_trial"]

_VIEWS = 8  # of each image, for a run that has more epochs than these


class FewRows:
    """A store of a few images that answers for all: the numbers are others', the time to read them is theirs.

    Args:
        stored: of the few.
    """

    def __init__(self, stored: StoredTeaching) -> None:
        self.stored = stored

    def features(self, batch: Batch, **reads: bool) -> Features:
        """The features of some of the few images."""
        index = batch.index % self.stored.store.samples
        return self.stored.features(replace(batch, index=index, view=torch.zeros_like(index)), **reads)

    def settle(self) -> None:
        """Nothing is written."""


def few_rows(
    recipe: Recipe, teacher: Teacher, needs: Needs, data: Data, batches: Sequence[list[Batch]], folder: Path
) -> FewRows:
    """A store of what the teacher says of some batches.

    Args:
        recipe: resolved.
        teacher: the recipe's.
        needs: what the objectives read.
        data: the images.
        batches: of some steps.
        folder: empty.

    Raises:
        RecipeError: for outputs that a store cannot stand for, or keeps only where it is told to.
        RunError: for numbers that the store's dtype cannot hold.
    """
    by_request(data.train)  # of scenes there is no store
    taps = taps_to_keep(recipe, needs)
    if lacking := sorted(needs.teacher - set(taps)):
        raise RecipeError(
            f"the objective reads the teacher's {' and '.join(lacking)}, which are large and which a store keeps only "
            "where store.keep names them"
        )
    seen = [batch for step in batches for batch in step]
    found = [teacher.features(batch, **on_demand(taps)) for batch in seen]
    samples = sum(map(len, seen))
    key = replace(store_key(recipe, teacher, data, taps), samples=samples)
    start = 0
    with Store.create(folder, key, Layout.of(found[0], taps, key.dtype, key.top_k), views=1) as store:
        for features in found:
            stop = start + len(features.logits)
            store.write(torch.arange(start, stop), 0, features)
            start = stop
    return FewRows(StoredTeaching(Store.open(folder), teacher, fill=False, live=False, device=teacher.device, views=1))


def store_trial(recipe: Recipe, data: Data, step: StepTimes) -> Trial:
    """The setting and what building the store costs; it is to be exchanged for the teacher's part.

    Args:
        recipe: resolved.
        data: the images.
        step: where the time of a step with the live teacher goes.
    """
    setting, changes, views = "teacher.store=PATH", "", views_of(recipe)
    if recipe.data.views is None and recipe.epochs > _VIEWS:
        views = _VIEWS
        setting += f" data.views={views}"
        changes = f"each image is seen in {views} views again and again, not in a new one each epoch"
    # Each view of each image is made and goes through the teacher once.
    seconds = (step.parts["teacher"] + step.parts["data"]) / 1000 * data.train.steps * views
    once = f"build once: {views} view{'s' if views > 1 else ''}"
    return Trial(setting, (), changes, once, seconds)
