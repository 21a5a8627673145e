"""The module of a ``package.module:name`` that a user names: for networks and methods of their own."""

import importlib
import os
import sys
from types import ModuleType

__all__ = ["import_named"]


def import_named(module: str) -> ModuleType:
    """Import a module that is installed or lies in the working directory; this runs its code.

    So the name must be one that the user said, never one that a file brings along.

    Raises:
        Exception: whatever the import raises; the caller knows what the module was wanted for.

    Example:
        >>> import_named("os.path").basename("runs/small")
        'small'
    """
    # The directory last: a user's file must not hide an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)
