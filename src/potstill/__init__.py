"""Potstill: knowledge distillation of vision networks, as a command and as a library.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.batch import Batch
    from potstill.config import Recipe
    from potstill.data.open import open_data
    from potstill.errors import DataError, NetworkError, PotstillError, RecipeError, RunError
    from potstill.methods import Method, Needs, Setting, build_method, register
    from potstill.methods.ce import ce
    from potstill.methods.kd import kd
    from potstill.methods.objective import KD_OBJECTIVE, PEFD_OBJECTIVE, Objective
    from potstill.methods.pefd import pefd
    from potstill.networks.build import build_network, list_models
    from potstill.networks.features import Features, FeatureSpec, MapSpec
    from potstill.networks.ship import load_student
    from potstill.networks.tap import Tapped, Taps, tap
    from potstill.networks.teacher import Teacher
    from potstill.procedures.run import distill
    from potstill.projectors import ProjectorEnsemble
    from potstill.recipe import load_recipe

__version__ = "0.1.0"

_HOMES = {
    "potstill.batch": ("Batch",),
    "potstill.config": ("Recipe",),
    "potstill.data.open": ("open_data",),
    "potstill.errors": ("DataError", "NetworkError", "PotstillError", "RecipeError", "RunError"),
    "potstill.methods": ("Method", "Needs", "Setting", "build_method", "register"),
    "potstill.methods.ce": ("ce",),
    "potstill.methods.kd": ("kd",),
    "potstill.methods.objective": ("KD_OBJECTIVE", "PEFD_OBJECTIVE", "Objective"),
    "potstill.methods.pefd": ("pefd",),
    "potstill.networks.build": ("build_network", "list_models"),
    "potstill.networks.features": ("FeatureSpec", "Features", "MapSpec"),
    "potstill.networks.ship": ("load_student",),
    "potstill.networks.tap": ("Tapped", "Taps", "tap"),
    "potstill.networks.teacher": ("Teacher",),
    "potstill.procedures.run": ("distill",),
    "potstill.projectors": ("ProjectorEnsemble",),
    "potstill.recipe": ("load_recipe",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "KD_OBJECTIVE",
    "PEFD_OBJECTIVE",
    "Batch",
    "DataError",
    "FeatureSpec",
    "Features",
    "MapSpec",
    "Method",
    "Needs",
    "NetworkError",
    "Objective",
    "PotstillError",
    "ProjectorEnsemble",
    "Recipe",
    "RecipeError",
    "RunError",
    "Setting",
    "Tapped",
    "Taps",
    "Teacher",
    "__version__",
    "build_method",
    "build_network",
    "ce",
    "distill",
    "kd",
    "list_models",
    "load_recipe",
    "load_student",
    "open_data",
    "pefd",
    "register",
    "tap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
