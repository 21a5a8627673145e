"""One pass over a tar shard, to find where each of its samples lies."""

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from potstill.data.folder import EXTENSIONS
from potstill.data.remote import reaching
from potstill.data.stored import StoredFile
from potstill.errors import DataError

__all__ = ["NO_LABEL", "TarIndex", "build_index", "show"]

NO_LABEL = np.iinfo(np.int64).min
SIDECAR = 1 << 20  # bytes of a label's file, beyond which it is none
NUMBER = re.compile(rb"\s*([+-]?[0-9]{1,18})\s*")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# What tarfile raises on damaged input, beside OSError.
DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError, KeyError)


@dataclass(frozen=True)
class TarIndex:
    """The samples of one shard, in the order of their images.

    Attributes:
        keys: uint8, the samples' keys as UTF-8, one after the other.
        ends: ``(n,)`` int64, where each key ends in ``keys``.
        offsets: ``(n,)`` int64, where each image begins in the shard.
        sizes: ``(n,)`` int64, its bytes.
        labels: ``(n,)`` int64, ``NO_LABEL`` where the sample has none.
        lonely: labels without an image.
    """

    keys: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    lonely: int

    def __len__(self) -> int:
        return len(self.ends)

    def fits(self, size: int) -> bool:
        """Whether this can be the index of a file of so many bytes."""
        rows = (self.ends, self.offsets, self.sizes, self.labels)
        if self.keys.dtype != np.uint8 or self.keys.ndim != 1 or any(row.dtype != np.int64 for row in rows):
            return False
        if {row.shape for row in rows} != {(len(self),)} or (np.diff(self.ends, prepend=0) < 0).any():
            return False
        inside = (self.offsets >= 0) & (self.sizes >= 0) & (self.offsets <= size - self.sizes)
        return bool(inside.all()) and (int(self.ends[-1]) if len(self) else 0) == len(self.keys)


def build_index(file: StoredFile, field: str | None = None) -> TarIndex:
    """The index of a shard in the layout of webdataset, by a pass over it.

    Members that have the path up to the first dot of their last component in common, the key, are one sample; what
    follows that dot is the extension. A sample has one image (``.jpg``, ``.png``, ...) and may have a label: a number
    in ``KEY.cls``, or the field ``label`` of the object in ``KEY.json``. Other members are passed over. No name in the
    archive is ever used as a file's.

    Args:
        file: the shard: plain tar, in which positions can be read.
        field: take labels from this field of ``KEY.json``, and from nowhere else.

    Raises:
        DataError: an archive that is compressed, damaged or cut off; a member that is no plain file; two images of
            one key; a label that is no number.
    """
    images: dict[str, tuple[int, int, str]] = {}  # offset, size, extension
    numbers: dict[str, int] = {}
    fields: dict[str, int | DataError | None] = {}  # what is wrong with a .json counts where there is no .cls only
    with whole(file), file.open() as raw:
        refuse_compressed(file, raw)
        for member, archive in members(file, raw):
            folder, _, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot:
                continue
            key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
            if f".{extension}" in EXTENSIONS:
                if key in images:
                    other = images[key][2]
                    what = "the key twice" if other == extension else f"images .{other} and .{extension} of the key"
                    raise DataError(f"{file} has {what}: {show(key)}. A sample has one image, and its key once.")
                images[key] = (member.offset_data, member.size, extension)
            elif extension in ("cls", "json") and key in (numbers if extension == "cls" else fields):
                raise DataError(f"{file} has .{extension} of the key twice: {show(key)}. A sample has its key once.")
            elif extension == "cls" and field is None:
                numbers[key] = number(content(archive, member, file), key, file)
            elif extension == "json" and key not in numbers:
                try:
                    fields[key] = field_of(content(archive, member, file), field or "label", key, file)
                except DataError as error:
                    fields[key] = error
    labels = fields | numbers
    for problem in labels.values():
        if isinstance(problem, DataError):
            raise problem
    encoded = [key.encode("utf-8", "surrogateescape") for key in images]
    found = [labels.get(key) for key in images]
    return TarIndex(
        keys=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        ends=np.cumsum([len(key) for key in encoded], dtype=np.int64),
        offsets=np.array([offset for offset, _, _ in images.values()], dtype=np.int64),
        sizes=np.array([size for _, size, _ in images.values()], dtype=np.int64),
        labels=np.array([NO_LABEL if label is None else label for label in found], dtype=np.int64),
        lonely=sum(label is not None and key not in images for key, label in labels.items()),
    )


