"""What a store was made from: the values that say whether it may be used in a teacher's place."""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from potstill.data.random import AUGMENTATION_VERSION
from potstill.errors import RunError, nearest
from potstill.store.fields import SCORES, STORED, TAPS

__all__ = ["FORMAT_VERSION", "StoreKey", "differences", "shortfalls"]

FORMAT_VERSION = 1
"""Of the files; raised with every change that an older reader would misread."""

_COVERS = ("taps",)  # a store may keep more of these than a run reads
_OWN = ("dtype", "top_k")  # how a store keeps them is its own matter, unless a run asks for it


class _Unsaid:
    """Stands for a name that one of two keys does not have."""

    def __repr__(self) -> str:
        return "unsaid"


_UNSAID = _Unsaid()


@dataclass(frozen=True)
class StoreKey:
    """Everything that the stored numbers depend on, as plain values.

    Attributes:
        teacher: ``Teacher.fingerprint()``, hexadecimal.
        teacher_input: by name: mean, deviation and size of the teacher's input, and what the images that it is
            called with were normalised with.
        precision: that the teacher computes in, 'fp32', 'bf16' or 'fp16'.
        taps: the fields of ``Features`` that are kept, or that a run reads.
        data: the identity of the images that are in use, hexadecimal.
        classes: their names; their order is that of the logits' columns.
        samples: N, how many images there are.
        augmentation: the fields of :class:`potstill.data.views.Augmentation` by name, its seed among them.
        dtype: that the numbers are stored in.
        top_k: how many logits are kept; None for all.
        augmentation_version: of the map from (seed, index, view) to a view.
        version: of the files' format.

    Raises:
        RunError: for a value of another kind; it names the field.

    Example:
        >>> made_of = {"teacher": "3fa9", "teacher_input": {"mean": [0.5]}, "precision": "fp32", "data": "77ab"}
        >>> made_of |= {"classes": ("cat", "dog"), "samples": 8, "augmentation": {"size": 32, "seed": 0}}
        >>> stored = StoreKey(taps=("logits", "embedding"), **made_of)
        >>> wanted = StoreKey(taps=("embedding",), **{**made_of, "samples": 9})
        >>> shortfalls(stored, wanted)
        ['samples is 8 in the store and 9 here']
    """

    teacher: str
    teacher_input: Mapping[str, Any]
    precision: str
    taps: tuple[str, ...]
    data: str
    classes: tuple[str, ...]
    samples: int
    augmentation: Mapping[str, Any]
    dtype: str = "fp16"
    top_k: int | None = None
    augmentation_version: int = AUGMENTATION_VERSION
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, plain(getattr(self, item.name), item.name))
        rules = {
            "teacher": (is_text(self.teacher), "a fingerprint"),
            "teacher_input": (isinstance(self.teacher_input, dict), "values by name"),
            "precision": (self.precision in STORED, f"one of {', '.join(STORED)}"),
            "taps": (is_names(self.taps) and self.taps and set(self.taps) <= set(TAPS), f"some of {', '.join(TAPS)}"),
            "data": (is_text(self.data), "the identity of the images"),
            "classes": (is_names(self.classes), "names"),
            "samples": (is_count(self.samples), "a whole number, 1 or more"),
            "augmentation": (isinstance(self.augmentation, dict), "values by name"),
            "dtype": (self.dtype in STORED, f"one of {', '.join(STORED)}"),
            "top_k": (self.top_k is None or is_count(self.top_k), "null, or a whole number, 1 or more"),
            "augmentation_version": (is_count(self.augmentation_version), "a whole number, 1 or more"),
            "version": (is_count(self.version), "a whole number, 1 or more"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise RunError(f"a store's key: {name} is {short(getattr(self, name))}; expected {expected}")
        if self.top_k is not None and not set(self.taps) & set(SCORES):
            raise RunError(f"a store's key: top_k is {self.top_k}, but no logits are kept; take it out")
        object.__setattr__(self, "taps", tuple(tap for tap in TAPS if tap in self.taps))

    def plain(self) -> dict[str, Any]:
        """The values by name, as JSON can say them."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: Any) -> "StoreKey":
        """The key that :meth:`plain` gave.

        Raises:
            RunError: for unknown or missing names, or values of another kind.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(content, dict) or set(content) != set(names):
            raise RunError(f"a store's key has the fields {', '.join(names)}; got {short(content)}")
        return cls(**content)

    @property
    def digest(self) -> str:
        """The SHA-256 of all values, hexadecimal."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


def differences(stored: StoreKey, wanted: StoreKey) -> list[str]:
    """A sentence for each field in which two keys differ: what forbids to go on with building a store."""
    return [sentence for name in names() for sentence in compare(name, getattr(stored, name), getattr(wanted, name))]


def shortfalls(stored: StoreKey, wanted: StoreKey, asked: Collection[str] = ()) -> list[str]:
    """A sentence for each field that forbids to use a store: all must be equal but three.

    A store may keep more ``taps`` than are wanted. ``dtype`` and ``top_k`` are the store's own, unless they are among
    those that are ``asked`` for.

    Raises:
        RunError: ``asked`` names something else.
    """
    for name in asked:
        if name not in _OWN:
            raise RunError(f"{name!r} cannot be asked of a store; {' and '.join(_OWN)} can.{nearest(name, _OWN)}")
    found = []
    for name in names():
        ours, theirs = getattr(stored, name), getattr(wanted, name)
        if name in _COVERS:
            if lacking := [tap for tap in theirs if tap not in ours]:
                found.append(f"{name} in the store are {', '.join(ours)}, without {', '.join(lacking)}")
        elif name not in _OWN or name in asked:
            found.extend(compare(name, ours, theirs))
    return found


def names() -> list[str]:
    """The key's fields, the version first: where the format differs, little else can be compared."""
    own = [item.name for item in fields(StoreKey)]
    return ["version", *own[:-1]]


def compare(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    """A sentence for each place in which two values differ, nested names with dots."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for inner in {**ours, **theirs}:
            yield from compare(f"{name}.{inner}", ours.get(inner, _UNSAID), theirs.get(inner, _UNSAID))
    elif name == "classes" and len(ours) == len(theirs) and ours != theirs:
        at = next(k for k, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        order = " (the same names in another order)" if sorted(ours) == sorted(theirs) else ""
        yield f"classes{order}: number {at} is {short(ours[at])} in the store and {short(theirs[at])} here"
    elif name == "classes" and ours != theirs:
        yield f"classes are {len(ours)} in the store and {len(theirs)} here"
    elif ours != theirs:
        yield f"{name} is {short(ours)} in the store and {short(theirs)} here"


def plain(value: Any, name: str) -> Any:
    """A value with dictionaries and tuples for all mappings and rows, so that one read from JSON is equal to it."""
    if isinstance(value, Mapping):
        if not all(isinstance(inner, str) for inner in value):
            raise RunError(f"a store's key: {name} has names that are no strings: {short(list(value))}")
        return {inner: plain(item, f"{name}.{inner}") for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item, name) for item in value)
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise RunError(f"a store's key: {name} is {short(value)}, which is no plain value: no finite number, no text")


def short(value: Any) -> str:
    """A value in at most 60 characters; of a hash the first digits."""
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) >= 16 and all(digit in "0123456789abcdef" for digit in value):
        return value[:12]
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
