"""Images in tar shards, in the layout of webdataset: read by their positions, never unpacked."""

import logging
from collections.abc import Sequence

import numpy as np

from potstill.data.decode import MAX_BYTES, decode
from potstill.data.materialise import materialise
from potstill.data.remote import RemoteFile, each
from potstill.data.sampling import common_size
from potstill.data.source import IMAGENET, Source, Statistics, check_labels, fingerprint
from potstill.data.stored import StoredFile
from potstill.data.tar_index import read_index
from potstill.data.tar_scan import NO_LABEL, show
from potstill.data.workers import turns
from potstill.errors import DataError

__all__ = ["TarSource"]

log = logging.getLogger(__name__)


class TarSource(Source):
    """Images that lie as members of tar archives; :func:`~potstill.data.tar_scan.build_index` has the layout.

    Each archive is read once to find where its samples lie, which is kept for the next run. An image is then one read
    at its position, so any order costs the same as of files in folders, and a run can go on from any step. (The
    packages webdataset and torchdata read such shards from end to end, and shuffle in a buffer.)

    Args:
        files: the shards, in order; they may be of different lengths.
        name: what messages call the set.
        field: the field of ``KEY.json`` that holds the label; by default it is in ``KEY.cls``, or the field ``label``.
        classes: the classes' names; by default they are called by their numbers.
        statistics: mean and standard deviation for normalising.

    Raises:
        DataError: archives that cannot be read, no images, images of which some have labels and some have none, labels
            that are no numbers of classes.

    Attributes:
        note: what to say out loud about the labels; empty where there is nothing to say.

    ``identity`` is a hash of the shards' names and sizes, of the samples' keys, of the images' sizes, and of the labels
    and classes' names. The images themselves are not read for it: one replaced by another of the same size in bytes
    goes unnoticed.
    """

    def __init__(
        self,
        files: Sequence[StoredFile],
        *,
        name: str,
        field: str | None = None,
        classes: Sequence[str] = (),
        statistics: Statistics = IMAGENET,
    ) -> None:
        self.name = name
        self.statistics = statistics
        self.files = list(files)
        self.scattered = any(isinstance(file, RemoteFile) for file in self.files)
        order = turns(len(self.files))
        found = each(lambda number: read_index(self.files[number], field), order, self.scattered)
        indices = [index for _, index in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
        self._ends = np.cumsum([len(index) for index in indices], dtype=np.int64)  # sample number after each shard
        if not len(self):
            raise DataError(
                f"{name} has no images. Shards in the layout of webdataset hold KEY.jpg (or .png, .webp, ...) and "
                "KEY.cls for each sample."
            )
        self.groups = np.unique(np.append(self._ends, 0))
        self._keys = [index.keys for index in indices]
        self._key_ends = [index.ends for index in indices]
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        lonely = sum(index.lonely for index in indices)
        if lonely:
            log.warning("%s: passed over %s labels without an image.", name, f"{lonely:,}")
        self.note = ""
        labels = np.concatenate([index.labels for index in indices])
        self._number(labels, field, tuple(classes))
        self.fixed_size = common_size(self, int(next(end for end in self._ends if end)))
        self._identity = fingerprint(
            [(file.name, file.size) for file in self.files],
            np.concatenate(self._keys), np.concatenate(self._key_ends), self._sizes, self.labels, self.classes,
        )  # fmt: skip

    @property
    def identity(self) -> str:
        """A hash of the shards' names and sizes, the keys, the images' sizes and the labels; not of the pixels."""
        return self._identity

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def image(self, index: int) -> np.ndarray:
        """One image, ``(H, W, 3)`` uint8."""
        return decode(self.encoded(index), self.describe(index))

    def encoded(self, index: int) -> bytes:
        """The image's file, by one read at its position."""
        shard, _ = self._locate(index)
        size = int(self._sizes[index])
        if size > MAX_BYTES:
            raise DataError(
                f"{self.describe(index)} has {size:,} bytes, more than the {MAX_BYTES:,} of one image file."
            )
        return self.files[shard].read(int(self._offsets[index]), size)

    def describe(self, index: int) -> str:
        """The sample's key and its shard."""
        shard, row = self._locate(index)
        ends = self._key_ends[shard]
        key = self._keys[shard][int(ends[row - 1]) if row else 0 : int(ends[row])]
        return f"{show(key.tobytes())} of {self.files[shard]}"

    def arrays(self) -> np.ndarray | None:
        """All images, where the images looked at are small and of one size; decoded anew at each call."""
        return None if self.fixed_size is None else materialise(self).images

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard, and the sample in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no image {index}.")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _number(self, labels: np.ndarray, field: str | None, classes: tuple[str, ...]) -> None:
        """Set the labels and the classes, or leave them out where there are none."""
        where = f"field {field!r} of KEY.json" if field else "KEY.cls"
        without = np.flatnonzero(labels == NO_LABEL)
        if 0 < len(without) < len(labels) or (len(without) and field):
            raise DataError(
                f"{self.name}: {len(without):,} of {len(labels):,} images have no label ({where}), the first: "
                f"{self.describe(int(without[0]))}. Either each has one or none has."
            )
        if len(without):
            self.note = "There is no KEY.cls and no label in a KEY.json, so the images go without labels."
        elif (labels == -1).all():
            self.note = "The labels are -1 throughout, so the images go without labels."
        else:
            highest = int(labels.max())
            if not classes and highest >= max(len(labels), 2):
                raise DataError(
                    f"{self.name}: labels go up to {highest:,}, but there are only {len(labels):,} images. Where these "
                    "are class numbers, put the classes' names into classes.txt beside the shards, one a line."
                )
            self.classes = classes or tuple(str(number) for number in range(highest + 1))
            self.labels = check_labels(labels, len(labels), len(self.classes), self.name)
