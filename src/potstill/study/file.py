"""What a study file may say: axes of a grid, each level some of a recipe's keys; typed, an unknown key is an error."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from potstill.errors import RecipeError, nearest
from potstill.recipe import lay_over, read_yaml
from potstill.section import NonNegative, Positive, Section, Seed
from potstill.sentences import sentence

__all__ = ["Paper", "StudyFile", "column_of", "load_study"]


class Paper(Section):
    """Published numbers, shown beside the study's own."""

    source: str = Field(description="which paper and table, as a reader would cite it")
    note: str = Field("", description="what differs between the paper's cells and this study's")
    values: dict[str, dict[str, float]] = Field(
        description="column -> row -> top-1 %, by the study's own names; of a study with one axis only row -> top-1 %"
    )

    @field_validator("values", mode="before")
    @classmethod
    def _one_column_needs_no_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values and not any(isinstance(value, dict) for value in values.values()):
            values = {"": values}
        return {
            _text(column): {_text(row): value for row, value in rows.items()} if isinstance(rows, dict) else rows
            for column, rows in values.items()
        }


class CellKeys(Section):
    """What some combinations of levels have of their own, as weights that were found for one pair of networks."""

    at: dict[str, str] = Field(min_length=1, description="{axis: level, ..}; axes that are not named: every level")
    recipe: dict[str, Any] = Field(description="a recipe's keys, laid over those of the levels")

    @field_validator("at", mode="before")
    @classmethod
    def _levels_are_named_as_in_the_grid(cls, at: Any) -> Any:
        return _by_name(at)


class StudyFile(Section):
    """A grid of runs: every combination of the axes' levels, for every seed."""

    title: str = Field("", description="what the table is called; none: the file's name")
    base: str | None = Field(None, description="a recipe file that every run starts from, beside this file")
    recipe: dict[str, Any] = Field({}, description="a recipe's keys, laid over the base; store: of the stores it makes")
    teachers: dict[str, dict[str, Any]] = Field(
        {},
        description="trained once each: a recipe's keys, laid over base and recipe; or one that is trained already: "
        "{weights: .., model: ..} as a recipe's teacher section",
    )
    grid: dict[str, dict[str, dict[str, Any]]] = Field(
        description="axis -> level -> a recipe's keys; `teacher: NAME` is one of the teachers. Later axes are laid "
        "over earlier ones. A list of values stands for the levels of the key that the axis is called after"
    )
    seeds: tuple[Seed, ...] = Field((10, 20, 30), min_length=1, description="a run of each combination for each")
    skip: tuple[dict[str, str], ...] = Field((), description="combinations to leave out: {axis: level, ..}")
    cells: tuple[CellKeys, ...] = Field((), description="what single combinations have of their own, later ones on top")
    control: dict[str, str] = Field({}, description="{axis: level} that the others are compared with")
    rows: str | None = Field(None, description="the axis of the table's rows; none: the control's, or the last one")
    store: bool = Field(True, description="one store of each teacher's outputs, shared by the runs that can read it")
    report: bool = Field(False, description="a report.html for each run too, beside the study's own")
    paper: Paper | None = Field(None, description="published numbers beside the measured ones")
    pool: str | None = Field(
        None, description="folder of teachers, stores and runs; studies with one pool share what is the same in them. "
        "none: the study's own folder"
    )  # fmt: skip
    run: str | None = Field(None, description="the study's folder; none: runs/studies/ and the file's name")
    workers: Positive | None = Field(None, description="runs at once; none: the machine's GPUs, or its cores")
    on: Literal["local", "ray"] = Field("local", description="this machine, or a Ray cluster")
    address: str | None = Field(None, description="of the Ray cluster; none: this machine's own, or a new one")
    retries: NonNegative = Field(2, description="of a run whose process was lost; one that refuses is not tried again")

    @field_validator("grid", mode="before")
    @classmethod
    def _lists_are_values_of_a_key(cls, grid: Any) -> Any:
        if not isinstance(grid, dict):
            return grid
        made = {}
        for axis, levels in grid.items():
            if isinstance(levels, list):
                levels = [(_text(value), {axis: value}) for value in levels]
            elif isinstance(levels, dict):  # a level that says nothing is the recipe as it is
                levels = [(_text(name), {} if keys is None else keys) for name, keys in levels.items()]
            if isinstance(levels, list):
                if twice := [name for name, count in Counter(name for name, _ in levels).items() if count > 1]:
                    raise ValueError(f"grid.{axis} has the level {twice[0]!r} twice.")
                levels = dict(levels)
            made[_text(axis)] = levels
        return made

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_are_a_list(cls, seeds: Any) -> Any:
        if not isinstance(seeds, list | tuple):
            raise ValueError(f"seeds is {seeds!r}; expected a list of whole numbers, like [10, 20, 30].")
        return seeds

    @field_validator("control", "skip", mode="before")
    @classmethod
    def _levels_are_named_as_in_the_grid(cls, chosen: Any) -> Any:
        return tuple(map(_by_name, chosen)) if isinstance(chosen, list | tuple) else _by_name(chosen)

    @model_validator(mode="after")
    def _all_that_is_named_is_there(self) -> Self:
        if not self.grid or not all(self.grid.values()):
            raise ValueError("grid needs an axis, and each axis a level: grid: {method: {kd: {objective: {..}}}}.")
        if problems := [*self._unknown(), *(self._left_out() or self._unpublished())]:
            raise ValueError("\n".join(problems))
        return self

    @property
    def row_axis(self) -> str:
        """The axis of the table's rows."""
        return self.rows or next(iter(self.control), list(self.grid)[-1])

    def combinations(self) -> Iterator[dict[str, str]]:
        """The grid's combinations of levels, in its order, without those to leave out."""
        for names in itertools.product(*self.grid.values()):
            levels = dict(zip(self.grid, names, strict=True))
            if not any(entry.items() <= levels.items() for entry in self.skip):
                yield levels

    def _unknown(self) -> Iterator[str]:
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds has one twice: {list(self.seeds)}."
        if self.rows is not None and self.rows not in self.grid:
            yield f"rows is {self.rows!r}, which is no axis of the grid.{nearest(self.rows, self.grid)}"
        if len(self.control) > 1:
            yield "control names one level of one axis, like control: {method: alone}."
        if not all(self.skip):
            yield "skip has an entry that names nothing, which would leave out everything; write {axis: level}."
        named = [("control", self.control), *(("skip", entry) for entry in self.skip)]
        for what, chosen in [*named, *(("cells.at", one.at) for one in self.cells)]:
            for axis, level in chosen.items():
                if axis not in self.grid:
                    yield f"{what} names {axis!r}, which is no axis of the grid.{nearest(axis, self.grid)}"
                elif level not in self.grid[axis]:
                    yield f"{what} names {level!r}, which is no level of {axis}.{nearest(level, self.grid[axis])}"

    def _left_out(self) -> list[str]:
        left = list(self.combinations())
        if not left:
            return ["skip leaves no combination of the grid."]
        if not any(self.control.items() <= levels.items() for levels in left):
            return ["skip leaves out the control, so that there is nothing to compare with."]
        for one in self.cells:
            if not any(one.at.items() <= levels.items() for levels in left):
                return [f"skip leaves out all that cells says of {one.at}."]
        return []

    def _unpublished(self) -> Iterator[str]:
        """What ``paper.values`` names and the table does not have."""
        if self.paper is None or self.row_axis not in self.grid:
            return
        columns = {column_of(levels, self.row_axis) for levels in self.combinations()}
        rows = self.grid[self.row_axis]
        for column, values in self.paper.values.items():
            if column not in columns:
                known = nearest(column, columns) or f" They are {', '.join(map(repr, sorted(columns)))}."
                yield f"paper.values has the column {column!r}, which the study does not have.{known}"
            for row in values:
                if row not in rows:
                    yield f"paper.values has the row {row!r}, which is no level of {self.row_axis}.{nearest(row, rows)}"


