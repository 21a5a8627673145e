"""What a race may say: a recipe's keys, the candidates, and how they are halved; an unknown key is an error."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from potstill.config import Recipe
from potstill.errors import RecipeError, nearest
from potstill.race.entries import Entry, make_entries
from potstill.recipe import lay_over, parse_recipe, read_yaml
from potstill.section import Positive, Section
from potstill.sentences import sentence

__all__ = ["Race", "RaceConfig", "load_race"]


class RaceConfig(Section):
    """How candidates are halved."""

    factor: Annotated[int, Field(ge=2)] = Field(
        3, description="one of so many candidates goes on from a rung; the next rung lies so many times as far"
    )
    min_epochs: Positive | None = Field(
        None, description="epochs up to the first rung; none: so many that one candidate is left for the last stretch"
    )
    store: bool | None = Field(
        None, description="keep the teacher's outputs in the race's folder, for all candidates; none: where that can be"
    )


class RaceFile(Section):
    """The keys that a race has beside a recipe's."""

    candidates: tuple[Any, ...] = Field(
        (), description="what differs in each from the recipe: {model: resnet8, objective: {..}, name: ..}, or a model"
    )
    students: tuple[Any, ...] = Field((), description="students to take with each of the methods, likewise")
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="name -> an objective, or several of a candidate's keys, to take with each of the students"
    )
    race: RaceConfig = RaceConfig()

    @field_validator("candidates", "students", mode="before")
    @classmethod
    def _are_rows(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str | dict) for one in value):
            raise ValueError(
                f"{info.field_name} is {value!r}; expected a list of models or of what differs in each, like "
                "[resnet8, {model: resnet14, objective: {ce: 1, kd: 1}, name: kd}]."
            )
        return value


@dataclass(frozen=True, slots=True)
class Race:
    """A race, checked as far as it can be without data and networks.

    Attributes:
        recipe: what all candidates have in common.
        entries: the candidates.
        settings: how they are halved.
        raw: the keys and values that all this was made of.
    """

    recipe: Recipe
    entries: tuple[Entry, ...]
    settings: RaceConfig
    raw: dict[str, Any]


def load_race(path: Path | None = None, overrides: Iterable[str] = ()) -> Race:
    """A race from a file (or none) with ``key=value`` laid over it.

    Args:
        path: YAML.
        overrides: as of :func:`potstill.recipe.load_recipe`; also of ``candidates``, ``students``, ``methods`` and
            ``race.factor``.

    Raises:
        RecipeError: for a file that is none, all mistakes in its keys at once, or what cannot be raced.

    Example:
        >>> race = load_race(None, ["teacher.weights=runs/large", "students=[resnet8, resnet20]", "epochs=18",
        ...     "methods={alone: {ce: 1}, kd: {ce: 1, kd: 1}}"])
        >>> [entry.name for entry in race.entries]
        ['resnet8-alone', 'resnet8-kd', 'resnet20-alone', 'resnet20-kd']
    """
    raw = read_yaml(path, "race", " races/digits.yaml is one to start from.") if path is not None else {}
    for override in overrides:
        lay_over(raw, override)
    own = {key: value for key, value in raw.items() if key in RaceFile.model_fields}
    rest = {key: value for key, value in raw.items() if key not in RaceFile.model_fields}
    keys = [*Recipe.model_fields, *RaceFile.model_fields]
    problems = [f"unknown key {key!r}.{nearest(str(key), keys)}" for key in rest if key not in keys]
    file = RaceFile()
    try:
        file = RaceFile.model_validate(own)
    except ValidationError as error:
        problems += [line for item in error.errors() for line in sentence(RaceFile, item, own).splitlines()]
    where = str(path or "the race")
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise RecipeError("\n  ".join([f"{count} in {where}:", *dict.fromkeys(problems)]))
    recipe = parse_recipe(rest, where)
    _check(recipe, file.race)
    entries = make_entries(recipe, file.candidates, file.students, file.methods)
    return Race(recipe, entries, file.race, raw)


def _check(recipe: Recipe, settings: RaceConfig) -> None:
    if recipe.teacher is None:
        raise RecipeError("A race is run with a teacher: give teacher.weights=RUN (a trained run's folder).")
    if recipe.control:
        raise RecipeError(
            "control=true belongs to `potstill distill`; in a race the control is a candidate, {objective: {ce: 1}}."
        )
    if recipe.procedure.name == "assistants":
        raise RecipeError("procedure.name=assistants trains several networks one after the other; it cannot be raced.")
    first = settings.min_epochs or 1
    if first >= recipe.epochs:
        raise RecipeError(
            f"The first rung, at epoch {first}, must lie before the end, and epochs={recipe.epochs}: give more epochs, "
            "or a smaller race.min_epochs."
        )
