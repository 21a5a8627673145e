"""Counts and sizes with the letter that leaves few digits."""

__all__ = ["bytes_of", "scaled"]


def scaled(value: float | None) -> str:
    """A count with the letter that leaves one to three digits before the point.

    Example:
        >>> scaled(41_300_000), scaled(999_960), scaled(870), scaled(None)
        ('41.3 M', '1.0 M', '870', '-')
    """
    return _scaled(value, 1000, ("", "k", "M", "G", "T"))


def bytes_of(value: float | None) -> str:
    """A size on disk or in memory.

    Example:
        >>> bytes_of(343104), bytes_of(12)
        ('335.1 KiB', '12 B')
    """
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float | None, base: int, units: tuple[str, ...]) -> str:
    if value is None:
        return "-"
    unit = 0
    while value >= (base if unit == 0 else base - 0.05) and unit + 1 < len(units):
        value, unit = value / base, unit + 1
    return f"{value:.0f} {units[0]}".strip() if unit == 0 else f"{value:.1f} {units[unit]}"
