"""A study's runs, worked out before anything starts: which there are, what each waits for, and where it goes."""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.config import Recipe, TeacherConfig
from potstill.errors import RecipeError, nearest
from potstill.recipe import parse_recipe, read_yaml
from potstill.study.file import StudyFile
from potstill.study.laying import NAME, laid, overridden
from potstill.study.naming import digest, made_of, slug
from potstill.study.storing import Drawn, building, grouped, reading

__all__ = ["Cell", "Job", "Plan", "plan_study"]

# Keys of a recipe that a study has its own word for.
_OF_THE_STUDY = {
    "seed": "every combination is run with each of the study's seeds; give seeds: [10, 20]",
    "run": "each run gets a folder of its own; the study's is run: FOLDER, in the study file's first level",
    "students": "a study runs each student by itself; make them the levels of an axis",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do, in a process of its own.

    Attributes:
        name: unique within the study; for people too.
        kind: a run, or a teacher's store.
        recipe: of the run, or of the run that reads the most views of the store.
        folder: where it ends up: the run's, or the store's.
        after: names of the jobs that come first.
    """

    name: str
    kind: Literal["run", "store"]
    recipe: Recipe
    folder: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid.

    Attributes:
        levels: the level of each axis.
        seed: the run's.
        job: what makes it.
        teacher: what its teacher is called; None without one.
    """

    levels: Mapping[str, str]
    seed: int
    job: str
    teacher: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a study does.

    Attributes:
        name: of the study.
        file: what it was made of.
        folder: the study's.
        cells: in the grid's order.
        jobs: by name; teachers first, then stores, then runs. One job may be several cells', and other studies'.
        teachers: the folder or the weights of each, by its name in the file.
    """

    name: str
    file: StudyFile
    folder: Path
    cells: tuple[Cell, ...]
    jobs: Mapping[str, Job]
    teachers: Mapping[str, str]


def plan_study(path: Path, file: StudyFile, overrides: Iterable[str] = ()) -> Plan:
    """The runs that a study file means.

    Args:
        path: of the file; its ``base`` is beside it, and the study is called after it.
        file: checked.
        overrides: ``key=value`` laid over the recipe of every run; what the grid and the teachers say themselves stays.

    Raises:
        RecipeError: for every mistake in the recipe of any run, all at once.
    """
    name = path.stem
    folder = Path(file.run or f"runs/studies/{name}")
    maker = _Maker(path, file, Path(file.pool) if file.pool else folder, list(overrides))
    cells = maker.cells()
    maker.raise_problems()
    waited_for = {other for job in maker.jobs.values() for other in job.after}
    ranks = {name: 1 if job.kind == "store" else 2 * (name not in waited_for) for name, job in maker.jobs.items()}
    jobs = {name: maker.jobs[name] for name in sorted(ranks, key=ranks.__getitem__)}
    return Plan(name, file, folder, cells, jobs, maker.teachers)


class _Maker:
    """Makes the jobs of a file, and collects what is wrong with them."""

    def __init__(self, path: Path, file: StudyFile, pool: Path, overrides: list[str]) -> None:
        self.path, self.file, self.pool = path, file, pool
        self.jobs: dict[str, Job] = {}
        self.teachers: dict[str, str] = {}
        self.problems: dict[str, list[str]] = {}
        self._by_content: dict[str, str] = {}
        self._found: dict[str, tuple[dict[str, Any], tuple[str, ...]] | None] = {}
        self._looking_at: list[str] = []
        self._rooms: dict[str, list[str]] = {}
        base = read_yaml(path.parent / file.base) if file.base else {}
        raw = laid(laid({}, base), file.recipe)
        for override in overrides:
            if override.startswith(("seed=", "run=", "students=")):
                self._problem(f"{override}: {_OF_THE_STUDY[override.partition('=')[0]]}.", "the command line")
            else:
                raw = overridden(raw, override)
        for key in _OF_THE_STUDY.keys() & {"run", "students"}:  # a base may be somebody's recipe for one run
            raw.pop(key, None)
        below: dict[str, Any] = {} if file.report else {"log": {"report": False}}
        if file.store:  # every run sees the images that the stores hold, the control too: methods differ, images do not
            below = laid(below, {"data.view_seed": 0})
        self.raw = laid(below, raw)
        self._look_at_names()

    def cells(self) -> tuple[Cell, ...]:
        """All cells, with their jobs made."""
        drawn = [cell for levels in self.file.combinations() for cell in self._draw(levels)]
        if self.file.store and not self.problems:
            self._make_stores(drawn)
        if self.problems:
            return ()
        return tuple(Cell(c.levels, c.recipe.seed, self._add(c.label, c.recipe, c.after), c.teacher) for c in drawn)

    def raise_problems(self) -> None:
        """All mistakes in one error, each once, with the first run that has it and how many do."""
        if not self.problems:
            return
        lines = []
        for problem, labels in self.problems.items():
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            lines.append(f"{labels[0]}{more}: {problem}")
        raise RecipeError("\n  ".join([f"The study {self.path} cannot run:", *lines]))

    def _look_at_names(self) -> None:
        """Keys that are not a level's to say, and teachers that nobody learns from."""
        levels = {f"{axis} {name}": keys for axis, names in self.file.grid.items() for name, keys in names.items()}
        teachers = {f"teacher {name}": keys for name, keys in self.file.teachers.items()}
        cells = {f"cells {one.at}": one.recipe for one in self.file.cells}
        for where, keys in {"recipe": self.file.recipe, **levels, **cells, **teachers}.items():
            for key in keys:
                if key in _OF_THE_STUDY and not (key == "seed" and where in teachers):
                    self._problem(f"{key}: {_OF_THE_STUDY[key]}.", where)
        said = [
            laid({}, keys).get("teacher") for keys in [self.raw, *levels.values(), *cells.values(), *teachers.values()]
        ]
        named = {str(one[NAME]) for one in said if isinstance(one, dict) and NAME in one}
        for name in self.file.teachers.keys() - named:
            self._problem(f"nobody learns from it; say teacher: {name} in a level, or take it out.", f"teacher {name}")

    def _draw(self, levels: Mapping[str, str]) -> Iterator[Drawn]:
        """A combination's cells, one for each seed."""
        label = "-".join(levels.values())
        keys = [self.file.grid[axis][level] for axis, level in levels.items()]
        keys += [one.recipe for one in self.file.cells if one.at.items() <= levels.items()]
        raw = functools.reduce(laid, keys, self.raw)
        raw["seed"] = self.file.seeds[0]
        taught = self._taught(raw, label)
        teacher, own_store = raw.get("teacher"), False
        if isinstance(teacher, dict):
            own_store = teacher.get("store") is not None
        # Of the stores that the study makes; a run that reads none of them has nothing to say of it.
        store = raw.pop("store", {}) if self.file.store and not own_store else {}
        recipe = self._parsed(raw, label)
        if recipe is None or taught is None:
            return
        if recipe.control:
            problem = "control=true trains the student alone beside every run; make that a level, and name it in"
            self._problem(f"{problem} the study's control.", label)
        for seed in self.file.seeds:
            own = recipe.model_copy(update={"seed": seed})
            yield Drawn(levels, f"{label}-seed {seed}", raw | {"seed": seed}, store, own, *taught)

    def _taught(self, raw: dict[str, Any], label: str) -> tuple[tuple[str, ...], str | None] | None:
        """Put a teacher that is named in its place; what to wait for and its name, or None where there is a mistake."""
        said = raw.get("teacher")
        if not isinstance(said, dict):
            return (), None
        if NAME not in said:
            return (), Path(str(said.get("weights") or said.get("model"))).name
        name = str(said[NAME])
        if (found := self._teacher(name, label)) is None:
            raw["teacher"] = {"weights": name}  # what else is wrong with the recipe is looked at all the same
            return None
        section, after = found
        raw["teacher"] = laid({"teacher": section}, {"teacher": {k: v for k, v in said.items() if k != NAME}})[
            "teacher"
        ]
        return after, name

    def _teacher(self, name: str, label: str) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """A teacher's section, and the jobs that make it."""
        if name not in self.file.teachers:
            self._problem(f"the teacher {name!r} is not among teachers:.{nearest(name, self.file.teachers)}", label)
            return None
        if name in self._looking_at:
            self._problem(f"it learns from itself: {' from '.join([*self._looking_at, name])}.", f"teacher {name}")
            return None
        if name not in self._found:
            self._looking_at.append(name)
            self._found[name] = self._made(name, self.file.teachers[name])
            self._looking_at.pop()
        return self._found[name]

    def _made(self, name: str, own: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        label = f"teacher {name}"
        if own.keys() & {"weights", "pretrained"}:  # trained already
            section = laid({}, {"teacher": own})["teacher"]
            known = TeacherConfig.model_fields
            for key in section.keys() - known.keys():
                self._problem(
                    f"it is trained already, and {key} is no key of such a teacher.{nearest(key, known)}", label
                )
            self.teachers[name] = str(own.get("weights") or own.get("model"))
            return (section, ()) if section.keys() <= known.keys() else None
        start: dict[str, Any] = {"teacher": None, "store": {}, "objective": {} if "teacher" in own else {"ce": 1.0}}
        raw = laid(self.raw | start, own)
        taught = self._taught(raw, label)
        recipe = self._parsed(raw, label) if taught is not None else None
        if taught is None or recipe is None:
            return None
        job = self._add(label, recipe, taught[0], "teachers")
        self.teachers[name] = str(self.jobs[job].folder)
        return {"weights": str(self.jobs[job].folder)}, (job,)

    def _make_stores(self, drawn: list[Drawn]) -> None:
        """Let the cells that can learn from a store do so."""
        for shared in grouped(drawn, self.pool, self._parsed):
            name = self._unused(f"store of {shared.first.teacher} {shared.of[:4]}", shared.of)
            folder = self.pool / "stores" / f"{slug(shared.first.teacher or 'teacher')}-{shared.of}"
            for cell in shared.cells:
                if (recipe := reading(cell, folder, self._parsed)) is not None:
                    after, cell.recipe, cell.after = cell.after, recipe, (*cell.after, name)
                    if cell is shared.first:
                        self.jobs[name] = Job(name, "store", building(recipe), folder, after)

    def _add(self, label: str, recipe: Recipe, after: tuple[str, ...], room: str = "runs") -> str:
        """The job of a recipe: the one that is there already where the recipe is the same."""
        content = json.dumps(made := made_of(recipe, self.pool), sort_keys=True)
        if content in self._by_content:
            return self._by_content[content]
        of = digest(made)
        folder = self.pool / room
        same = [name for name in self._there(room) if name.endswith(f"-{of}")]  # whatever another study called it
        place = folder / (same[0] if same else f"{slug(label)}-{of}")
        name = self._by_content[content] = self._unused(label, of)
        self.jobs[name] = Job(name, "run", recipe.model_copy(update={"run": str(place)}), place, after)
        return name

    def _there(self, room: str) -> list[str]:
        if room not in self._rooms:
            folder = self.pool / room
            self._rooms[room] = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return self._rooms[room]

    def _unused(self, name: str, of: str) -> str:
        """The name, or one like it where there is such a job already."""
        return next(one for one in (name, f"{name} {of[:4]}", f"{name} {of}") if one not in self.jobs)

    def _parsed(self, raw: dict[str, Any], label: str) -> Recipe | None:
        try:
            return parse_recipe(raw)
        except RecipeError as error:
            lines = re.sub(r"^\d+ mistakes? in the recipe:\s*", "", str(error)).splitlines()
        for line in lines:
            self._problem(line.strip(), label)
        return None

    def _problem(self, problem: str, label: str) -> None:
        labels = self.problems.setdefault(problem, [])
        if label not in labels:
            labels.append(label)
