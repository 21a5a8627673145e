"""How long something takes, as people say it."""

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """Seconds in the unit that people would take.

    Example:
        >>> duration(7.3), duration(245), duration(12_000)
        ('7.3 s', '4:05 min', '3:20 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
