"""Read a pickle of arrays and plain containers, and refuse every other.

A pickle names functions and calls them with arguments of its own. Here the few names that arrays need stand for
functions of this file, which check their arguments: numpy's own would also accept a forged type that takes the file's
bytes for addresses of objects.
"""

import collections
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import DataError

__all__ = ["read_pickle"]

PLAIN = re.compile(r"b1|[iufc][1-9]\d?|S\d+|U\d+")  # numbers, truth values and text; no objects, no structures


ORDERS = {"=": "=", "|": "=", "<": "<", ">": ">"}  # "|" is of types without an order


class PlainType:
    """Stands for ``numpy.dtype`` in a pickle: a code such as ``u1``, then a state with the byte order."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code = as_text(code)
        self.order = "="
        if not PLAIN.fullmatch(self.code):
            raise pickle.UnpicklingError(f"arrays of type {self.code!r} are not read")

    def __setstate__(self, state: Sequence[Any]) -> None:
        _version, order, *inner = state[:5]
        if any(one is not None for one in inner):  # a type inside the type, names, fields
            raise pickle.UnpicklingError("structured arrays are not read")
        self.order = as_text(order)
        if self.order not in ORDERS:
            raise pickle.UnpicklingError(f"there is no byte order {self.order!r}")

    def real(self) -> np.dtype:
        """The type in numpy."""
        return np.dtype(ORDERS[self.order] + self.code)


class PlainArray(np.ndarray):
    """An array whose state, in a pickle, may hold numbers and text only."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        shape, kind, columns_first, raw = state[-4:]  # before them a version, which Python 2 could leave out
        if not isinstance(kind, PlainType) or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("the array's content is not plain bytes")
        if any(not isinstance(length, int) or length < 0 for length in shape):
            raise pickle.UnpicklingError(f"an array cannot have the shape {shape}")
        state = (1, tuple(shape), kind.real(), bool(columns_first), bytes(raw))
        super().__setstate__(state)  # type: ignore[arg-type]


def as_text(value: str | bytes) -> str:
    """Text of Python 2 comes as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def reconstruct(kind: object, shape: object, code: object) -> PlainArray:
    """An empty array, which gets its shape and content as a state; protocols up to 4."""
    return PlainArray((0,), np.uint8)


def from_buffer(raw: bytes | bytearray, kind: PlainType, shape: Sequence[int], order: str, *axes: object) -> np.ndarray:
    """An array from its bytes; protocol 5."""
    if axes and axes[0] is not None:
        raise pickle.UnpicklingError("arrays with permuted axes are not read")
    return np.frombuffer(raw, kind.real()).reshape(shape, order="F" if as_text(order) == "F" else "C")


def scalar(kind: PlainType, raw: bytes) -> Any:
    """One number as numpy keeps it."""
    return np.frombuffer(raw, kind.real())[0]


def encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as Python 3 writes them with protocol 2; no other encoding, so that no codec is looked up by name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r} are not read")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,  # only ever an argument, which reconstruct() does not look at
    ("numpy", "dtype"): PlainType,
    ("_codecs", "encode"): encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, bytes)},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): from_buffer for core in ("core", "_core")},
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler whose only callables are those in ``ADMITTED``."""

    path: Path

    def find_class(self, module: str, name: str) -> Any:
        """What stands for this name; a ``DataError`` for every name not admitted, before it is even imported."""
        if (module, name) not in ADMITTED:
            raise DataError(
                f"Refused to read {self.path}: the pickle wants to use {module}.{name}, and a data file may hold only "
                "arrays and plain containers. Nothing of it was run. Fetch the file from its original source."
            )
        return ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """The content of a pickle that holds numbers, text, bytes, lists, tuples, dictionaries, sets and numpy arrays.

    Text that Python 2 wrote comes as bytes. Arrays come as instances of a subclass; ``np.asarray`` makes them plain.

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
