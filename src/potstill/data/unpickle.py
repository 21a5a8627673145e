"""Read a pickle of arrays and plain containers, and refuse every other: a pickle can name any function to be called."""

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import DataError

__all__ = ["read_pickle"]


def encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as Python 3 writes them with protocol 2; no other encoding, so that no codec is looked up by name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    """What a pickle may name: the few constructors that arrays need, under numpy's old and new module names."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]  # these two functions have no public name
    table: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): collections.OrderedDict,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[module, "_reconstruct"] = multiarray._reconstruct
        table[module, "scalar"] = multiarray.scalar
    return table


ADMITTED = admitted()


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler whose only callables are those in ``ADMITTED``."""

    path: Path

    def find_class(self, module: str, name: str) -> Any:
        """The admitted callable of this name; a ``DataError`` for every other, before it is even imported."""
        if (module, name) not in ADMITTED:
            raise DataError(
                f"Refused to read {self.path}: the pickle wants to use {module}.{name}, and a data file may hold only "
                "arrays and plain containers. Nothing of it was run. Fetch the file from its original source."
            )
        return ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """The content of a pickle that holds numbers, text, bytes, lists, tuples, dictionaries, sets and numpy arrays.

    Text that Python 2 wrote comes as bytes.

    Args:
        path: the file.

    Raises:
        DataError: the pickle names anything else (which is then not imported and not run), is damaged or truncated,
            or the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            reader = ArrayUnpickler(file, encoding="bytes")
            reader.path = path
            return reader.load()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    # A damaged pickle may make the reader stumble anywhere, so what it raises has no common type.
    except Exception as error:
        raise DataError(
            f"Cannot read the pickle {path}: {error}. It is damaged or truncated; fetch it again."
        ) from error
