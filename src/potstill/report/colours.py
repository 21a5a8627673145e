"""A colour for each class that can be told from the others on a photograph, in both themes and on paper."""

import colorsys

__all__ = ["class_colour"]

_FIRST = ("#ff4f4f", "#3fa7ff", "#36d57a", "#ffd02e", "#c77dff", "#ff8c3a", "#3fd6e0", "#f06cc0")
_GOLDEN = 0.618033988749895  # of a turn: hues in this step never come close soon


def class_colour(number: int) -> str:
    """The colour of a class by its number.

    Example:
        >>> class_colour(0), class_colour(8) == class_colour(9), len({class_colour(k) for k in range(200)}) > 150
        ('#ff4f4f', False, True)
    """
    if number < len(_FIRST):
        return _FIRST[number]
    red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN % 1.0, (0.55, 0.68)[number % 2], 0.9)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
