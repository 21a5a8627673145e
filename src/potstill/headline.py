"""Each task's headline: the value by which its networks are compared, and the further ones that stand beside it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HEADLINES", "Headline", "headline_for", "headline_of", "is_accuracy"]

Row = Mapping[str, Any]

_NAMES = {
    "top5": ("top-5", "Top-5 accuracy"),
    "ap50": ("AP50", "Average precision at an IoU of 0.5"),
    "ap75": ("AP75", "Average precision at an IoU of 0.75"),
    "ap_small": ("AP small", "Average precision of small objects"),
    "ap_medium": ("AP medium", "Average precision of medium objects"),
    "ar": ("AR", "Average recall (100 detections)"),
    "ap_large": ("AP large", "Average precision of large objects"),
    "pixel_accuracy": ("pixel accuracy", "Pixel accuracy"),
    "accuracy": ("accuracy", "Accuracy over the folds of pairs"),
    "tar_": ("TAR at {}", "True accept rate at a false accept rate of {}"),
    "tpir_": ("TPIR at {}", "True positive identification rate at a false positive rate of {}"),
    "rank": ("rank-{}", "Found among the first {} of the gallery"),
}
"""In a line and in a title; a name that is filled in is of all keys that begin so."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The value of a task by which networks are compared, in percent; the more the better.

    Attributes:
        key: its name in the rows of ``metrics.csv`` and ``result.json``.
        short: in a line or a table's head.
        long: in a title.
        unit: of it and of all further values.
        more: keys of further values; one that ends in ``*`` stands for all keys that begin so.
        proportion: whether it is the part of the images that a network has right, for which there are intervals.
        each: what it is called of a single class, where it is a mean over classes.
    """

    key: str
    short: str
    long: str
    unit: str
    more: tuple[str, ...]
    proportion: bool = False
    each: str = ""

    @property
    def noun(self) -> str:
        """What it is called in a sentence: the accuracy where no other is meant, its short name elsewhere."""
        return "accuracy" if self.proportion else self.short

    @property
    def subject(self) -> str:
        """The noun at the beginning of a sentence."""
        return _capital(self.noun)

    @property
    def many(self) -> str:
        """Several of it at the beginning of a sentence."""
        return "Top-1 accuracies" if self.proportion else self.short

    def further(self, rows: Iterable[Row]) -> list[str]:
        """The keys of the further values of some rows: those named outright, and of the others what a row has.

        Example:
            >>> HEADLINES["faces"].further([{"tar": 90.0, "tar_1e-2": 95.0}, {"tar_1e-3": 90.0, "bytes": 4}])
            ['accuracy', 'tar_1e-2', 'tar_1e-3']
        """
        known = list(dict.fromkeys(key for row in rows for key in row))
        found: list[str] = []
        for name in self.more:
            found += [key for key in known if _stands_for(name, key)] if name.endswith("*") else [name]
        return found

    def values(self, row: Row) -> list[tuple[str, float]]:
        """What a row has of the headline and the further values: their keys, and the numbers that are finite.

        Example:
            >>> HEADLINES["detection"].values({"ap50": 60.0, "ap": 40.0, "ap_small": None, "val_loss": 1.0})
            [('ap', 40.0), ('ap50', 60.0)]
        """
        found = ((key, row.get(key)) for key in (self.key, *self.further([row])))
        return [(key, float(value)) for key, value in found if isinstance(value, int | float) and math.isfinite(value)]

    def name(self, key: str) -> str:
        """What the headline or a further value is called in a line.

        Example:
            >>> HEADLINES["faces"].name("tar"), HEADLINES["faces"].name("tar_1e-3"), HEADLINES["faces"].name("rank5")
            ('TAR', 'TAR at 1e-3', 'rank-5')
        """
        return self.short if key == self.key else _named(key)[0]

    def head(self, key: str) -> str:
        """The same at the beginning of a line.

        Example:
            >>> HEADLINES["segmentation"].head("miou"), HEADLINES["segmentation"].head("pixel_accuracy")
            ('mIoU', 'Pixel accuracy')
        """
        return _capital(self.name(key))

    def title(self, key: str) -> str:
        """What it is called where there is room.

        Example:
            >>> HEADLINES["detection"].title("ap"), HEADLINES["detection"].title("ap50")
            ('Average precision (COCO)', 'Average precision at an IoU of 0.5')
        """
        return self.long if key == self.key else _named(key)[1]


HEADLINES = {
    "classification": Headline("top1", "top-1", "Top-1 accuracy", "%", ("top5",), proportion=True),
    "detection": Headline(
        "ap", "AP", "Average precision (COCO)", "%", ("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar"),
        each="AP",
    ),
    "segmentation": Headline("miou", "mIoU", "Mean IoU", "%", ("pixel_accuracy",), each="IoU"),
    "faces": Headline(
        "tar", "TAR", "True accept rate at the false accept rate that counts", "%",
        ("accuracy", "tar_*", "tpir_*", "rank*"),
    ),
}  # fmt: skip
"""By a recipe's task."""


def headline_of(found: Row | Iterable[Row]) -> Headline:
    """The headline that a row has, or the first of several rows that has one; classification's where none has.

    Args:
        found: a row of values, several of them, or several by name, like ``rows`` of ``result.json``.

    Example:
        >>> headline_of({"miou": 60.0}).short, headline_of({"student": {"val_loss": 1}, "teacher": {"ap": 3}}).short
        ('mIoU', 'AP')
        >>> headline_of([]).short
        'top-1'
    """
    if isinstance(found, Mapping):
        inner = [row for row in found.values() if isinstance(row, Mapping)]
        rows: list[Row] = inner or [found]
    else:
        rows = list(found)
    known = (headline for row in rows for headline in HEADLINES.values() if headline.key in row)
    return next(known, HEADLINES["classification"])


def headline_for(recipe: Row, rows: Row | Iterable[Row] = ()) -> Headline:
    """A run's headline: that of its recipe's task; of a recipe that says none, that of its rows.

    Args:
        recipe: plain values, as ``recipe.yaml`` has them.
        rows: as of :func:`headline_of`.

    Example:
        >>> headline_for({"task": "faces"}).key, headline_for({}, [{"ap": 30.0}]).key
        ('tar', 'ap')
    """
    return HEADLINES.get(str(recipe.get("task"))) or headline_of(rows)


def is_accuracy(key: str) -> bool:
    """Whether a row's value by that key is some task's headline, or one of its further values.

    Example:
        >>> [key for key in ("top1", "ap_small", "tar_1e-3", "val_loss", "task") if is_accuracy(key)]
        ['top1', 'ap_small', 'tar_1e-3']
    """
    return any(_stands_for(name, key) for one in HEADLINES.values() for name in (one.key, *one.more))


def _capital(text: str) -> str:
    """A text for the beginning of a line; mIoU stays what it is."""
    return text.capitalize() if text == text.lower() else text


def _stands_for(name: str, key: str) -> bool:
    return key.startswith(name[:-1]) if name.endswith("*") else key == name


def _named(key: str) -> tuple[str, str]:
    for name, (short, long) in _NAMES.items():
        if key == name or ("{}" in short and key.startswith(name)):
            return short.format(key.removeprefix(name)), long.format(key.removeprefix(name))
    return key, key