def column_of(levels: Mapping[str, str], row_axis: str) -> str:
    """The name of a combination's column in the table: its levels but for the rows' axis.

    Example:
        >>> column_of({"pair": "large to small", "method": "kd", "epochs": "8"}, "method")
        'large to small, 8'
    """
    return ", ".join(level for axis, level in levels.items() if axis != row_axis)


def load_study(path: Path, values: dict[str, Any] | None = None, overrides: Iterable[str] = ()) -> StudyFile:
    """A checked study file.

    Args:
        path: YAML.
        values: in the place of its top-level keys.
        overrides: ``key=value`` laid over them, dots go down a level (the command line's ``study.KEY=VALUE``).

    Raises:
        RecipeError: for a file that is none, and for all its mistakes at once.
    """
    read = read_yaml(path, "study", " See studies/ for some.")
    # YAML 1.1 takes the word `on` for true, also where it is a key.
    raw = {"on" if isinstance(key, bool) and key else key: value for key, value in read.items()} | (values or {})
    for override in overrides:
        lay_over(raw, override)
    try:
        return StudyFile.model_validate(raw)
    except ValidationError as error:
        problems = [line for item in error.errors() for line in sentence(StudyFile, item, raw).splitlines()]
    problems = list(dict.fromkeys(problems))
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    raise RecipeError("\n  ".join([f"{count} in {path}:", *problems]))


def _text(value: Any) -> str:
    """The name of a level that is called after its value, as YAML writes it on one line."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("\n...").strip()


def _by_name(chosen: Any) -> Any:
    """Levels of axes as the grid calls them, where they are written as the values that they are called after."""
    if not isinstance(chosen, dict):
        return chosen
    plain = (str, int, float, bool)
    return {_text(axis): _text(level) if isinstance(level, plain) else level for axis, level in chosen.items()}
