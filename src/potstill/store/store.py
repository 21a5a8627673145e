"""A frozen teacher's outputs on disk, one record for each view of each sample."""

from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from potstill.errors import RunError
from potstill.networks.features import Features
from potstill.store.creation import MARKS_FILE, described, grow, refuse, require_unused
from potstill.store.fields import Layout
from potstill.store.key import StoreKey, differences, shortfalls
from potstill.store.manifest import MANIFEST_FILE, Manifest, read_manifest
from potstill.store.means import read_means, write_means
from potstill.store.resident import Resident, numbers
from potstill.store.seal import seal
from potstill.store.shards import RowFile, Shards, disk

__all__ = ["Store"]


class Store:
    r"""A frozen teacher's outputs on disk, one record for each view of each sample.

    The record of sample ``index`` under augmentation ``view`` is row ``view * N + index``, wherever and by whomever it
    was written::

        store.json               the key, the layout, N, V, rows a shard
        rows-00000.bin ...       records of one size (see Layout), each ending in a CRC-32 begun from its row
        done.bin                 a byte a row: 1 where the record is there
        class_means.safetensors  where somebody has kept them

        row        0 .. N-1      N .. 2N-1     ...   (V-1)N .. VN-1
                 | view 0      | view 1      | ... | view V-1      |

    **Writing.** :meth:`write` puts records in their places; :meth:`commit` waits until they lie on the disk, and marks
    them then. So a row that is marked is there, whenever the process is killed or the power fails; what was not
    committed is missing and is written again. Several processes may write to one store at the same time. Rows that two
    of them write are harmless: both have the same teacher's numbers of the same view, and a record that came to be half
    the one's and half the other's, on a disk that does not keep writes apart, is one that ``verify`` finds. One process
    creates or extends a store, before the others open it.

    **Reading** goes through read-only maps. A row that is not marked is an error, never zeros.

    A store is made by :meth:`create` or :meth:`open`.

    Example:
        >>> import tempfile
        >>> key = StoreKey(
        ...     teacher="3fa9", teacher_input={"mean": [0.5]}, precision="fp32", taps=("embedding",), data="77ab",
        ...     classes=("a", "b"), samples=4, augmentation={"size": 32, "seed": 0},
        ... )
        >>> folder = tempfile.TemporaryDirectory()
        >>> features = Features(logits=torch.zeros(4, 0), embedding=torch.arange(8.0).view(4, 2))
        >>> with Store.create(folder.name, key, Layout.of(features, key.taps, key.dtype), views=2) as store:
        ...     store.write(torch.arange(4), 0, features)
        >>> store = Store.open(folder.name, key)
        >>> store.read(torch.tensor([3, 1]), torch.tensor([0, 0])).embedding
        tensor([[6., 7.],
                [2., 3.]])
        >>> len(store), store.missing()[0].tolist()
        (4, [0, 1, 2, 3])
        >>> folder.cleanup()
    """

    def __init__(self, folder: Path, manifest: Manifest, writes: bool) -> None:
        self.folder = folder
        self.manifest = manifest
        self.writes = writes
        self._shards = Shards(folder, manifest.layout.record_bytes, manifest.rows, manifest.rows_per_shard)
        self._marks = RowFile(folder / MARKS_FILE, 1, manifest.rows)
        self._pending: list[np.ndarray] = []

    @classmethod
    def create(cls, path: str | Path, key: StoreKey, layout: Layout, views: int) -> Self:
        """A store to write to: a new one, or the one that is there with an equal key, made longer where it needs to be.

        Args:
            path: a folder, made where it is missing.
            key: what the numbers depend on.
            layout: of a record, of the key's taps, dtype and top_k.
            views: how many views of each sample there shall be place for; a store that has more keeps them.

        Raises:
            RunError: the folder holds another store (it names each field that differs), something else, or cannot be
                written; or the disk is too small.
        """
        folder = Path(path)
        if (folder / MANIFEST_FILE).exists():
            there = read_manifest(folder)
            refuse(folder, differences(there.key, key), "It can only be gone on with as it was begun")
            if there.layout != layout:
                raise RunError(
                    f"the store in {folder} keeps {described(there.layout)}, and the teacher now gives "
                    f"{described(layout)}, though their keys are equal. Build the store in another folder"
                )
            cls(folder, there, writes=True)  # what is cut short must not be made longer by zeros
            if views > there.views:
                grow(folder, Manifest(key, layout, views, there.rows_per_shard), there)
        else:
            with disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                require_unused(folder)
            grow(folder, Manifest(key, layout, views, Shards.default_rows(layout.record_bytes)), None)
        return cls(folder, read_manifest(folder), writes=True)

    @classmethod
    def open(
        cls, path: str | Path, key: StoreKey | None = None, asked: Collection[str] = (), write: bool = False
    ) -> Self:
        """A store that is there.

        Args:
            path: its folder.
            key: what it is needed for; its ``taps`` those that are read. None compares nothing.
            asked: which of ``dtype`` and ``top_k`` must be the key's; they are the store's own otherwise. A store that
                is written to must have an equal key altogether.
            write: open it for writing, too.

        Raises:
            RunError: there is no store; it is damaged, or of a newer format; or it is another than is needed, with each
                field that differs.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if key is not None:
            found = differences(manifest.key, key) if write else shortfalls(manifest.key, key, asked)
            refuse(folder, found, "Its numbers are not those that this teacher would give")
        return cls(folder, manifest, write)

    @property
    def key(self) -> StoreKey:
        """What it was made from."""
        return self.manifest.key

    @property
    def layout(self) -> Layout:
        """Of its records."""
        return self.manifest.layout

    @property
    def samples(self) -> int:
        """N."""
        return self.manifest.samples

    @property
    def views(self) -> int:
        """V, how many views of each sample there is place for."""
        return self.manifest.views

    def __len__(self) -> int:
        """How many records are there, of ``samples * views``."""
        return int(np.count_nonzero(self._marked(0, self.manifest.rows)))

    def rows(self, index: Tensor, view: Tensor | int) -> np.ndarray:
        """``(B,)`` int64, the rows' numbers; both come to the host where they are elsewhere.

        Args:
            index: ``(B,)`` integers.
            view: ``(B,)`` integers, or one for all.

        Raises:
            RunError: for samples or views that the store has no place for.
        """
        samples, views = (tensor.numpy() for tensor in numbers(index, view, torch.device("cpu")))
        for name, values, count in (("sample", samples, self.samples), ("view", views, self.views)):
            if len(values) and (values.min() < 0 or values.max() >= count):
                worst = int(values.min() if values.min() < 0 else values.max())
                raise RunError(
                    f"{name} {worst} was asked for, and the store in {self.folder} has place for {count:,} {name}s, "
                    f"numbered from 0"
                )
        found: np.ndarray = views * self.samples + samples
        return found

    def has(self, index: Tensor, view: Tensor | int) -> Tensor:
        """``(B,)`` bool on the device of ``index``: which records are there (committed, by whatever process)."""
        there = self._marks.read(self.rows(index, view))[:, 0] == 1
        return torch.from_numpy(there).to(index.device)

    def missing(self, view: int | None = None) -> tuple[Tensor, Tensor]:
        """Index and view, ``(M,)`` int64 each, of the records that are not there; of one view or of all.

        Raises:
            RunError: for a view that the store has no place for.
        """
        start, stop = 0, self.manifest.rows
        if view is not None:
            start = int(self.rows(torch.zeros(1, dtype=torch.int64, device="cpu"), view)[0])
            stop = start + self.samples
        rows = np.flatnonzero(~self._marked(start, stop)) + start
        views, index = np.divmod(rows, self.samples)
        return torch.from_numpy(index), torch.from_numpy(views)

    def read(self, index: Tensor, view: Tensor | int) -> Features:
        """The features of views of samples, in float32, on the device of ``index``.

        Where ``index`` is on another device than the host it is copied here, which waits for that device, and the
        records are copied there; :meth:`resident` needs neither. What the store does not keep is empty (see
        :meth:`Layout.unpack`).

        Args:
            index: ``(B,)`` integers.
            view: ``(B,)`` integers, or one for all.

        Raises:
            RunError: records that are not there: how many, and which is the first.
        """
        rows = self.rows(index, view)
        there = self._marks.read(rows)[:, 0] == 1
        if not there.all():
            views, samples = np.divmod(rows[~there], self.samples)
            raise RunError(
                f"{len(samples):,} of the {len(rows):,} records asked for are not in {self.folder} (the first: sample "
                f"{samples[0]}, view {views[0]}): the store is not finished. Go on with building it; only what is "
                "missing is made"
            )
        return self.layout.unpack(torch.from_numpy(self._shards.read(rows)).to(index.device))

    def write(self, index: Tensor, view: Tensor | int, features: Features) -> None:
        """Put records in their places; they count once :meth:`commit` has been called.

        Args:
            index: ``(B,)`` integers.
            view: ``(B,)`` integers, or one for all.
            features: of these views, any floating dtype and device.

        Raises:
            RunError: the store is open for reading only; features of other shapes, that are not finite or that the
                store's dtype cannot hold; or the disk takes no more.
        """
        self._require_writing()
        rows = self.rows(index, view)
        payload = self.layout.pack(features).cpu().numpy()
        if len(payload) != len(rows):
            raise RunError(f"features of {len(payload)} images were given for {len(rows)} samples")
        self._shards.write(rows, seal(payload, rows, self.manifest.salt))
        self._pending.append(rows)

    def commit(self) -> None:
        """Wait until all that was written lies on the disk, then mark it: data first, marks after.

        Raises:
            RunError: the disk does not take it; nothing is marked that is not there.
        """
        if self._pending:
            self._shards.flush()
            rows = np.unique(np.concatenate(self._pending))
            self._marks.write(rows, np.ones((len(rows), 1), dtype=np.uint8))
            self._marks.flush()
            self._pending.clear()

    def __enter__(self) -> Self:
        """Itself; what is written in a ``with`` block is committed at its end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.commit()

    def resident(self, device: torch.device | str, views: Sequence[int] | None = None) -> Resident:
        """All records, or those of some views, held on a device, to be read there without the host.

        Every record is checked on the way.

        Raises:
            RunError: records that are not there or damaged.
        """
        return Resident(self._shards, self._marks, self.manifest, device, views)

    def class_means(self, policy: str) -> Tensor | None:
        """The class means ``(C, D)`` float32 that were kept of this policy; None where there are none.

        Raises:
            RunError: their file is damaged, or another store's.
        """
        return read_means(self.folder, policy, self.key.digest)

    def write_class_means(self, means: Tensor, policy: str) -> None:
        """Keep class means ``(C, D)`` beside the records, in the place of those before, of whatever policy.

        Raises:
            RunError: the store is open for reading only, means that are not finite, or a file that cannot be written.
        """
        self._require_writing()
        write_means(self.folder, means, policy, self.key.digest)

    def _marked(self, start: int, stop: int) -> np.ndarray:
        return self._marks.span(start, stop)[:, 0] == 1

    def _require_writing(self) -> None:
        if not self.writes:
            raise RunError(f"the store in {self.folder} is open for reading; open it with write=True to write to it")
