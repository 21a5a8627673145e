"""Files behind an address with ``://``, read through fsspec: s3, gs, https, hf, memory, file and what else it knows."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from potstill.data.stored import LocalFile, StoredFile
from potstill.errors import DataError, PotstillError, RunError

__all__ = [
    "RemoteFile", "each", "find_remote", "glob_remote", "is_remote", "is_remote_folder", "reaching", "remote_kinds",
    "stored",
]  # fmt: skip

Item = TypeVar("Item")
Made = TypeVar("Made")

REQUESTS = 16  # at once, where many files are asked for
BLOCK = 1 << 23  # bytes of a request while a file is read from end to end
# What the protocols call a file's version; the first that is there.
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address.

    Example:
        >>> is_remote("s3://bucket/train.tar"), is_remote("data/train.tar")
        (True, False)
    """
    return "://" in str(path)


class RemoteFile(StoredFile):
    """A file behind an address.

    Nothing of fsspec is kept: it has one filesystem a process (and thread), made at the first call there, because
    its connections survive neither a fork nor the way to another process.

    Args:
        address: where it is.
        info: what the filesystem says of it, where that is known.

    Raises:
        DataError: where there is no such file, its size is not told, or it cannot be reached.
    """

    def __init__(self, address: str, info: dict[str, Any] | None = None) -> None:
        self.address = address
        with reaching(address):
            if info is None:
                files, path = _filesystem(address)
                info = files.info(path)
        if info.get("size") is None:
            raise DataError(f"The server does not tell the size of {address}, so no part of it can be asked for.")
        if info.get("type") == "directory":
            raise DataError(f"{address} is a folder, not a file.")
        self.size = int(info["size"])
        known = [str(info[name]) for name in VERSIONS if info.get(name)]
        self.version = known[0] if known else hashlib.sha256(repr(sorted(info.items())).encode()).hexdigest()

    def read(self, start: int, size: int) -> bytes:
        """Exactly ``size`` bytes from position ``start`` on, by one request; see :meth:`StoredFile.read`."""
        try:
            with reaching(self.address):
                files, path = _filesystem(self.address)
                content: bytes = files.cat_file(path, start=start, end=start + size)
        except DataError as error:
            raise RunError(str(error)) from error
        if len(content) != size:
            raise RunError(
                f"{self} gave {len(content):,} bytes where {size:,} were asked for: it changed since the run began, "
                "or its server knows no ranges."
            )
        return content

    def open(self, cache: str = "readahead") -> IO[bytes]:
        """The file, opened.

        Args:
            cache: how fsspec reads: ``"readahead"`` in large blocks, ``"none"`` just what is asked for.
        """
        with reaching(self.address):
            files, path = _filesystem(self.address)
            opened: IO[bytes] = files.open(path, "rb", block_size=BLOCK, cache_type=cache)
        return opened

    def beside(self, name: str) -> "RemoteFile | None":
        """Another file by its path from this one's folder."""
        folder = self.address.rpartition("/")[0]
        while name.startswith("../"):
            folder, name = folder.rpartition("/")[0], name.removeprefix("../")
        try:
            return RemoteFile(f"{folder}/{name}")
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


def stored(path: str | Path) -> StoredFile:
    """The file at a path or an address."""
    return RemoteFile(str(path)) if is_remote(path) else LocalFile(path)


def is_remote_folder(address: str) -> bool:
    """Whether an address is a folder's; a ``DataError`` where there is nothing."""
    with reaching(address):
        files, path = _filesystem(address)
        # Asked whether a file is a folder, an HTTP server would send all of it.
        if not address.endswith((".parquet", ".tar")) and files.isdir(path):
            return True
        files.info(path)
        return False


def find_remote(address: str, extension: str) -> list[RemoteFile]:
    """The files below an address whose names end so, in order."""
    with reaching(address):
        files, path = _filesystem(address)
        found = files.find(path, detail=True)
        return _files(files, {name: info for name, info in found.items() if name.endswith(extension)})


def glob_remote(patterns: Sequence[str]) -> list[RemoteFile]:
    """The files whose addresses fit one of some patterns, in order."""
    result = []
    for pattern in patterns:
        with reaching(pattern):
            files, path = _filesystem(pattern)
            result += _files(files, files.glob(path, detail=True))
    return result


def remote_kinds(address: str, kinds: Mapping[str, Sequence[str]], depth: int = 3) -> set[str]:
    """Which kinds of files lie in the first folder, from the top down, that holds any of them.

    Not all is listed: below may lie a million images.

    Args:
        address: of the folder.
        kinds: the endings of names of each kind.
        depth: how many levels are looked at.
    """
    with reaching(address):
        files, path = _filesystem(address)
        for _, _, names in files.walk(path, maxdepth=depth):
            found = {kind for name in names for kind, ends in kinds.items() if str(name).lower().endswith(tuple(ends))}
            if found:
                return found
    return set()


def each(make: Callable[[Item], Made], items: Iterable[Item], remote: bool) -> list[Made]:
    """``make`` of each item, in order; several at a time where each waits for a server."""
    if not remote:
        return [make(item) for item in items]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(make, items))


def _files(files: Any, found: dict[str, dict[str, Any]]) -> list[RemoteFile]:
    return [
        RemoteFile(files.unstrip_protocol(name), info)
        for name, info in sorted(found.items())
        if info.get("type") != "directory"
    ]


def _filesystem(address: str) -> tuple[Any, str]:
    """This process's filesystem of an address, and the path in it."""
    from fsspec.core import url_to_fs  # a tenth of a second, which local data need not wait

    if "::" in address:
        raise DataError(f"{address} is a chain of addresses, which is not read; give a plain one.")
    files, path = url_to_fs(address)
    return files, str(path)


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Whatever goes wrong on the way to an address, as a ``DataError`` of one sentence that names it."""
    try:
        yield
    except PotstillError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no {address}.") from error
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        needed = f"the package {package}, which is not installed" if package else f"more than is installed: {error}"
        raise DataError(f"Reading {address.partition('://')[0]}:// needs {needed}.") from error
    except Exception as error:  # every protocol's library has errors of its own
        raise DataError(f"Cannot read {address}: {str(error).rstrip('.') or type(error).__name__}.") from error
