"""What every section of a recipe is held to: unknown keys, numbers that are none, values that nothing reads."""

import json
from types import NoneType
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["Beta", "Deviations", "Fraction", "Mean", "NonNegative", "Positive", "Section", "Seed", "unread"]

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Mean = tuple[Fraction, Fraction, Fraction]  # of pixels in 0..1
Deviation = Annotated[float, Field(gt=0.0, le=1.0)]
Deviations = tuple[Deviation, Deviation, Deviation]

# Keys that only some values of another key of their section read: key -> (the other key, those values).
_READ_BY = {
    "optimizer.momentum": ("name", ("sgd",)),
    "optimizer.nesterov": ("name", ("sgd",)),
    "optimizer.betas": ("name", ("adamw",)),
    "schedule.drops": ("name", ("step",)),
    "schedule.factor": ("name", ("step",)),
    "schedule.final": ("name", ("cosine", "onecycle")),
    "data.padding": ("crop", ("pad",)),
    "data.scale": ("crop", ("resized",)),
    "data.ratio": ("crop", ("resized",)),
    "data.workers": ("loader", ("streaming",)),
    "data.order": ("loader", ("streaming",)),
    "data.draft": ("loader", ("streaming",)),
    "procedure.stage_epochs": ("name", ("stagewise", "hint")),
    "procedure.pretrain_epochs": ("name", ("joint",)),
    "procedure.peers": ("name", ("mutual",)),
    "procedure.assistants": ("name", ("assistants",)),
    "procedure.dense": ("name", ("assistants",)),
    "procedure.adapter": ("name", ("stagewise",)),
    "procedure.stem": ("name", ("stagewise",)),
    "procedure.finetune": ("name", ("stagewise",)),
}


class Section(BaseModel):
    """A section, frozen; every value is checked when it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation) - {NoneType}
        if kinds and kinds <= {int, float}:
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool | str):  # pydantic would take true for 1 and '3' for 3
                    kind = "whole number" if kinds == {int} else "number"
                    got = "text" if isinstance(one, str) else "true or false"
                    raise PydanticCustomError("number", "expected a {kind}, not {got}", {"kind": kind, "got": got})
        return value

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        name = type(self).__name__.removesuffix("Config").lower()
        if name != "data" and (problems := unread(name, self)):  # of data that is known once "auto" is said
            raise ValueError("\n".join(problems))
        return self


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field's type is made of: of ``tuple[float, ...] | None`` float and None's."""
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_args(part)]
    return {kind for part in parts for kind in _kinds(part)} if parts else {annotation}


def unread(name: str, section: BaseModel) -> list[str]:
    """A sentence for each value of a section that differs from its default and that nothing reads.

    Args:
        name: the section's name in a recipe.
        section: with what is left to "auto" said, as far as it decides over other keys.

    Example:
        >>> from potstill.config import DataConfig
        >>> unread("data", DataConfig(crop="none", loader="resident", padding=2))
        ['data.padding=2 does nothing with data.crop=none, only with pad. Leave it out, or change data.crop.']
    """
    found = []
    for key, (option, readers) in _READ_BY.items():
        part, _, field = key.partition(".")
        if part != name or getattr(section, option) in readers:
            continue
        value = getattr(section, field)
        if value != type(section).model_fields[field].default:
            found.append(
                f"{key}={json.dumps(value)} does nothing with {name}.{option}={getattr(section, option)}, only with "
                f"{' and '.join(readers)}. Leave it out, or change {name}.{option}."
            )
    return found
