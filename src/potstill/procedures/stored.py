"""A teacher whose outputs come from a store, and from the live one as far as the recipe allows it."""

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.config import Recipe
from potstill.errors import RecipeError, RunError
from potstill.methods.base import Needs
from potstill.networks.features import ON_DEMAND, Features
from potstill.networks.teacher import Teacher
from potstill.procedures.data import Data, by_request
from potstill.procedures.store_key import store_key, taps_to_keep, views_of
from potstill.store import Layout, Store, store_size
from potstill.store.fields import TAPS, named
from potstill.store.manifest import MANIFEST_FILE
from potstill.training.distributed import Processes

__all__ = ["HELD_ON_A_DEVICE", "StoredTeaching", "check_rows", "find_store", "held_bytes", "make_store", "open_stored"]

log = logging.getLogger(__name__)

_COMMIT_EVERY = 200  # batches between two times that what a run fills in is made durable
_CHECKED, _CHECKED_VIEWS = 16, 4  # samples of so many views that are computed anew at every start
# How far a row may be from what the live teacher says now, against the largest number of its kind in these rows. A
# teacher's rounding depends a little on the batch that an image comes in; another teacher or another image is far off.
_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 3e-2}
HELD_ON_A_DEVICE = 4 << 30
"""Bytes of records that a GPU may hold, so that nothing waits for the host."""

_ROWS_OF_TENSORS = ("maps", "preacts", "blocks", "peers")


class StoredTeaching:
    """The teacher's features of a batch, from the rows of a store.

    Args:
        store: open; for writing where it shall be filled.
        teacher: computes what the store does not hold.
        fill: whether rows that are missing are computed and written. What is returned then is what was stored, so that
            a run that fills a store learns from the same numbers as the next, which reads it.
        live: whether features of a kind that the store does not keep are asked of the live teacher.
        device: where the features are needed.
        views: how many of the store's views are read.
    """

    def __init__(
        self, store: Store, teacher: Teacher, fill: bool, live: bool, device: torch.device, views: int
    ) -> None:
        self.store, self.teacher, self.fill, self.live = store, teacher, fill, live
        self._taps = store.layout.taps
        on_device = device.type == "cuda" and not fill and held_bytes(store, views) <= HELD_ON_A_DEVICE
        self._rows = store.resident(device, range(views)) if on_device else store
        self._batches = 0

    def features(self, batch: Batch, **reads: bool) -> Features:
        """The features of a batch; which of those that are filled on demand is said by ``reads``."""
        if self.live and any(wanted and name not in self._taps for name, wanted in reads.items()):
            return self.teacher.features(batch, **reads)
        if not self.fill:
            return self._rows.read(batch.index, batch.view)
        there = self.store.has(batch.index, batch.view)
        return self.store.read(batch.index, batch.view) if there.all() else self._filled(batch, there)

    def settle(self) -> None:
        """Make durable what was filled in."""
        if self.fill:
            self.store.commit()

    def _filled(self, batch: Batch, there: Tensor) -> Features:
        """The whole batch computed, the rows that are missing written, and those that are there taken as they are."""
        layout = self.store.layout
        found = self.teacher.features(batch, **on_demand(self._taps))
        made = layout.unpack(layout.pack(found))
        missing = ~there
        self.store.write(batch.index[missing], batch.view[missing], chosen(made, missing))
        self._batches += 1
        if self._batches % _COMMIT_EVERY == 0:
            self.store.commit()
        return laid_over(made, self.store.read(batch.index[there], batch.view[there]), there) if there.any() else made


def held_bytes(store: Store, views: int) -> int:
    """What the records of some views take."""
    return store.layout.record_bytes * store.samples * views


def open_stored(recipe: Recipe, teacher: Teacher, needs: Needs, data: Data, processes: Processes) -> StoredTeaching:
    """The store that a recipe names in its teacher's place, compared with what it should be made of.

    Args:
        recipe: resolved; it names a store.
        teacher: the recipe's.
        needs: what the objectives read.
        data: the images.
        processes: this process and the others.

    Raises:
        RecipeError: there is no such store, or it lacks what the objectives read or views that the run sees.
        RunError: it was made of something else, or its rows are not what the teacher says now.
    """
    fill = recipe.store.fill
    if fill:
        processes.on_main(lambda: make_store(recipe, teacher, needs, data))
        processes.wait()
    there = find_store(recipe, needs)
    path, reads = there.folder, tuple(tap for tap in TAPS if tap in needs.teacher)
    key = store_key(recipe, teacher, data, tuple(tap for tap in reads if tap in there.layout.taps) or there.layout.taps)
    asked = [name for name, value in (("dtype", recipe.store.dtype), ("top_k", recipe.store.top)) if value is not None]
    store = Store.open(path, key, asked)
    if fill:
        store = Store.open(path, write=True)
    check_rows(store, teacher, data)
    return StoredTeaching(store, teacher, fill, recipe.store.live, processes.device, views_of(recipe))


