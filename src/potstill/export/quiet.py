"""Keeping the exporters quiet."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks and half-traced graphs from the user; what fails is raised, and says why."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # not by a logger's level: torch's loggers below have levels of their own
    try:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
