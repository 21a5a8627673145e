"""Methods by name: ours, a user's own by dotted path, and those that installed packages announce."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_type_hints

from potstill.errors import PotstillError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.hyper import describe, fits
from potstill.networks.named import import_named

__all__ = ["build_method", "check_hyper", "find_method", "hyper_parameters", "methods", "register"]

GROUP = "potstill.methods"
_RESERVED = ("total", "weight", "warmup")  # the key of the weighted sum, and what a recipe says of a term itself
_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Make a method known by ``name``, as in ``@register("pefd")`` above its class.

    Raises:
        PotstillError: for a name that is taken by another class, or cannot be a name.
    """

    def known(cls: M) -> M:
        if not name.isidentifier() or name in _RESERVED:
            raise PotstillError(f"A method cannot be named {name!r}: take a Python identifier, not {_RESERVED}.")
        if name in _METHODS:
            raise PotstillError(
                f"The method name {name!r} is taken by {_path(_METHODS[name])}; give {_path(cls)} another."
            )
        _METHODS[name] = cls
        return cls

    return known


def methods() -> dict[str, type[Method]]:
    """All methods that have a name, sorted: ours and those of installed packages (entry points ``potstill.methods``).

    Raises:
        RecipeError: for an installed package whose method cannot be loaded or has a name that is taken.

    Example:
        >>> sorted({"ce", "kd", "pefd"} & methods().keys())
        ['ce', 'kd', 'pefd']
    """
    return {name: find_method(name) for name in sorted({*_METHODS, *_announced()})}


def find_method(name: str) -> type[Method]:
    """The class of a method: a registered name, ``package.module:Class``, or the name of an entry point.

    Raises:
        RecipeError: where there is none of that name, or what is there is no method.
    """
    if ":" in name:
        return _checked(_by_path(name), name)
    point = _announced().get(name)
    if point is not None:
        try:
            loaded = point.load()
        except Exception as error:  # any failure of foreign code on import
            raise RecipeError(f"The method {name!r} ({point.value}) of an installed package fails: {error}.") from error
        if _METHODS.setdefault(name, _checked(loaded, name)) is not loaded:
            raise RecipeError(f"The method {name!r} is both {_path(_METHODS[name])} and {point.value}; rename one.")
    if name in _METHODS:
        return _METHODS[name]
    known = sorted({*_METHODS, *_announced()})
    raise RecipeError(
        f"There is no method {name!r}.{nearest(name, known)} "
        f"There are {', '.join(known)}; name a class of your own as package.module:Class."
    )


def build_method(name: str, setting: Setting, **hyper: Any) -> Method:
    """A method by name, sized by the two networks' feature specs.

    Args:
        name: a name that :func:`methods` lists, or ``package.module:Class``.
        setting: the student's and the teacher's specs.
        **hyper: the method's own hyper-parameters; those not given keep their defaults.

    Raises:
        RecipeError: for an unknown name, and for hyper-parameters that are unknown, missing or of a wrong type: all
            of them at once.

    Example:
        >>> from potstill.networks.features import FeatureSpec
        >>> setting = Setting(FeatureSpec(classes=10, embedding_dim=64), FeatureSpec(classes=10, embedding_dim=256))
        >>> build_method("pefd", setting, projectors=1).needs.teacher
        frozenset({'embedding'})
    """
    cls = find_method(name)
    if problems := _problems(cls, name, hyper):
        raise RecipeError(" ".join(problems))
    return cls(setting, **hyper)


def hyper_parameters(name: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their defaults; ``...`` marks one that must be given.

    Example:
        >>> hyper_parameters("kd")
        {'temperature': 4.0, 'projector': False}
    """
    return {key: parameter.default for key, parameter in _parameters(find_method(name)).items()}


def check_hyper(name: str, hyper: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a method's name and hyper-parameters, as sentences; needs no network.

    Example:
        >>> check_hyper("ce", {"label_smooth": 0.1})
        ["ce has no hyper-parameter 'label_smooth'. Did you mean 'label_smoothing'? It takes label_smoothing=0.0."]
    """
    try:
        cls = find_method(name)
    except RecipeError as error:
        return [str(error)]
    return _problems(cls, name, hyper)


def _problems(cls: type[Method], name: str, hyper: Mapping[str, Any]) -> list[str]:
    parameters = _parameters(cls)
    choices = ", ".join(f"{key}={_shown(p.default)}" for key, p in parameters.items()) or "none"
    found = [
        f"{name} has no hyper-parameter {key!r}.{nearest(str(key), parameters)} It takes {choices}."
        for key in hyper
        if key not in parameters and not _takes_any(cls)
    ]
    found += [
        f"{name} needs the hyper-parameter {key!r}: {describe(p.annotation)}."
        for key, p in parameters.items()
        if p.default is ... and key not in hyper
    ]
    found += [
        f"{key} of {name} is {hyper[key]!r}; expected {describe(p.annotation)}."
        for key, p in parameters.items()
        if key in hyper and not fits(hyper[key], p.annotation)
    ]
    return found


def _parameters(cls: type[Method]) -> dict[str, inspect.Parameter]:
    """Everything after ``setting`` in the constructor, annotations resolved and missing defaults as ``...``."""
    try:
        hints = get_type_hints(cls.__init__)
    except NameError:  # a user's class with names that only its type checker sees: its types are taken on trust
        hints = {}
    given = list(inspect.signature(cls).parameters.values())[1:]
    return {
        p.name: p.replace(
            annotation=hints.get(p.name, Any), default=... if p.default is inspect.Parameter.empty else p.default
        )
        for p in given
        if p.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }


def _takes_any(cls: type[Method]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


def _announced() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _by_path(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        module = import_named(module_name)
    except Exception as error:  # a wrong name, or whatever the user's own module does on import
        raise RecipeError(f"The module {module_name!r} of the method {path!r} cannot be imported: {error}.") from error
    if not hasattr(module, attribute):
        raise RecipeError(f"The module {module_name!r} has no {attribute!r}.{nearest(attribute, dir(module))}")
    return getattr(module, attribute)


def _checked(cls: Any, name: str) -> type[Method]:
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise RecipeError(f"{name!r} is no method: expected a subclass of potstill.methods.base.Method.")
    if not isinstance(getattr(cls, "needs", None), Needs):
        raise RecipeError(f"The method {name!r} does not say what it reads: set needs = Needs(...) in its class.")
    if inspect.isabstract(cls):
        raise RecipeError(f"The method {name!r} computes no loss: write its forward(student, teacher, batch).")
    if next(iter(inspect.signature(cls).parameters), None) != "setting":
        raise RecipeError(f"The constructor of the method {name!r} must be __init__(self, setting, *, ...).")
    return cls


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _shown(default: Any) -> str:
    return "(required)" if default is ... else repr(default)
