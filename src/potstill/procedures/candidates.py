"""Which settings of a recipe may make its steps faster: those that it knows and that are not on already."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from potstill.config import Recipe, TeacherConfig
from potstill.data.source import Source
from potstill.data.workers import decoding_workers
from potstill.errors import RecipeError
from potstill.networks.processor import native_bf16
from potstill.procedures.scenes import SCENE_TASKS
from potstill.procedures.speed import resolve_speed
from potstill.training.distributed import Processes

__all__ = [
    "COMPUTED", "TEACHER", "Candidate", "as_a_graph", "of_the_data", "of_the_loop", "of_the_networks", "taught_live",
    "with_value",
]  # fmt: skip

TEACHER, STUDENT = ("teacher",), ("forward", "backward")
COMPUTED = (*TEACHER, *STUDENT, "optimizer")
"""Parts of a step that the networks take."""

_LONG = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PIXEL_BYTES = 7  # of an image in the resident loader while it loads
_MEMORY_SHARE = 4  # a data set may take one part in so many of the memory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting to try.

    Attributes:
        setting: as a command line has it.
        recipe: the recipe with it.
        exchanges: the parts of a step that it changes; those in one tuple are timed together.
        changes: what is computed otherwise, in words; empty where nothing is.
    """

    setting: str
    recipe: Recipe
    exchanges: tuple[tuple[str, ...], ...]
    changes: str = ""


def with_value(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with one value changed; the key has at most one dot.

    Example:
        >>> with_value(Recipe(), "log.every", 9).log.every, with_value(Recipe(), "compile", True).compile
        (9, True)
    """
    section, _, name = key.rpartition(".")
    if not section:
        return recipe.model_copy(update={name: value})
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})


def taught_live(recipe: Recipe) -> bool:
    """Whether the teacher's pass is part of a step."""
    return recipe.teacher is not None and recipe.teacher.store is None


def of_the_networks(recipe: Recipe, processes: Processes, compiled: bool) -> list[Candidate]:
    """Settings of how the two networks compute.

    Args:
        recipe: resolved.
        processes: where it runs.
        compiled: whether what takes minutes to compile is wanted.
    """
    found: list[Candidate] = []
    live = taught_live(recipe)
    if recipe.compile is not True or compiled:  # else each would have to be compiled anew
        if live and recipe.teacher is not None:
            found += _of_the_teacher(recipe, recipe.teacher, processes.device)
        found += _of_both(recipe, processes.device)
    if compiled and recipe.task != "detection":  # whose lists change their lengths
        found += _compiled(recipe)
    return found


def _of_the_teacher(recipe: Recipe, teacher: TeacherConfig, device: torch.device) -> Iterator[Candidate]:
    now = recipe.precision if teacher.precision == "auto" else teacher.precision
    for precision in _precisions(device):
        if precision != now:
            changes = f"the teacher in {_LONG[precision]}, not in {_LONG[now]}"
            other = with_value(recipe, "teacher.precision", precision)
            yield Candidate(f"teacher.precision={precision}", other, (TEACHER,), changes)
    if not teacher.fold:
        yield Candidate("teacher.fold=true", with_value(recipe, "teacher.fold", True), (TEACHER,))


def _of_both(recipe: Recipe, device: torch.device) -> Iterator[Candidate]:
    """What the student's passes depend on, and the teacher's where it follows the run's setting."""
    live = taught_live(recipe)
    follows = live and recipe.teacher is not None and recipe.teacher.precision == "auto"
    for precision in _precisions(device):
        if precision == recipe.precision:
            continue
        setting, other = f"precision={precision}", with_value(recipe, "precision", precision)
        if recipe.teacher is not None and recipe.teacher.precision == "auto" and not live:
            # A store is one of a teacher in this precision.
            setting += f" teacher.precision={recipe.precision}"
            other = with_value(other, "teacher.precision", recipe.precision)
        who = "student and teacher" if follows else "the student"
        changes = f"{who} in {_LONG[precision]}, not in {_LONG[recipe.precision]}"
        yield Candidate(setting, other, (STUDENT, TEACHER) if follows else (STUDENT,), changes)
    other = with_value(recipe, "channels_last", not recipe.channels_last)
    setting = f"channels_last={str(other.channels_last).lower()}"
    yield Candidate(setting, other, (STUDENT, TEACHER) if live else (STUDENT,))


def _compiled(recipe: Recipe) -> Iterator[Candidate]:
    live = taught_live(recipe)
    follows = live and recipe.teacher is not None and recipe.teacher.compile == "auto"
    if recipe.compile is not True:
        other = with_value(recipe, "compile", True)
        yield Candidate("compile=true", other, (STUDENT, TEACHER) if follows else (STUDENT,))
    if live and recipe.teacher is not None and not (recipe.compile if follows else recipe.teacher.compile):
        yield Candidate("teacher.compile=true", with_value(recipe, "teacher.compile", True), (TEACHER,))


def _precisions(device: torch.device) -> list[str]:
    """Those that a processor may gain by; another one's emulation is slower than float32."""
    return ["fp32", *(["bf16"] if native_bf16(device) else []), *(["fp16"] if device.type == "cuda" else [])]


def as_a_graph(recipe: Recipe, processes: Processes) -> Recipe | None:
    """The recipe with each step as one CUDA graph; None where it cannot be one."""
    try:
        return resolve_speed(with_value(recipe, "graph", True), processes, images=1)
    except RecipeError:
        return None


def of_the_loop(recipe: Recipe) -> list[Candidate]:
    """Settings of how often the run looks at itself, where it does so more often than by default."""
    found = []
    for key, now, usual in (
        ("log.every", recipe.log.every, 50),
        ("log.shares", recipe.log.shares or 500, 500),
    ):
        if now < usual:
            found.append(Candidate(f"{key}={usual}", with_value(recipe, key, usual), (("host",),)))
    if recipe.checkpoint.every_steps:
        other = with_value(recipe, "checkpoint.every_steps", 0)
        found.append(Candidate("checkpoint.every_steps=0", other, (("host",),)))
    return found


def of_the_data(recipe: Recipe, source: Source, device: torch.device) -> list[Candidate]:
    """Settings of how the batches are made.

    Args:
        recipe: resolved.
        source: the training images.
        device: where the batches go.
    """
    config, size = recipe.data, recipe.data.size or 0
    if config.loader != "streaming":
        return []
    found = []
    # A store is one of these very pixels; scenes are decoded as they are needed, and in full.
    kept = recipe.task in SCENE_TASKS or (recipe.teacher is not None and recipe.teacher.store is not None)
    if not kept and len(source) * size * size * _PIXEL_BYTES <= _memory(device) / _MEMORY_SHARE:
        resized = f"images are brought to {size} x {size} once, and augmented from there"
        other = with_value(with_value(recipe, "data.loader", "resident"), "data.workers", None)
        changes = "" if source.fixed_size == (size, size) else resized
        found.append(Candidate("data.loader=resident", other, (("data",),), changes))
    if not kept and not config.draft:
        changes = "large JPEGs are decoded at a smaller scale"
        found.append(Candidate("data.draft=true", with_value(recipe, "data.draft", True), (("data",),), changes))
    cores = decoding_workers(most=1 << 20)
    if (decoding_workers() if config.workers is None else config.workers) < cores:
        found.append(Candidate(f"data.workers={cores}", with_value(recipe, "data.workers", cores), (("data",),)))
    return found


def _memory(device: torch.device) -> int:
    """Bytes of the machine's memory; on a GPU of the smaller of the two."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(host, torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else host
