"""Records held on a device: read by index there, without the host and without waiting for it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.errors import RunError
from potstill.networks.features import Features
from potstill.store.manifest import Manifest
from potstill.store.seal import sound
from potstill.store.shards import RowFile, Shards

__all__ = ["Resident", "numbers"]

_CHUNK_BYTES = 1 << 25  # checked and copied at once


class Resident:
    """Some views of a store on a device; made by :meth:`potstill.store.store.Store.resident`.

    ::

        held        0 .. N-1          N .. 2N-1         ...      (views in the order that was given)
                  | view views[0]   | view views[1]   | ... |

    Attributes:
        device: where the records are.
        views: which are held.
    """

    def __init__(
        self,
        shards: Shards,
        marks: RowFile,
        manifest: Manifest,
        device: torch.device | str,
        views: Sequence[int] | None,
    ) -> None:
        self.device = torch.device(device)
        self.views = tuple(range(manifest.views) if views is None else views)
        self._layout = manifest.layout
        self._samples = manifest.samples
        self._places = torch.full((manifest.views,), -1, dtype=torch.int64, device="cpu")
        for place, view in enumerate(self.views):
            if not 0 <= view < manifest.views:
                raise RunError(f"view {view} cannot be held: the store in {shards.folder} has {manifest.views} views")
            self._places[view] = place
        self._places = self._places.to(self.device)
        # Whole words are moved four times as fast as bytes.
        shape = (len(self.views) * self._samples, manifest.layout.record_bytes // 4)
        self._records = torch.empty(shape, dtype=torch.int32, device=self.device)
        for place, view in enumerate(self.views):
            self._load(shards, marks, manifest.salt, view, self._records[place * self._samples :][: self._samples])

    @property
    def bytes(self) -> int:
        """How much of the device's memory the records take."""
        return self._records.numel() * self._records.element_size()

    def read(self, index: Tensor, view: Tensor | int) -> Features:
        """As :meth:`potstill.store.store.Store.read`, the result on the device of the records.

        With ``index`` and ``view`` there too nothing waits for the device.

        Raises:
            RunError: samples or views that are not held, where the device is the host. Elsewhere to look would mean to
                wait: the device's own check of the index fails, and no wrong record is returned.
        """
        index, views = numbers(index, view, self.device)
        known = (index >= 0) & (index < self._samples) & (views >= 0) & (views < len(self._places))
        place = self._places[torch.where(known, views, 0)]
        rows = torch.where(known & (place >= 0), place * self._samples + index, -1)
        if self.device.type == "cpu" and bool((rows < 0).any()):
            raise RunError(
                f"{int((rows < 0).sum())} of the {len(rows)} records asked for are not held: held are the views "
                f"{', '.join(map(str, self.views))} of {self._samples:,} samples"
            )
        return self._layout.unpack(self._records.index_select(0, rows))

    def _load(self, shards: Shards, marks: RowFile, salt: int, view: int, held: Tensor) -> None:
        """Copy one view's records into ``held`` ``(N, words)``, having looked at each."""
        start = view * self._samples
        marked = marks.span(start, start + self._samples)[:, 0] == 1
        if not marked.all():
            raise RunError(
                f"{int((~marked).sum()):,} of the {self._samples:,} records of view {view} are not in {shards.folder}: "
                "the store is not finished. Go on with building it; only what is missing is made"
            )
        most = max(1, _CHUNK_BYTES // shards.record_bytes)
        for first, records in shards.spans(start, start + self._samples, most):
            whole = sound(records, np.arange(first, first + len(records)), salt)
            if not whole.all():
                raise RunError(
                    f"{int((~whole).sum()):,} records of view {view} in {shards.folder} are damaged (the first: sample "
                    f"{first + int(np.argmin(whole)) - start}). Mend the store (`potstill store "
                    f"verify {shards.folder} --mend`), and go on with building it"
                )
            held[first - start : first - start + len(records)] = torch.from_numpy(records.view(np.int32).copy())


def numbers(index: Tensor, view: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples and views, ``(B,)`` int64 each, on a device.

    Raises:
        RunError: they are no whole numbers, or not as many views as samples.
    """
    views = torch.full_like(index, view, dtype=torch.int64) if isinstance(view, int) else view
    for given in (index, views):
        if given.ndim != 1 or given.is_floating_point():
            raise RunError(f"samples and views are whole numbers (B,); got {tuple(given.shape)} of {given.dtype}")
    if len(index) != len(views):
        raise RunError(f"{len(index)} samples and {len(views)} views were given; one view a sample is needed")
    return index.detach().to(device, torch.int64), views.detach().to(device, torch.int64)
