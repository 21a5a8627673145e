"""How many true pairs of faces are accepted, over how many false ones: the curve of each network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import RunError
from potstill.report.blocks import Figure, Note, Section
from potstill.report.figures import line

__all__ = ["ROC_FILE", "Roc", "read_roc", "roc"]

ROC_FILE = "roc.json"
_FINE = 100  # points of a curve a decade: more than a plot has pixels
_ORDER = ("student", "control", "teacher")


@dataclass(frozen=True, slots=True)
class Roc:
    """One network's curve.

    Attributes:
        far: false accept rates, ascending, above 0 and up to 1.
        tar: the true accept rate at each, from 0 to 1.
    """

    far: tuple[float, ...]
    tar: tuple[float, ...]

    def at(self, far: float) -> float | None:
        """The true accept rate at the largest false accept rate up to one; None where the curve begins above it.

        Example:
            >>> curve = Roc((0.001, 0.01), (0.8, 0.9))
            >>> curve.at(0.005), curve.at(0.0001)
            (0.8, None)
        """
        reached = [tar for rate, tar in zip(self.far, self.tar, strict=True) if rate <= far * (1 + 1e-9)]
        return reached[-1] if reached else None


def read_roc(folder: Path) -> dict[str, Roc]:
    """The curves that a run has kept, checked, by network; none where it has kept none.

    ``roc.json`` is ``{"student": {"far": [0.001, ..], "tar": [0.92, ..]}, "teacher": ..}``: parts of 1, in any order of
    the rates; a rate of 0, which a logarithmic axis does not have, is left out.

    Args:
        folder: the run's.

    Raises:
        RunError: where the file is damaged.
    """
    path = folder / ROC_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: it is no valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged: it holds a {type(found).__name__}, expected curves by network.")
    return {name: _curve(path, name, found[name]) for name in _ORDER if name in found}


def _curve(path: Path, name: str, value: Any) -> Roc:
    rates = [value.get(key) if isinstance(value, dict) else None for key in ("far", "tar")]
    far, tar = ([] if not isinstance(rate, list) else rate for rate in rates)
    if not all(isinstance(rate, list) for rate in rates) or len(far) != len(tar):
        raise RunError(f"{path} is damaged: {name} needs two lists of one length, far and tar.")
    if wrong := [rate for rate in [*far, *tar] if not _is_part(rate)]:
        raise RunError(f"{path} is damaged: {name} has the rate {str(wrong[0])[:40]}, expected numbers from 0 to 1.")
    points = sorted((float(x), float(y)) for x, y in zip(far, tar, strict=True) if x > 0)
    return Roc(tuple(x for x, _ in points), tuple(y for _, y in points))


def _is_part(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def roc(found: Mapping[str, Roc]) -> Section:
    """The section of the curves.

    Args:
        found: by network.
    """
    curves = {name: found[name] for name in _ORDER if name in found and found[name].far}
    if not curves:
        return Section("roc", "True over false accepts", [Note(f"The run kept no curves ({ROC_FILE}).")])
    data, said = [], []
    decades = [10.0**power for power in range(-6, 0)]
    for name, curve in curves.items():
        xs, ys = _thinned(curve)
        data.append(line(name, xs, [100 * y for y in ys], name, "%{y:.2f} %", mode="lines"))
        values = [(far, value) for far in decades if (value := curve.at(far)) is not None]
        said.append(f"{name} {', '.join(f'{100 * value:.2f} % at {far:g}' for far, value in values)}")
    figure = Figure(
        "True accept rate over false accept rate",
        f"True accept rate (TAR) at false accept rates (FAR): {'; '.join(said)}.", data,
        {
            "xaxis": {"type": "log", "title": {"text": "false accept rate"}, "dtick": 1, "exponentformat": "power"},
            "yaxis": {"ticksuffix": " %"}, "showlegend": len(data) > 1,
        },
        "Up and to the left is better. At the left end a handful of pairs decides: with n pairs of different people "
        "the rate cannot be told below 1/n.",
        height=380,
    )  # fmt: skip
    return Section("roc", "True over false accepts", [figure])


def _thinned(curve: Roc) -> tuple[list[float], list[float]]:
    """A curve that looks the same on a logarithmic axis: of each stretch its first and its last point."""
    kept: dict[tuple[int, bool], tuple[float, float]] = {}
    for far, tar in zip(curve.far, curve.tar, strict=True):
        stretch = round(_FINE * math.log10(far))
        kept.setdefault((stretch, False), (far, tar))
        kept[stretch, True] = (far, tar)
    points = sorted(set(kept.values()))
    return [x for x, _ in points], [y for _, y in points]
