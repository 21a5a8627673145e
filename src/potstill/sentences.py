"""Sentences for what a typed model refuses: the key, what was got, what was expected."""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from potstill.config import DataConfig
from potstill.errors import nearest

__all__ = ["ROWS", "fields_at", "sentence", "shown"]

# What a row of values must be, by its key's last name.
ROWS = {
    "mean": "three numbers from 0 to 1, like [0.5, 0.5, 0.5]: values are of pixels in 0..1, not 0..255",
    "std": "three numbers above 0 and up to 1, like [0.25, 0.25, 0.25]: values are of pixels in 0..1, not 0..255",
    "scale": "two numbers from 0 to 1, like [0.08, 1]",
    "sizes": "lengths of the shorter side in pixels, like [640, 672, 704, 736, 768, 800]",
    "ratio": "two numbers, like [0.75, 1.33]",
    "betas": "two numbers from 0 to below 1, like [0.9, 0.999]",
    "drops": "parts of the run from 0 to 1, like [0.625, 0.75]: epoch 150 of 240 is 0.625",
    "stage_epochs": "a number of epochs, or one for each stage, like [20, 20, 20]",
    "maps": "a list of layers, like [layer1, layer2]",
    "keep": "a list out of logits, embedding, maps, preacts, blocks and peers, like [logits, embedding]",
    "students": "a list of what differs in each, like [{seed: 1}, {model: resnet20, name: larger}]",
    "track": "a list out of tensorboard, trackio, mlflow and wandb, like [tensorboard]",
    "others": "a list of runs' folders, like [runs/a, runs/b]",
    "peers": "a list of networks, like [resnet20, resnet8]",
    "assistants": "a list of networks, like [resnet56, resnet20]",
}

# What pydantic's kinds of errors expect.
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false"}
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def sentence(root: type[BaseModel], item: Any, raw: dict[str, Any]) -> str:
    """One pydantic error with the key, what was got and what was expected; a validator may say several lines."""
    loc = [str(part) for part in item["loc"]]
    if len(loc) > 1 and (loc[-1] == "bool" or loc[-1].startswith("literal[")):  # either of two kinds: said once
        return f"{'.'.join(loc[:-1])} is {shown(item['input'])}; expected auto, true or false."
    key, kind, got = ".".join(loc), item["type"], shown(item["input"])
    if kind == "extra_forbidden":
        siblings = fields_at(root, loc[:-1])
        return f"unknown key {key!r}.{nearest(loc[-1], siblings) or ' Valid here: ' + ', '.join(siblings) + '.'}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    for end, name in enumerate(loc, start=1):
        if name in ROWS:  # one sentence on the whole row, however many of its values are wrong
            value: Any = raw
            for part in loc[:end]:
                value = value[part]
            return f"{'.'.join(loc[:end])} is {shown(value)}; expected {ROWS[name]}."
    if kind.startswith(("model_", "dict_")):
        return f"{key} is {got}; {_keys_instead(root, loc, item['input'])}."
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"{key} is {got}; expected a number {words} {item['ctx'][limit]}."
    if kind == "string_type":
        in_quotes = f", in quotes like '\"{got}\"'" if isinstance(item["input"], int | float) else ""
        return f"{key} is {got}; expected text{in_quotes}."
    if kind == "literal_error":
        return f"{key} is {got}; expected {item['ctx']['expected']}."
    expected = _KINDS.get(kind.split("_")[0])
    return f"{key} is {got}; {f'expected {expected}' if expected else item['msg'][0].lower() + item['msg'][1:]}."


def shown(value: Any) -> str:
    """A value as a recipe has it: true rather than True."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _keys_instead(root: type[BaseModel], loc: list[str], value: Any) -> str:
    """What to write where a single value stands in the place of keys and values."""
    key = ".".join(loc)
    name: str | None = None
    if key == "objective":
        methods = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        terms = ", ".join(f"{method}: 1" for method in methods) or "ce: 1"
        return f"write the methods with their weights, objective: {{{terms}}}, or objective={{{terms}}} as an override"
    fields = fields_at(root, loc)
    if not fields:
        return f"expected names and values, like {key}: {{name: value}}"
    if isinstance(value, str) and "model" in fields:
        name = "weights" if Path(value).exists() else "model"
    elif isinstance(value, str) and key == "data":
        name = "source" if value in get_args(DataConfig.model_fields["source"].annotation) else "path"
    elif isinstance(value, str) and "name" in fields:
        name = "name"
    if name is None:
        return f"expected keys below it, like {key}.{fields[0]}; valid there: {', '.join(fields)}"
    return f"write {key}: {{{name}: {value}}}, or {key}.{name}={value} as an override"


def fields_at(root: type[BaseModel], loc: list[str]) -> list[str]:
    """The names that a section of the recipe knows."""
    model = root
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
