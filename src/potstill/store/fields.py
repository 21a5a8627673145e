"""A record's layout: which numbers of a teacher's features it holds, where, and in which dtype."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill.errors import RunError, nearest
from potstill.networks.features import Features
from potstill.store.topk import TopK, compress, expand

__all__ = ["CHECK_BYTES", "DTYPES", "TAPS", "Field", "Layout", "named"]

DTYPES = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int32": torch.int32, "int16": torch.int16,
}  # fmt: skip
STORED = ("fp32", "bf16", "fp16")

TAPS = ("logits", "embedding", "maps", "preacts", "blocks", "peers")
"""The fields of :class:`~potstill.networks.features.Features` that a store can keep, in a record's order."""
VECTORS = ("logits", "embedding")  # one tensor each; the others are rows of tensors
SCORES = ("logits", "peers")  # what top_k makes smaller

CHECK_BYTES = 4
_ALIGN = 4  # every field begins at a multiple of this, so that a record can be seen in any of the dtypes


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a record: ``shape`` numbers of ``dtype``, from the byte ``offset`` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How long it is, without what fills it up to a multiple of four."""
        return self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """How the features of one sample become one record of bytes, and back.

    With 256 numbers of embedding and 100 logits in fp16::

        byte 0          200            712        716
             | logits    | embedding    | CRC-32   |
             | 100 fp16  | 256 fp16     | 4 bytes  |

    With ``top_k=10`` the logits are three fields, ``logits.values`` (10 fp16), ``logits.indices`` (10 int16, or int32
    beyond 32768 classes) and ``logits.rest`` (1 fp32, see :func:`potstill.store.topk.compress`). Every field begins at
    a multiple of four bytes; what lies between is zero. Bytes are in the machine's own order.

    Attributes:
        outputs: name and shape (without the batch) of every tensor that is kept: ``("logits", (100,))``,
            ``("maps.0", (16, 32, 32))``.
        dtype: of the stored numbers, 'fp32', 'bf16' or 'fp16'.
        top_k: how many logits are kept; None for all.
        fields: the record's fields, made from the others.
        payload_bytes: their length together, a multiple of four.

    Raises:
        RunError: for outputs, a dtype or a number of logits that no record can have.

    Example:
        >>> features = Features(logits=torch.zeros(2, 100), embedding=torch.ones(2, 256))
        >>> layout = Layout.of(features, dtype="fp16")
        >>> layout.record_bytes
        716
        >>> layout.unpack(layout.pack(features)).embedding.shape
        torch.Size([2, 256])
    """

    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str = "fp16"
    top_k: int | None = None
    fields: tuple[Field, ...] = field(init=False)
    payload_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise RunError(f"a store keeps numbers in one of {', '.join(STORED)}, not in {self.dtype!r}")
        if not self.outputs:
            raise RunError(f"a store must keep something: one of {', '.join(TAPS)}")
        for name, shape in self.outputs:
            if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
                raise RunError(f"the teacher's {name} has no numbers (its shape is {shape}): it cannot be stored")
        self._check_top_k()
        fields, offset = [], 0
        for name, dtype, shape in self._parts():
            fields.append(Field(name, dtype, shape, offset))
            offset += -(-fields[-1].bytes // _ALIGN) * _ALIGN
        object.__setattr__(self, "fields", tuple(fields))
        object.__setattr__(self, "payload_bytes", offset)

    @classmethod
    def of(
        cls,
        features: Features,
        taps: Sequence[str] = ("logits", "embedding"),
        dtype: str = "fp16",
        top_k: int | None = None,
    ) -> "Layout":
        """The layout for features such as these; only their shapes are read, so the device may be ``meta``.

        Raises:
            RunError: for an unknown tap, or one that the features do not have.
        """
        for tap in taps:
            if tap not in TAPS:
                raise RunError(f"a store can keep {', '.join(TAPS)}; {tap!r} is none of them.{nearest(tap, TAPS)}")
            if not len(getattr(features, tap)) and tap not in VECTORS:
                raise RunError(f"the teacher shows no {tap}, so a store cannot keep them; take {tap} out")
        chosen = {name: tensor for name, tensor in named(features) if name.split(".")[0] in taps}
        return cls(tuple((name, tuple(tensor.shape[1:])) for name, tensor in chosen.items()), dtype, top_k)

    @property
    def taps(self) -> tuple[str, ...]:
        """The fields of ``Features`` that are kept."""
        return tuple(dict.fromkeys(name.split(".")[0] for name, _ in self.outputs))

    @property
    def record_bytes(self) -> int:
        """The length of a record, with its CRC-32."""
        return self.payload_bytes + CHECK_BYTES

    @torch.no_grad()
    def pack(self, features: Features) -> Tensor:
        """``(B, payload_bytes)`` uint8, on the features' device.

        Raises:
            RunError: features of other shapes, numbers that are not finite or that the dtype cannot hold.
        """
        given = dict(named(features))
        if missing := [name for name, _ in self.outputs if name not in given]:
            raise RunError(f"the store keeps the teacher's {', '.join(missing)}, which these features do not have")
        first = given[self.outputs[0][0]]
        packed = torch.zeros(len(first), self.payload_bytes, dtype=torch.uint8, device=first.device)
        parts: dict[str, Tensor] = {}
        for name, shape in self.outputs:
            values = given[name]
            if values.shape != (len(first), *shape):
                raise RunError(
                    f"the teacher's {name} is {tuple(values.shape)}, and the store keeps {len(first)} of {shape}"
                )
            require_finite(name, values)
            if k := self._kept(name):
                kept = compress(values, k)
                parts |= {f"{name}.{part}": tensor for part, tensor in kept._asdict().items()}
            else:
                parts[name] = values
        for part in self.fields:
            stored = cast(part, parts[part.name]).reshape(len(first), part.count)
            packed[:, part.offset : part.offset + part.bytes] = stored.contiguous().view(torch.uint8)
        return packed

    @torch.no_grad()
    def unpack(self, packed: Tensor) -> Features:
        """The features of records: float32 tensors of their own memory, on the records' device.

        What is not kept is empty: ``(B, 0)`` for ``logits`` and ``embedding``, no tensors for the others.

        Args:
            packed: ``(B, payload_bytes)`` or ``(B, record_bytes)`` uint8, or the same bytes as int32.
        """
        if not len(packed):  # an empty array may have come with strides that no other dtype can be seen in
            packed = packed.new_empty(packed.shape)
        parts = {part.name: self._column(packed, part) for part in self.fields}
        found: dict[str, list[Tensor]] = {tap: [] for tap in TAPS}
        for name, shape in self.outputs:
            if self._kept(name):
                kept = TopK(parts[f"{name}.values"], parts[f"{name}.indices"].long(), parts[f"{name}.rest"])
                whole = expand(kept, shape[0])
            else:
                whole = parts[name]
            found[name.split(".")[0]].append(whole)
        none = torch.zeros(len(packed), 0, dtype=torch.float32, device=packed.device)
        logits, embedding = ((found.pop(tap) or [none])[0] for tap in VECTORS)
        others: dict[str, Any] = {tap: tuple(tensors) for tap, tensors in found.items()}
        return Features(logits, embedding, **others)

    def _column(self, packed: Tensor, part: Field) -> Tensor:
        """One field of all records, ``(B, *shape)``, widened to float32 where it is no integer."""
        dtype = DTYPES[part.dtype]
        begin = part.offset // dtype.itemsize
        column = packed.view(dtype)[:, begin : begin + part.count]
        widened = torch.float32 if dtype.is_floating_point else dtype
        own = column.to(widened, copy=True, memory_format=torch.contiguous_format)
        return own.reshape(len(packed), *part.shape)

    def _kept(self, name: str) -> int | None:
        """How many of an output's numbers are kept, where not all are."""
        return self.top_k if name.split(".")[0] in SCORES else None

    def _parts(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of each field."""
        for name, shape in self.outputs:
            if k := self._kept(name):
                yield f"{name}.values", self.dtype, (k,)
                yield f"{name}.indices", "int16" if shape[0] <= 1 << 15 else "int32", (k,)
                yield f"{name}.rest", "fp32", ()  # one number, and the mass of all other classes hangs on it
            else:
                yield name, self.dtype, shape

    def _check_top_k(self) -> None:
        if self.top_k is None:
            return
        scores = [(name, shape[0]) for name, shape in self.outputs if name.split(".")[0] in SCORES]
        if not scores:
            raise RunError(f"top_k={self.top_k} says how many logits to keep, but no logits are kept; take it out")
        for name, classes in scores:
            if not 1 <= self.top_k < classes:
                raise RunError(
                    f"top_k={self.top_k} is no part of {classes} {name}: give 1 to {classes - 1}, or take it out to "
                    "keep all of them"
                )


def named(features: Features) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name: ``logits``, ``embedding``, ``maps.0``, ``maps.1``, ..."""
    for tap in TAPS:
        value = getattr(features, tap)
        if tap in VECTORS:
            yield tap, value
        else:
            yield from ((f"{tap}.{number}", tensor) for number, tensor in enumerate(value))


def require_finite(name: str, values: Tensor) -> None:
    if not (finite := values.isfinite()).all():
        count = values.numel() - int(finite.sum())
        raise RunError(
            f"the teacher's {name} is not finite: {count} of {values.numel()} numbers of this batch are NaN or "
            "infinite, and none of it is stored. Where the teacher computes in fp16, let it compute in bf16 or fp32"
        )


def cast(part: Field, values: Tensor) -> Tensor:
    """Finite values in a field's dtype.

    Raises:
        RunError: where that dtype cannot hold them.
    """
    dtype = DTYPES[part.dtype]
    stored = values.to(dtype)
    if dtype.is_floating_point and not stored.isfinite().all():
        wider = {"fp16": "store them in bf16 or fp32", "bf16": "store them in fp32"}.get(
            part.dtype, "they fit no dtype"
        )
        raise RunError(
            f"the teacher's {part.name} has values up to {values.abs().max().item():.6g}, beyond the largest of "
            f"{part.dtype}, {torch.finfo(dtype).max:.6g}: {wider}"
        )
    return stored
