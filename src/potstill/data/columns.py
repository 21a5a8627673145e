"""Which columns of a Parquet file hold the images and the labels, and what the classes are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from potstill.errors import DataError, nearest

__all__ = ["Columns", "choose_columns", "number_labels"]

PREFERRED = ("label", "fine_label")  # in this order, before any other column


@dataclass(frozen=True)
class Columns:
    """The columns of an image table.

    Attributes:
        image: the column with the files' bytes.
        nested: whether these lie in a field ``bytes`` of a struct.
        label: the column with the labels, or None.
        classes: the classes' names from the file's metadata; empty where it has none.
        note: what to say out loud about the choice; empty where there was none to make.
    """

    image: str
    nested: bool
    label: str | None
    classes: tuple[str, ...]
    note: str = ""


def choose_columns(
    schema: pa.Schema, name: str, image_column: str | None = None, label_column: str | None = None
) -> Columns:
    """Find the image and the label column of a table in the Hugging Face layout.

    The image column is the one that the metadata call an image; without metadata, the only struct with a binary field
    ``bytes``, or the only binary column. The label column is ``label``, else ``fine_label``, else the only one whose
    classes the metadata name. Where none of these is there, the table has no labels.

    Args:
        schema: of the table.
        name: what messages call the table.
        image_column: the image column, where it is not to be found.
        label_column: the label column, where it is not to be found.

    Raises:
        DataError: a named column that is not there or has another type; several candidates; metadata that cannot be
            read.
    """
    if len(set(schema.names)) < len(schema.names):
        raise DataError(
            f"{name} has several columns of one name: {', '.join(schema.names)}. Write it with distinct names."
        )
    features = read_features(schema, name)
    image = find_image(schema, features, name, image_column)
    label, note = find_label(schema, features, name, label_column, image)
    classes: tuple[str, ...] = ()
    if label is not None:
        kind = schema.field(label).type
        if not (types.is_integer(kind) or is_text(kind)):
            raise DataError(f"{name}: labels must be whole numbers or text, but column {label!r} holds {kind}.")
        names = features.get(label, {}).get("names")
        if names and types.is_integer(kind):
            classes = tuple(str(one) for one in names)
    return Columns(image, types.is_struct(schema.field(image).type), label, classes, note)


def read_features(schema: pa.Schema, name: str) -> dict[str, dict]:
    """What the ``datasets`` library wrote about each column; empty where it wrote nothing."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = json.loads(raw)["info"]["features"]
        return {column: one for column, one in features.items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: its 'huggingface' metadata cannot be read ({error}). Write the file again."
        ) from error


def find_image(schema: pa.Schema, features: dict[str, dict], name: str, wanted: str | None) -> str:
    """The image column's name."""
    if wanted is not None:
        if not holds_bytes(known(schema, name, wanted, "image").type):
            raise DataError(
                f"{name}: column {wanted!r} holds {schema.field(wanted).type}, not image files. "
                "An image column holds bytes, or structs with a field 'bytes'."
            )
        return wanted
    usable = [field.name for field in schema if holds_bytes(field.type)]
    called = [column for column in usable if features.get(column, {}).get("_type") == "Image"]
    nested = [column for column in usable if types.is_struct(schema.field(column).type)]
    for candidates in (called, nested, usable):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise DataError(
                f"{name} has several image columns: {', '.join(candidates)}. Name one with data.image_column."
            )
    raise DataError(f"{name} has no column of image files. Its columns: {listing(schema)}.")


def find_label(
    schema: pa.Schema, features: dict[str, dict], name: str, wanted: str | None, image: str
) -> tuple[str | None, str]:
    """The label column's name, or None, and what to say about the choice."""
    if wanted is not None:
        return known(schema, name, wanted, "label").name, ""
    called = [column for column in schema.names if features.get(column, {}).get("_type") == "ClassLabel"]
    for column in PREFERRED:
        if column in schema.names:
            others = [one for one in called if one != column]
            note = f"Labels are the column {column!r} (there is {', '.join(others)} too)." if others else ""
            return column, note
    if len(called) == 1:
        return called[0], ""
    if called:
        raise DataError(f"{name} has several label columns: {', '.join(called)}. Name one with data.label_column.")
    rest = [field.name for field in schema if field.name != image]
    note = f" (columns: {', '.join(rest)}; name one with data.label_column if it is one)" if rest else ""
    return None, f"No label column, so the images go without labels{note}."


def known(schema: pa.Schema, name: str, column: str, role: str) -> pa.Field:
    """A column by name, or the error that lists what there is."""
    if column not in schema.names:
        raise DataError(
            f"{name} has no column {column!r} for data.{role}_column.{nearest(column, schema.names)} "
            f"Its columns: {listing(schema)}."
        )
    return schema.field(column)


def listing(schema: pa.Schema) -> str:
    """Columns with their types."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are plain bytes."""
    return types.is_binary(kind) or types.is_large_binary(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column can hold image files: bytes, or structs with a field ``bytes``."""
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_binary(kind.field("bytes").type)
    return is_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text, also where the file stores each distinct one once."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def number_labels(
    values: pa.ChunkedArray, column: str, name: str, classes: Sequence[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as int64 class numbers, and the classes' names.

    Text is numbered in sorted order. Whole numbers without names are class numbers as they are, so that a teacher's
    stay valid, and their classes are called ``"0"``, ``"1"`` and so on. A column that is -1 throughout, as in test
    sets whose labels are kept back, counts as no labels.

    Args:
        values: the label column.
        column: its name.
        name: what messages call the table.
        classes: the names that are known already, from the metadata or from the training set; else empty.

    Raises:
        DataError: a missing label, one that is not among ``classes``, or numbers that cannot be class numbers.
    """
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise DataError(f"{name}: row {row} has no label in column {column!r}. Every row needs one.")
    if not types.is_integer(values.type):
        return number_texts(values.cast(pa.string()).to_numpy(), column, name, classes)
    labels = values.to_numpy().astype(np.int64)
    if labels.size and (labels == -1).all():
        return None, ()
    if not classes:
        highest = int(labels.max()) if labels.size else -1
        if highest >= max(labels.size, 2):
            raise DataError(
                f"{name}: column {column!r} goes up to {highest}, but there are only {labels.size} rows, so these are "
                "no class numbers. Name another column with data.label_column."
            )
        classes = [str(number) for number in range(highest + 1)]
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if wrong.size:
        raise DataError(
            f"{name}: {wrong.size} labels in column {column!r} lie outside 0..{len(classes) - 1}, "
            f"the first in row {wrong[0]}: {labels[wrong[0]]}."
        )
    return labels, tuple(classes)


def number_texts(
    texts: np.ndarray, column: str, name: str, classes: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Text labels as class numbers, in sorted order where no classes are given."""
    distinct, numbers = np.unique(texts.astype(str), return_inverse=True)
    names = tuple(classes) or tuple(str(one) for one in distinct)
    place = {one: number for number, one in enumerate(names)}
    strangers = [str(one) for one in distinct if str(one) not in place]
    if strangers:
        many = "a class" if len(strangers) == 1 else f"{len(strangers)} classes"
        raise DataError(
            f"{name}: column {column!r} has {many} that the training set lacks: {', '.join(strangers[:5])}."
        )
    return np.array([place[str(one)] for one in distinct], dtype=np.int64)[numbers], names
