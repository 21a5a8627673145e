"""The index of a tar shard, kept from one run to the next."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from potstill.data.stored import LocalFile, StoredFile
from potstill.data.tar_scan import TarIndex, build_index

__all__ = ["cache_folder", "read_index"]

log = logging.getLogger(__name__)

VERSION = 1  # of the kept file: whoever changes what is in it, or how samples are found, raises it


def read_index(file: StoredFile, field: str | None = None) -> TarIndex:
    """A shard's index, from the cache or by a pass over the shard.

    The cache is a file for each shard, known by the shard's address, size and version and by ``field``. What cannot be
    right, because it is damaged or of another shard, is made anew; where it cannot be written, each run makes its own.

    Args:
        file: the shard.
        field: see :func:`~potstill.data.tar_scan.build_index`.
    """
    address = os.path.realpath(file.path) if isinstance(file, LocalFile) else file.address
    origin = json.dumps([VERSION, address, file.size, file.version, field])
    folder = cache_folder()
    kept = None if folder is None else folder / "tar" / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.npz"
    if kept is not None and kept.is_file():
        index = load(kept, origin, file.size)
        if index is not None:
            return index
        log.info("%s: the index kept in %s is damaged, and made anew.", file, kept)
    log.info("%s: looking for where its samples lie.", file)
    index = build_index(file, field)
    if kept is not None:
        save(index, kept, origin)
    return index


def cache_folder() -> Path | None:
    """Where what can be made anew is kept: ``$POTSTILL_CACHE``, else ``~/.cache/potstill``; None without a home."""
    chosen = os.environ.get("POTSTILL_CACHE")
    try:
        return Path(chosen) if chosen else Path.home() / ".cache" / "potstill"
    except RuntimeError:
        return None


def load(kept: Path, origin: str, size: int) -> TarIndex | None:
    """A kept index, or None where it is not whole or not of this shard."""
    try:
        with np.load(kept, allow_pickle=False) as parts:  # which checks a sum of each part
            if str(parts["origin"]) != origin:
                return None
            index = TarIndex(
                parts["keys"], parts["ends"], parts["offsets"], parts["sizes"], parts["labels"], int(parts["lonely"])
            )
            return index if index.fits(size) else None
    except Exception:  # damage may look like anything, and all of it means the same
        return None


def save(index: TarIndex, kept: Path, origin: str) -> None:
    """Keep an index; where that cannot be done, say so at most."""
    part = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: other processes may be writing the same.
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            np.savez(file, origin=np.array(origin), **vars(index))
        part.replace(kept)
    except OSError as error:
        log.info("The index of a shard could not be kept in %s: %s.", kept.parent, error.strerror)
        if part is not None:
            part.unlink(missing_ok=True)