def find_store(recipe: Recipe, needs: Needs) -> Store:
    """The store that a recipe names, with all rows that a run of it reads; what can be said before data are decoded.

    Raises:
        RecipeError: there is no such store, or it lacks what the objectives read or rows that the run sees.
    """
    path = _folder(recipe)
    if not (path / MANIFEST_FILE).exists():
        raise RecipeError(
            f"There is no store in {path}. Build it with `potstill store build` and this recipe, or set "
            "store.fill=true to have this run make it."
        )
    store = Store.open(path)
    kept = store.layout.taps
    lacking = [tap for tap in TAPS if tap in needs.teacher and tap not in kept]
    if lacking and not recipe.store.live:
        raise RecipeError(
            f"The store in {path} keeps {' and '.join(kept)}, but the objective reads {' and '.join(lacking)} too. Set "
            "store.live=true to ask the live teacher for them, which costs its pass in every step; or build a store "
            "that has them, with store.keep."
        )
    if not recipe.store.fill:
        must_suffice(store, views_of(recipe), recipe)
    return store


def must_suffice(store: Store, views: int, recipe: Recipe) -> None:
    """Refuse a store that lacks rows which a run of the recipe will read."""
    if store.views < views:
        raise RecipeError(
            f"The store in {store.folder} has {store.views} views of each image, and this run sees {views} "
            f"({'data.views' if recipe.data.views else 'one an epoch'}). Set data.views={store.views} to see those "
            "again and again, or build more with `potstill store build` and this recipe."
        )
    missing = sum(len(store.missing(view)[0]) for view in range(views))
    if missing:
        raise RecipeError(
            f"{missing:,} of the {views * store.samples:,} rows that this run reads are not in {store.folder} yet. Go "
            "on with `potstill store build`, which makes what is missing, or set store.fill=true."
        )


def make_store(recipe: Recipe, teacher: Teacher, needs: Needs, data: Data) -> Store:
    """The recipe's store, open for writing: a new one, or the one that is there, with place for the views of the run.

    Raises:
        RecipeError: for what cannot be stored.
        RunError: the folder holds the store of something else.
    """
    path, views = _folder(recipe), views_of(recipe)
    if (path / MANIFEST_FILE).exists():
        there = Store.open(path)
        key = store_key(recipe, teacher, data, there.layout.taps)
        dtype, top = recipe.store.dtype or there.key.dtype, recipe.store.top or there.key.top_k
        return Store.create(path, replace(key, dtype=dtype, top_k=top), there.layout, views)
    taps = taps_to_keep(recipe, needs)
    key = store_key(recipe, teacher, data, taps)
    (batch,) = next(iter(by_request(data.train).requested([(torch.tensor([0]), [0])])))
    layout = Layout.of(teacher.features(batch, **on_demand(taps)), taps, key.dtype, key.top_k)
    log.info(store_size(layout, data.samples, views).sentence())
    return Store.create(path, key, layout, views)


def check_rows(store: Store, teacher: Teacher, data: Data) -> int:
    """Compute some random rows anew and compare; how many were looked at.

    Raises:
        RunError: a row is not what the teacher says of that view now; names it.
    """
    generator = torch.Generator()
    generator.seed()
    views = torch.randperm(store.views, generator=generator)[:_CHECKED_VIEWS].tolist()
    layout, seen = store.layout, 0
    tolerance = max(_TOLERANCE[layout.dtype], _TOLERANCE[store.key.precision])
    requests = []
    for view in views:
        index = torch.randperm(store.samples, generator=generator)[:_CHECKED]
        if (index := index[store.has(index, view)]).numel():
            requests.append((index, [view]))
    for batches in by_request(data.train).requested(requests):
        for batch in batches:
            live = layout.unpack(layout.pack(teacher.features(batch, **on_demand(layout.taps))))
            kept = store.read(batch.index, batch.view)
            seen += len(batch)
            for (name, ours), (_, theirs) in zip(named(kept), named(live), strict=True):
                if not ours.numel():
                    continue
                apart = (ours - theirs).flatten(1).abs().amax(1)
                if (worst := apart.max().item()) > tolerance * max(theirs.abs().max().item(), 1e-6):
                    row = int(apart.argmax())
                    raise RunError(
                        f"The store in {store.folder} does not hold what the teacher says now: the {name} of image "
                        f"{int(batch.index[row])} in view {int(batch.view[row])} differs by {worst:.3g}, where "
                        f"numbers go up to {theirs.abs().max().item():.3g}. Something that no key shows has changed, "
                        "such as a library that decodes the images; build the store anew in another folder."
                    )
    return seen


def _folder(recipe: Recipe) -> Path:
    path = Path(str(recipe.teacher.store if recipe.teacher else None))
    if path.exists() and not path.is_dir():
        raise RecipeError(f"teacher.store={path} is a file; a store is a folder. Give another one.")
    return path


def on_demand(taps: Collection[str]) -> dict[str, bool]:
    """What to ask a teacher for so that it shows these."""
    return {tap: True for tap in taps if tap in ON_DEMAND}


def chosen(features: Features, rows: Tensor) -> Features:
    """Some samples' features."""
    others: dict[str, Any] = {
        name: tuple(one[rows] for one in getattr(features, name)) for name in _ROWS_OF_TENSORS
    }  # fmt: skip
    return Features(features.logits[rows], features.embedding[rows], **others)


def laid_over(below: Features, above: Features, rows: Tensor) -> Features:
    """The features of a batch with those of the marked samples replaced."""
    for (_, one), (_, other) in zip(named(below), named(above), strict=True):
        if other.numel():
            one[rows] = other
    return below
