"""Numbers as people read them."""

from potstill.report.statistics import Interval

__all__ = ["between", "counted", "duration", "percent", "points", "ratio"]

MINUS = "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    """An accuracy.

    Example:
        >>> percent(71.456), percent(None)
        ('71.46 %', '-')
    """
    return "-" if value is None else f"{value:.2f} %"


def points(value: float | None) -> str:
    """A difference of two accuracies, with its sign.

    Example:
        >>> points(1.234), points(-0.5), points(0.0), points(-0.001), points(None)
        ('+1.23', '−0.50', '0.00', '0.00', '-')
    """
    if value is None:
        return "-"
    text = f"{value:+.2f}"
    return text[1:] if text[1:] == "0.00" else text.replace("-", MINUS)


def between(interval: Interval | None, signed: bool = True) -> str:
    """An interval's two ends.

    Example:
        >>> between(Interval(1, -0.2, 2.2)), between(Interval(71, 70, 72), signed=False), between(None)
        ('−0.20 to +2.20', '70.00 to 72.00', '-')
    """
    if interval is None:
        return "-"
    low, high = (points(end) if signed else f"{end:.2f}".replace("-", MINUS) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def counted(value: float | None) -> str:
    """A whole number with separators.

    Example:
        >>> counted(278324), counted(None)
        ('278,324', '-')
    """
    return "-" if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A time in the two units that matter.

    Example:
        >>> duration(0.4), duration(42), duration(626), duration(3600 * 5 + 61), duration(None)
        ('0.4 s', '42 s', '10 min 26 s', '5 h 1 min', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ratio(ours: float | None, theirs: float | None, less: str, more: str) -> str:
    """How many times less or more something is.

    Example:
        >>> ratio(83892, 278324, "smaller", "larger"), ratio(2.0, 1.0, "faster", "slower")
        ('3.3 times smaller', '2.0 times slower')
        >>> ratio(1.0, 1.01, "faster", "slower"), ratio(None, 1.0, "faster", "slower")
        ('the same', '-')
    """
    if not ours or not theirs:
        return "-"
    times = theirs / ours
    if 0.95 < times < 1.05:
        return "the same"
    return f"{times:.1f} times {less}" if times > 1 else f"{1 / times:.1f} times {more}"
