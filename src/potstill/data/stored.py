"""Files that are read by position, wherever they are: what shards are made of."""

import os
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import IO

from potstill.errors import DataError, RunError

__all__ = ["LocalFile", "StoredFile"]


class StoredFile(ABC):
    """A file that is read by position, by several threads and processes; it pickles as its address.

    Attributes:
        address: a path, or an address with ``://``; what messages call the file.
        size: in bytes.
        version: differs where the content does, as far as where it is stored tells: the time of the last change, or
            an entity tag.
    """

    address: str
    size: int
    version: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    @abstractmethod
    def read(self, start: int, size: int) -> bytes:
        """Exactly ``size`` bytes from position ``start`` on.

        Raises:
            RunError: where they cannot be read, or the file is not the one that was found at first. Of the file and
                not of the image that was asked for: no policy for damaged images may pass over it.
        """

    @abstractmethod
    def open(self) -> IO[bytes]:
        """The file, to be read from its beginning to its end."""

    @abstractmethod
    def beside(self, name: str) -> "StoredFile | None":
        """Another file by its path from this one's folder; None where there is none."""


class LocalFile(StoredFile):
    """A file on this machine, or on a disk that it has mounted.

    Raises:
        DataError: where it is no regular file, or cannot be looked at.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.address = str(self.path)
        try:
            info = self.path.stat()
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror}.") from error
        if not self.path.is_file():  # reading a pipe would never end
            raise DataError(f"{self.path} is no regular file.")
        self.size = info.st_size
        self.version = str(info.st_mtime_ns)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def read(self, start: int, size: int) -> bytes:
        """Exactly ``size`` bytes from position ``start`` on; see :meth:`StoredFile.read`."""
        parts = []
        try:
            descriptor = _descriptor(self.address, self.size, self.version, os.getpid())
            while size:
                part = os.pread(descriptor.number, size, start)
                if not part:
                    raise RunError(f"{self} is shorter than it was when the run began. Leave data alone during a run.")
                parts.append(part)
                start, size = start + len(part), size - len(part)
        except OSError as error:
            raise RunError(f"Cannot read {self}: {error.strerror}.") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open(self) -> IO[bytes]:
        """The file, opened."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror}.") from error

    def beside(self, name: str) -> "LocalFile | None":
        """Another file by its path from this one's folder."""
        other = self.path.parent / name
        return LocalFile(other) if other.is_file() else None


class _Descriptor:
    """An open file, closed when nobody uses it any more: not while a thread reads, whatever the cache below drops."""

    def __init__(self, address: str) -> None:
        self.number = os.open(address, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # systems allow a process 256 open files or more
def _descriptor(address: str, size: int, version: str, process: int) -> _Descriptor:
    """The file, opened once in each process, after a look at whether it is the one that was found at first."""
    descriptor = _Descriptor(address)
    info = os.fstat(descriptor.number)
    if (info.st_size, str(info.st_mtime_ns)) != (size, version):
        raise RunError(f"{address} changed since the run began. Leave data alone during a run, then start it again.")
    return descriptor
