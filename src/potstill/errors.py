"""What a user can cause and mend: each error is a sentence that says what was got, what was expected and what to do."""

import difflib
from collections.abc import Iterable

__all__ = ["DataError", "NetworkError", "PotstillError", "RecipeError", "RunError", "nearest"]


class PotstillError(ValueError):
    """The base of every error that the command prints as one clear line, without a traceback."""


class RecipeError(PotstillError):
    """A recipe, or a combination of its values, that cannot be run."""


class DataError(PotstillError):
    """Images, labels or folders that cannot be used."""


class NetworkError(PotstillError):
    """A network, a layer or weights that do not exist or do not fit."""


class RunError(PotstillError):
    """A run that cannot go on, or a run's folder that cannot be used."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint to end an error about an unknown name: ``" Did you mean 'pefd'?"``, or nothing where none is near.

    Example:
        >>> nearest("pfed", ["ce", "kd", "pefd"])
        " Did you mean 'pefd'?"
        >>> nearest("zzz", ["ce", "kd"])
        ''
    """
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
