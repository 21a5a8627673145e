"""Networks that name each pixel: how they are built, and how their parts are read."""

__all__: list[str] = []