def refuse_compressed(file: StoredFile, raw: IO[bytes]) -> None:
    """Raise where the file is no plain archive."""
    head = raw.read(8)
    raw.seek(0)
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{file} is compressed ({name}), and nothing in it can be read by its position. Unpack it to plain "
                ".tar; images are compressed already."
            )


def members(file: StoredFile, raw: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The plain files of an archive, which must be whole.

    ``tarfile`` ends at a damaged header as at the archive's end, so what stands at the end is looked at.
    """
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        last = 0
        while (member := archive.next()) is not None:
            if not last < archive.offset <= file.size + tarfile.BLOCKSIZE or member.size < 0:
                raise DataError(f"{file} is damaged at byte {last:,}. Fetch it again.")
            last = archive.offset
            archive.members = []  # type: ignore[attr-defined]  # of a million, each would take a kilobyte
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{file}: {show(member.name)} is a link, a device or a sparse file. Pack plain files only."
                )
            yield member, archive
        check_end(file, raw, archive.offset)


@contextmanager
def whole(file: StoredFile) -> Iterator[None]:
    """What tarfile finds wrong with an archive, as a ``DataError`` that names it."""
    try:
        with reaching(file.address):
            yield
    except DataError as error:
        if isinstance(error.__cause__, DAMAGE):
            raise DataError(
                f"Cannot read {file} as a tar archive: {error.__cause__}. It is damaged or cut off; fetch it again."
            ) from error.__cause__
        raise


def check_end(file: StoredFile, raw: IO[bytes], end: int) -> None:
    """Raise unless an archive's end mark, a block of zeros, stands where its members end, and nothing behind it."""
    raw.seek(end)
    block = raw.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DataError(f"{file} is cut off: the mark at the end of an archive is not there. Fetch it again.")
    if block.strip(b"\0"):
        raise DataError(f"{file} is damaged at byte {end:,}. Fetch it again.")
    while rest := raw.read(1 << 20):
        if rest.strip(b"\0"):
            raise DataError(f"{file} goes on behind its end, as joined archives do. Give each as a file of its own.")


def content(archive: tarfile.TarFile, member: tarfile.TarInfo, file: StoredFile) -> bytes:
    """The bytes of a label's file."""
    opened = archive.extractfile(member) if member.size <= SIDECAR else None
    if opened is None:
        raise DataError(f"{file}: {show(member.name)} has {member.size:,} bytes, too many for a label.")
    return opened.read()


def number(text: bytes, key: str, file: StoredFile) -> int:
    """A label from the text of ``KEY.cls``."""
    match = NUMBER.fullmatch(text)
    if match is None:
        raise DataError(f"{file}: the label of {show(key)} is {show(text[:40])}, but must be the number of its class.")
    return int(match.group(1))


def field_of(text: bytes, field: str, key: str, file: StoredFile) -> int | None:
    """A label from one field of ``KEY.json``; None where it has no such field, or null in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the .json of {show(key)} cannot be read: {error}.") from error
    value = value.get(field) if isinstance(value, dict) else None
    if value is not None and (type(value) is not int or abs(value) >= 10**18):
        raise DataError(
            f"{file}: the label of {show(key)}, {field!r} in its .json, is {show(repr(value)[:40])}, but must be the "
            "number of its class."
        )
    return value


def show(text: str | bytes) -> str:
    """Text from an archive for a message: as it is where it can be printed."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return text if text.isprintable() and text else repr(text)
