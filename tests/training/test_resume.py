"""A run killed at any instant ends as one that was not: byte for byte, in real processes with a real SIGKILL."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

# A fresh process that already holds the imports: each life of the run starts in milliseconds, as a process of its own.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["potstill.procedures.run", "potstill.cli", "sklearn.datasets", "timm"])

RECIPE = [
    "student.model=resnet8", "data.source=digits", "data.size=8", "epochs=3", "batch_size=64", "accumulate=2",
    "ema=0.9", "data.mixup=0.2", "optimizer.lr=0.05", "log.every=1", "log.shares=7", "checkpoint.every_steps=4",
]  # fmt: skip
STEPS = 3 * 23


def potstill(arguments: list[str], sabotage: Callable[[], None] | None = None) -> None:
    """What a child process runs: the command itself."""
    torch.set_num_threads(1)
    os.setsid()
    log = Path(arguments[-1].removeprefix("run=")).with_suffix(".log")
    sys.stdout = sys.stderr = open(log, "a")  # noqa: SIM115 - for the life of the process
    if sabotage is not None:
        sabotage()
    sys.argv = ["potstill", *arguments]
    from potstill.cli import main

    main()


def start(arguments: list[str], sabotage: Callable[[], None] | None = None) -> multiprocessing.process.BaseProcess:
    process = FORKSERVER.Process(target=potstill, args=(arguments, sabotage))
    process.start()
    return process


def finish(arguments: list[str]) -> None:
    process = start(arguments)
    process.join(120)
    assert process.exitcode == 0, Path(arguments[-1].removeprefix("run=")).with_suffix(".log").read_text()


def die_half_way_through_a_checkpoint() -> None:
    """The third checkpoint of this life is cut short: half its bytes, then SIGKILL."""
    save, count = torch.save, iter(range(1, 100))

    def half(state: object, file: BinaryIO) -> None:
        save(state, file)
        if next(count) == 3:
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def die_before_the_rename() -> None:
    """The second checkpoint is written whole and never gets its name."""
    replace, count = os.replace, iter(range(1, 100))

    def never(source: Path, target: Path) -> None:
        if str(target).endswith(".pt") and next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = never


def die_after_the_rename() -> None:
    """The second checkpoint has its name; the oldest one is still there."""
    replace, count = os.replace, iter(range(1, 100))

    def then(source: Path, target: Path) -> None:
        replace(source, target)
        if str(target).endswith(".pt") and next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = then


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs, and a teacher for it."""
    base = tmp_path_factory.mktemp("undisturbed")
    finish(["train", *RECIPE, "epochs=1", "accumulate=1", f"run={base / 'teacher'}"])
    finish(["distill", *RECIPE, f"teacher.weights={base / 'teacher'}", f"run={base / 'run'}"])
    return base


def test_killed_at_random_moments_it_ends_byte_for_byte_the_same(undisturbed: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    arguments = ["distill", *RECIPE, f"teacher.weights={undisturbed / 'teacher'}", f"run={tmp_path / 'run'}"]
    steps = tmp_path / "run" / "steps.jsonl"
    kills = 0
    for sabotage in (die_half_way_through_a_checkpoint, die_before_the_rename, die_after_the_rename):
        process = start(arguments, sabotage)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{sabotage.__name__} did not strike (seed {seed})"
        kills += 1
    while kills < 11:
        assert lines(steps) < STEPS - 2, f"the run ended before it was killed often enough (seed {seed})"
        progress, process = Progress(steps), start(arguments)
        # Some steps beyond what was reached (a resumed run first takes the steps since its checkpoint again) ..
        target, deadline = chance.randint(1, 4), time.monotonic() + 60
        while progress.rows() < target and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)  # .. and then anywhere inside a step, a log line, or a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"seed {seed}"
        kills += 1
    finish(arguments)
    for name in ("student.safetensors", "student.json"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / "run" / name).read_bytes(), f"seed {seed}"
    ours, theirs = (numbers(folder / "run" / "metrics.csv") for folder in (tmp_path, undisturbed))
    assert ours == theirs
    assert [step for step, _ in losses(steps)] == list(range(1, STEPS + 1))
    assert losses(steps) == losses(undisturbed / "run" / "steps.jsonl")


def test_sigterm_saves_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    arguments = ["distill", *RECIPE, f"teacher.weights={undisturbed / 'teacher'}", f"run={tmp_path / 'run'}"]
    process = start(arguments)
    deadline = time.monotonic() + 60
    while lines(tmp_path / "run" / "steps.jsonl") < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "student.safetensors").exists()
    reached = lines(tmp_path / "run" / "steps.jsonl")
    newest = max(int(p.stem.removeprefix("step-")) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == reached  # the very last step is saved, not the last regular checkpoint
    finish(["distill", "--resume", *arguments[1:]])
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == (
        undisturbed / "run" / "student.safetensors"
    ).read_bytes()


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


class Progress:
    """How many rows this life of a run has written, after it cut back what it takes again."""

    def __init__(self, path: Path) -> None:
        self.path, self.base = path, lines(path)

    def rows(self) -> int:
        now = lines(self.path)
        self.base = min(self.base, now)
        return now - self.base


def losses(path: Path) -> list[tuple[int, list[float]]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    times = {"steps_per_second", "ms"}
    return [(row["step"], [value for key, value in row.items() if key not in times]) for row in rows]


def numbers(path: Path) -> list[list[str]]:
    """A metrics file without its times."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    times = rows[0].index("seconds")
    return [row[:times] + row[times + 1 :] for row in rows]
