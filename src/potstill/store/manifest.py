"""``store.json``: what a store holds, and how its files are laid out."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, RunError
from potstill.files import write_whole
from potstill.plain_json import to_json
from potstill.store.fields import Layout
from potstill.store.key import FORMAT_VERSION, StoreKey, is_count

__all__ = ["MANIFEST_FILE", "Manifest", "read_manifest"]

MANIFEST_FILE = "store.json"


@dataclass(frozen=True)
class Manifest:
    """What ``store.json`` says.

    Attributes:
        key: what the store was made from.
        layout: of a record.
        views: V, how many views of each sample there is place for.
        rows_per_shard: how many rows a file has, but for the last.
    """

    key: StoreKey
    layout: Layout
    views: int
    rows_per_shard: int

    def __post_init__(self) -> None:
        for name in ("views", "rows_per_shard"):
            if not is_count(value := getattr(self, name)):
                raise RunError(f"a store's {name} must be a whole number, 1 or more; got {value!r}")
        of_key = (self.key.taps, self.key.dtype, self.key.top_k)
        of_layout = (self.layout.taps, self.layout.dtype, self.layout.top_k)
        if of_key != of_layout:
            raise RunError(f"a store's key and layout differ in taps, dtype or top_k: {of_key} and {of_layout}")

    @property
    def samples(self) -> int:
        """N."""
        return self.key.samples

    @property
    def rows(self) -> int:
        """V * N: the row of (index, view) is ``view * N + index``."""
        return self.views * self.samples

    @property
    def salt(self) -> int:
        """A number below 2^32 made from the key: from where the records' sums begin."""
        return int(self.key.digest[:8], 16)

    def write(self, folder: Path) -> None:
        """Write ``store.json``, whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        content = {
            "format": FORMAT_VERSION,
            "byte_order": sys.byteorder,
            "samples": self.samples,
            "views": self.views,
            "rows_per_shard": self.rows_per_shard,
            "record_bytes": self.layout.record_bytes,
            "outputs": {name: list(shape) for name, shape in self.layout.outputs},
            "fields": [asdict(field) for field in self.layout.fields],
            "key": self.key.plain(),
        }
        write_whole(folder / MANIFEST_FILE, to_json({**content, "checksum": checksum(content)}, indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read ``store.json``. Nothing in it names a file, and nothing in it is run.

    Raises:
        RunError: there is no store, or it is of a newer format, of a machine of another byte order, or damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no store of teacher outputs: it has no {MANIFEST_FILE}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # broken UTF-8 too
        raise damaged(path, f"it is no valid JSON ({error})") from None
    version = content.get("format") if isinstance(content, dict) else None
    if not is_count(version):
        raise damaged(path, "it does not say its format")
    if version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "older"
        raise RunError(
            f"{path} is of format {version}, {age} than the {FORMAT_VERSION} that this Potstill reads: use the "
            "Potstill that wrote it, or build the store again in another folder"
        )
    if content.pop("checksum", None) != checksum(content):
        raise damaged(path, "its checksum does not fit what it says")
    if content.get("byte_order") != sys.byteorder:
        raise RunError(f"{path} was written on a machine of another byte order; build the store again on this one")
    try:
        return from_content(content)
    except (PotstillError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)) from None


def from_content(content: dict[str, Any]) -> Manifest:
    key = StoreKey.from_plain(content["key"])
    outputs = tuple((name, tuple(shape)) for name, shape in content["outputs"].items())
    layout = Layout(outputs, key.dtype, key.top_k)
    manifest = Manifest(key, layout, content["views"], content["rows_per_shard"])
    fields = [{**asdict(field), "shape": list(field.shape)} for field in layout.fields]
    if (content["fields"], content["record_bytes"]) != (fields, layout.record_bytes):
        raise RunError("its fields are not those of its outputs")
    if content["samples"] != manifest.samples:
        raise RunError("its samples are not those of its key")
    return manifest


def checksum(content: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits over everything that the manifest says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def damaged(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} is damaged: {reason}. Put it back as it was, or delete the folder and build the store again"
    )
