"""The command that says where a run's time goes: profile."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.arguments import Arguments, Json, read_recipe
from potstill.cli.console import is_main_process, open_console
from potstill.cli.output import only_json, print_json
from potstill.cli.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.procedures.profiling import Profile

__all__ = ["profile"]


def profile(
    arguments: Arguments = None,
    steps: Annotated[int, typer.Option("--steps", help="How many steps to time, at most; five at least.")] = 200,
    seconds: Annotated[float, typer.Option("--seconds", help="For how long to time them, at most.")] = 60.0,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also try what has to be compiled, which takes minutes.")
    ] = False,
    json: Json = False,
) -> None:
    """Time some steps of a recipe's run, and say which part takes the most and which setting would help.

    It trains in a temporary folder; the recipe's own is left alone, finished or not.
    """
    recipe = read_recipe(arguments)
    with only_json(json):
        console = open_console(json)
        from potstill.procedures.profiling import profile as profile_recipe
        from potstill.training.distributed import joined

        with joined(recipe.device) as processes, _leaving_nothing():
            found = profile_recipe(recipe, processes, steps, seconds, compile)
    if not is_main_process():
        return
    if json:
        print_json(_plain(found))
    else:
        _show(found, console)


@contextlib.contextmanager
def _leaving_nothing() -> Iterator[None]:
    """End by SIGTERM as by an error, so that the temporary folder goes too; nothing is to be saved here."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # outside the main thread Python takes no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(found: "Profile", console: "Console") -> None:
    from potstill.procedures.advice import duration, milliseconds

    step, shares = found.step, found.step.shares
    what = found.student if found.teacher is None else f"{found.student} taught by {found.teacher}"
    where = found.device if found.device != "cpu" else f"cpu with {_count(found.threads, 'thread')}"
    rows = [(part, f"{ms:.2f}", f"{100 * shares[part]:.1f}") for part, ms in step.parts.items() if ms]
    columns = ["part of a step", ">ms", ">share %"]
    console.print(f"Where the time of a step goes: {what}, on {where}", soft_wrap=True)
    console.print(plain_table(columns, [*rows, ("all", f"{step.ms:.2f}", "100.0")]))
    if found.graph_ms is not None:
        console.print(f"As one CUDA graph, which it is in the run, a step takes {milliseconds(found.graph_ms)}.")
    console.print(
        f"{found.steps} steps of {found.batch_size} images were timed, the middle half of them between "
        f"{milliseconds(step.low)} and {milliseconds(step.high)}: {found.images_per_second:,.0f} images/s. "
        f"The run, {_count(found.epochs, 'epoch')} of {_count(found.epoch_steps, 'step')}, takes "
        f"{duration(3600 * found.hours)} with its evaluations.",
        soft_wrap=True,
    )
    if found.tried:
        tried = [
            (one.trial.setting, f"{one.step_ms:.2f}", f"{one.low:.2f} to {one.high:.2f}", f"{one.times:.2f}")
            for one in found.tried
        ]
        console.print(plain_table(["setting tried", ">step in ms", ">quartiles", ">times as fast"], tried))
    for note in found.notes:
        console.print(note, soft_wrap=True)
    for sentence in found.sentences:
        console.print(sentence, soft_wrap=True)


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _plain(found: "Profile") -> dict[str, Any]:
    """The profile as JSON has it; docs/profiling.md says what each key is."""
    step, shares = found.step, found.step.shares
    image = dict(zip(("low", "median", "high"), found.twice.ratios(), strict=True)) if found.twice else None
    return {
        "student": found.student,
        "teacher": found.teacher,
        "phase": found.phase,
        "device": found.device,
        "threads": found.threads,
        "batch_size": found.batch_size,
        "steps": found.steps,
        "step": {
            "ms": step.ms,
            "low": step.low,
            "high": step.high,
            "wall_ms": found.wall_ms,
            "graph_ms": found.graph_ms,
            "images": step.images,
            "images_per_second": found.images_per_second,
            "bottleneck": step.bottleneck,
            "host_busy": step.host_busy,
            "parts": {part: {"ms": ms, "share": shares[part]} for part, ms in step.parts.items()},
        },
        "run": {
            "epochs": found.epochs,
            "epoch_steps": found.epoch_steps,
            "evaluation_seconds": found.evaluation_seconds,
            "once_seconds": found.once_seconds,
            "hours": found.hours,
        },
        "tried": [
            {
                "setting": one.trial.setting,
                "step_ms": one.step_ms,
                "low": one.low,
                "high": one.high,
                "times": one.times,
                "advised": one.advised,
                "changes": one.trial.changes or None,
                "once": one.trial.once or None,
                "once_seconds": one.trial.once_seconds,
                "pays_from": one.pays_from,
                "sentence": one.sentence,
            }
            for one in found.tried
        ],
        "twice_the_batch": image,
        "sentences": list(found.sentences),
        "notes": list(found.notes),
    }
