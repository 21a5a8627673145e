"""Making a store's files, and making them longer."""

import re
from pathlib import Path

import numpy as np

from potstill.errors import RunError
from potstill.store.fields import Layout
from potstill.store.manifest import MANIFEST_FILE, Manifest
from potstill.store.shards import lengthen, shard_path
from potstill.store.size import require_space, store_size

__all__ = ["MARKS_FILE", "described", "grow", "refuse", "require_unused"]

MARKS_FILE = "done.bin"
_OURS = re.compile(r"rows-\d{5,}\.bin|done\.bin|(store\.json|class_means\.safetensors)\.part")


def refuse(folder: Path, found: list[str], why: str) -> None:
    """Raise a ``RunError`` of the sentences that two keys' comparison gave, if it gave any."""
    if found:
        raise RunError(
            f"the store in {folder} was made from something else: {'; '.join(found)}. {why}: give back what it "
            "was made from, or another folder to build a new store in"
        )


def described(layout: Layout) -> str:
    """A layout's outputs in words."""
    return ", ".join(f"{name} {shape}" for name, shape in layout.outputs)


def require_unused(folder: Path) -> None:
    """Refuse a folder without ``store.json`` in which there is anything but what a broken-off creation leaves.

    Raises:
        RunError: names what is there.
    """
    if foreign := sorted(entry.name for entry in folder.iterdir() if not _OURS.fullmatch(entry.name)):
        raise RunError(
            f"{folder} holds files that are no store of teacher outputs ({', '.join(foreign[:3])}); give another folder"
        )
    marks = folder / MARKS_FILE
    if marks.exists() and np.fromfile(marks, dtype=np.uint8).any():
        raise RunError(
            f"{folder} holds records, but its {MANIFEST_FILE} is gone: put that back, or delete the folder to start "
            "again"
        )


def grow(folder: Path, manifest: Manifest, before: Manifest | None) -> None:
    """Make files as long as a manifest says, then write the manifest: broken off on the way, it can be repeated.

    Args:
        folder: the store's.
        manifest: what shall be.
        before: what is, of the same rows a shard; None for a new store.

    Raises:
        RunError: the disk is too small or takes nothing, or there are marks where no rows were.
    """
    size = store_size(manifest.layout, manifest.samples, manifest.views - (before.views if before else 0))
    require_space(folder, size.total_bytes)
    marks = folder / MARKS_FILE
    if before is not None and np.fromfile(marks, dtype=np.uint8, offset=before.rows).any():
        raise RunError(
            f"{marks} is damaged: it marks records of views that the store does not have. Mend the "
            f"store (`potstill store verify {folder} --mend`), or delete the folder and build it again"
        )
    per_shard, record = manifest.rows_per_shard, manifest.layout.record_bytes
    for number in range(-(-manifest.rows // per_shard)):
        rows = min(per_shard, manifest.rows - number * per_shard)
        lengthen(shard_path(folder, number), rows * record)
    lengthen(marks, manifest.rows)
    manifest.write(folder)
