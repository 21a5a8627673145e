"""Plotly's traces and layouts as plain values; the page draws them.

Plotly reads a few HTML-like tags in whatever text it shows, so every text from outside goes through :func:`shown`. It
also fills in ``%{...}`` in hover templates, so names come in as data and never stand in a template.
"""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["SERIES", "bars", "colour", "cut", "line", "names_axis", "phases", "rounded", "shown", "thinned"]

SERIES = 8
"""How many series the page's style has colours for; further ones begin anew, with another dash."""

_DASHES = ("solid", "dash", "dot", "dashdot")
_ROLES = {"student": "solid", "control": "dash", "teacher": "dot"}
_MOST = 1000  # points of a curve: more than a plot has pixels

Trace = dict[str, Any]


def shown(text: object) -> str:
    """A text that plotly shows letter by letter: no tags, no control characters, no directions of writing turned.

    Example:
        >>> shown("<b>x</b> & co")
        '&lt;b&gt;x&lt;/b&gt; &amp; co'
    """
    plain = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in str(text))
    return html.escape(plain, quote=False)


def cut(text: str, most: int = 24) -> str:
    """A text for an axis, shortened in its middle.

    Example:
        >>> cut("a rather long name of a class", 15)
        'a rathe…a class'
    """
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def rounded(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    """Numbers to so many digits that count: a third of the bytes, and no difference to see.

    Example:
        >>> rounded([0.123456789, 12345.6789, None, float("nan")])
        [0.12346, 12346.0, None, None]
    """
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in values]


def thinned(
    xs: Sequence[float], ys: Sequence[float | None], most: int = _MOST
) -> tuple[list[float], list[float | None]]:
    """A curve of at most so many points that looks the same: of each stretch its first, lowest, highest and last one.

    Source: Jugel et al., "M4: a visualization-oriented time series data aggregation", VLDB 2014.

    Example:
        >>> thinned([0, 1, 2, 3, 4, 5, 6, 7], [0, 9, 1, 1, 1, -5, 1, 0], most=4)
        ([0, 1, 5, 7], [0, 9, -5, 0])
    """
    if len(xs) <= most:
        return list(xs), list(ys)
    kept: list[int] = []
    stretches = max(1, most // 4)
    for number in range(stretches):
        part = range(number * len(xs) // stretches, (number + 1) * len(xs) // stretches)
        real = [(value, i) for i in part if (value := ys[i]) is not None]
        ends = {part[0], part[-1]}
        kept += sorted(ends | ({min(real)[1], max(real)[1]} if real else set()))
    return [xs[i] for i in kept], [ys[i] for i in kept]


def colour(role: str | int) -> str:
    """A variable of the page's style: of a role, or of a series by its number."""
    return f"var(--series-{role % SERIES + 1})" if isinstance(role, int) else f"var(--{role})"


def line(
    name: str, xs: Sequence[float], ys: Sequence[float | None], role: str | int, template: str = "%{y}", **more: Any
) -> Trace:
    """One curve.

    Args:
        name: in the legend; escaped here.
        xs: ascending.
        ys: as many; None leaves a gap.
        role: "student", "control" or "teacher", or a series' number.
        template: what hovering shows of a point; no name from outside may stand in it.
        more: plotly's, over what is said here.
    """
    xs, ys = thinned(xs, rounded(ys))
    dash = _DASHES[role // SERIES % len(_DASHES)] if isinstance(role, int) else _ROLES[role]
    return {
        "type": "scatter", "mode": "lines+markers" if len(xs) <= 20 else "lines", "name": shown(cut(name, 40)),
        "x": xs, "y": ys, "hovertemplate": template, "marker": {"size": 5, "color": colour(role)},
        "line": {"color": colour(role), "width": 2, "dash": dash}, **more,
    }  # fmt: skip


def bars(name: str, names: Sequence[str], values: Sequence[float], colours: Sequence[str] | str, **more: Any) -> Trace:
    """Bars that lie, the first on top; what hovering shows comes from the names, which are escaped here."""
    return {
        "type": "bar", "orientation": "h", "name": shown(name), "y": list(range(len(names))), "x": rounded(values),
        "customdata": [[shown(one)] for one in names], "marker": {"color": colours},
        "hovertemplate": "%{customdata[0]}: %{x}<extra></extra>", **more,
    }  # fmt: skip


def names_axis(names: Sequence[str], most: int = 24) -> dict[str, Any]:
    """The axis of :func:`bars`: names at whole numbers, so that two of one name stay two."""
    return {
        "tickmode": "array", "tickvals": list(range(len(names))),
        "ticktext": [shown(cut(name, most)) for name in names], "autorange": "reversed", "showgrid": False,
        "zeroline": False, "fixedrange": True,
    }  # fmt: skip


def phases(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lines where a run's next phase begins, with its name; nothing of a run of one phase."""
    names = [row.get("phase") for row in rows]
    starts = [i for i, name in enumerate(names) if name and (i == 0 or names[i - 1] != name)]
    if len(starts) < 2:
        return {}
    edges = [(rows[i - 1]["epoch"] if i else 0, str(names[i])) for i in starts]
    shape = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
    }
    note = {"yref": "paper", "y": 1, "yanchor": "top", "xanchor": "left", "showarrow": False, "font": {"size": 11}}
    return {
        "shapes": [{**shape, "x0": x, "x1": x} for x, _ in edges[1:]],
        "annotations": [{**note, "x": x, "text": shown(cut(name, 16))} for x, name in edges],
    }
