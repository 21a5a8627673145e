"""One call that opens any data Potstill can read."""

from dataclasses import replace
from pathlib import Path

from potstill.data.cifar import CIFAR, cifar, statistics_of
from potstill.data.class_names import read_class_names
from potstill.data.digits import digits
from potstill.data.folder import FolderSource, find_parts
from potstill.data.parquet import ParquetSource
from potstill.data.recognise import recognise
from potstill.data.shards import find_shards, root_of
from potstill.data.source import Source, Split, Subset, subset
from potstill.data.splits import stratified
from potstill.data.tar import TarSource
from potstill.errors import DataError, nearest

__all__ = ["SOURCES", "open_data"]

SOURCES = ("auto", "digits", "cifar10", "cifar100", "folder", "parquet", "tar")
READERS = ("parquet", "tar")


def open_data(
    source: str = "auto",
    path: str | Path | None = None,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    size: int | None = None,
) -> Split:
    """Open a data set as a training and a validation source.

    A validation or test set that the data bring is used as it is. Where there is none, a part of each class is kept
    for validation, chosen by ``seed``; the split's note says which it was.

    Args:
        source: what the data are. ``"auto"`` looks: no path is the digits, a folder with CIFAR's pickles is CIFAR, a
            Parquet file or tar shard, or a folder with such, is just that, every other folder one of images.
        path: file or folder; of Parquet and tar shards also an address that fsspec knows (``s3://bucket/folder``),
            braces and wildcards (``train-{000..146}.tar``, ``{train,val}-*.tar``). CIFAR may lie there as pickles or as
            Parquet.
        val_fraction: the part kept for validation where the data bring none; None is 0.2 of the digits and 0.1 of
            everything else; 0 keeps none.
        seed: of that choice.
        image_column: the image column of a Parquet file, where it is not to be found.
        label_column: the label column of a Parquet file; ``"coarse_label"`` takes CIFAR-100's 20 groups. Of tar shards,
            the field of ``KEY.json`` that holds the label.
        size: height and width of the digits, 16 by default. Other sources give their images as they are; what loads
            them brings them to a size.

    Raises:
        DataError: an unknown source, a path that is not there or holds something else, and all that the source itself
            finds wrong.

    Example:
        >>> split = open_data("digits", val_fraction=0.5)
        >>> len(split.train), len(split.val), split.train.classes[:3]
        (899, 898, ('0', '1', '2'))
    """
    if source not in SOURCES:
        raise DataError(
            f"There is no data source {source!r}; there are {', '.join(SOURCES)}.{nearest(source, SOURCES)}"
        )
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    kind = recognise(source, path)
    if kind != "parquet" and image_column is not None:
        raise DataError(f"data.image_column={image_column!r} is for Parquet files, but the data are {kind}.")
    if kind in ("digits", "folder") and label_column is not None:
        raise DataError(
            f"data.label_column={label_column!r} is for Parquet files, tar shards and CIFAR, but the data are {kind}."
        )
    if path is None:  # only the digits need none
        return digits(16 if size is None else size, 0.2 if val_fraction is None else val_fraction, seed)
    fraction = 0.1 if val_fraction is None else val_fraction
    if kind in CIFAR:
        split = cifar(kind, Path(path), label_column)
    elif kind in READERS:
        split = open_shards(kind, path, fraction, seed, image_column, label_column)
        if source in CIFAR and split.train.statistics != CIFAR[source].statistics:
            raise DataError(
                f"{path} is not {source}: its {len(split.train.classes)} classes or its images' size are others. "
                "Set data.source=parquet to use it as it is."
            )
    else:
        split = open_folder(Path(path), fraction, seed)
    if val_fraction is not None and split.val is not None and not isinstance(split.val, Subset):
        return replace(
            split, note=f"{split.note} val_fraction={val_fraction} is for data without one and was not used."
        )
    return split


def open_shards(
    kind: str, path: str | Path, fraction: float, seed: int, image_column: str | None, label_column: str | None
) -> Split:
    """The splits of Parquet files or tar shards."""
    shards = find_shards(path, f".{kind}")

    def read(part: str, classes: tuple[str, ...] = ()) -> ParquetSource | TarSource:
        name = str(path) if len(shards) == 1 else f"{path} ({part})"
        if kind == "tar":
            return TarSource(shards[part], name=name, field=label_column, classes=classes)
        return ParquetSource(
            shards[part], name=name, image_column=image_column, label_column=label_column, classes=classes
        )

    train = read("train", read_class_names(shards["train"][0], root_of(path)) if kind == "tar" else ())
    train.statistics = statistics_of(train.classes, train.fixed_size)
    if train.labels is not None and len(train.classes) < 2:
        raise DataError(f"{path} has one class only; a labelled set needs at least two.")
    part = "validation" if "validation" in shards else "test"
    val = read(part, train.classes) if part in shards else None
    if val is not None:
        val.statistics = train.statistics
    unused = [one for one in shards if one not in ("train", part)]
    return finish(train, val, part, train.note, unused, fraction, seed)


def open_folder(path: Path, fraction: float, seed: int) -> Split:
    """The splits of a folder of images."""
    train_path, val_path, unused = find_parts(path)
    train = FolderSource(train_path, root=path)
    val = None if val_path is None else FolderSource(val_path, classes=train.classes, root=path)
    said = "" if train.labels is not None else "The images lie flat, so they go without labels."
    return finish(train, val, val_path.name if val_path else "", said, unused, fraction, seed)


def finish(
    train: Source, val: Source | None, part: str, said: str, unused: list[str], fraction: float, seed: int
) -> Split:
    """The split with its note; where there is no validation set, a seeded choice from the training set."""
    notes = [said] if said else []
    if val is not None:
        if train.labels is not None and val.labels is None:
            raise DataError(
                f"{train.name} has labels but {val.name} has none, so nothing can be judged by it. Give the training "
                "images alone as data.path to have a part of them kept for validation."
            )
        notes.append(f"Validation is the data's own {part} set: {len(val):,} images.")
        if unused:
            notes.append(f"Not used: {', '.join(unused)}.")
        return Split(train, val, " ".join(notes))
    if unused:
        notes.append(f"Not used: {', '.join(unused)}.")
    if fraction == 0:
        notes.append("No validation set was asked for (val_fraction=0): all images are trained on.")
        return Split(train, None, " ".join(notes))
    kept, held = stratified(len(train) if train.labels is None else train.labels, fraction, seed)
    if not len(held):
        notes.append("No class has two images, so none is kept for validation: all images are trained on.")
        return Split(train, None, " ".join(notes))
    by = "chosen by class" if train.labels is not None else "chosen"
    notes.append(
        f"The data bring no validation set: {len(held):,} of {len(train):,} images are kept for it, "
        f"{by} with seed {seed}."
    )
    return Split(subset(train, kept), subset(train, held), " ".join(notes))
