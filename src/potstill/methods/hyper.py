"""Whether a value from a recipe fits the annotation of a hyper-parameter."""

from collections.abc import Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["describe", "fits"]

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def fits(value: Any, annotation: Any) -> bool:
    """Whether the value is of the annotated type, for the types that a recipe can hold; others are taken on trust.

    Numbers are told apart as a reader would: a whole number is a fine ``float``, a bool is neither. A YAML list fits
    a tuple.

    Example:
        >>> fits(3, float), fits(True, int), fits("silu", Literal["relu", "gelu"]), fits([1, 2], tuple[int, ...])
        (True, False, False, True)
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and _items_fit(value, origin, args)
    if _is_mapping(annotation):
        return isinstance(value, Mapping)
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, int | float)
    return isinstance(value, annotation) if annotation in _WORDS else True


def describe(annotation: Any) -> str:
    """The annotation in words, for "expected ...".

    Example:
        >>> describe(Literal["relu", "gelu"]), describe(int | None)
        ("'relu' or 'gelu'", 'a whole number or null')
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(args[0])
    if origin in (Union, UnionType):
        return _or(describe(arg) for arg in args)
    if origin is Literal:
        return _or(repr(arg) for arg in args)
    if origin is list or (origin is tuple and args[-1] is ...):
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return "a list of " + " and ".join(describe(arg) for arg in args)
    if _is_mapping(annotation):
        return "a mapping"
    if annotation is Any:
        return "anything"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _or(choices: Iterable[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _is_mapping(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) in (dict, Mapping)


def _items_fit(value: Collection[Any], origin: Any, args: tuple[Any, ...]) -> bool:
    if origin is list or (len(args) == 2 and args[1] is ...):
        return all(fits(item, args[0]) for item in value)
    return len(value) == len(args) and all(fits(item, arg) for item, arg in zip(value, args, strict=True))
