"""The command ``potstill race``, as people and scripts call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.headline import HEADLINES

# Three to epoch 1, two to epoch 2, one to epoch 4; three steps an epoch.
RACE = (
    "data.val_fraction=0.9", "data.size=16", "device=cpu", "schedule.name=cosine", "epochs=4", "race.factor=2",
    "students=[resnet8]", "methods={alone: {ce: 1}, kd: {ce: 1, kd: 1}}", "candidates=[{model: resnet14, name: deep}]",
    "log.report=false",
)  # fmt: skip
NAMES = {"resnet8-alone", "resnet8-kd", "deep"}


def test_a_pipe_gets_plain_lines_and_a_table(potstill, teacher_run, tmp_path):
    folder = tmp_path / "race"
    result = potstill("race", *RACE, f"teacher.weights={teacher_run}", f"run={folder}")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert (
        "3 candidates: 3 to epoch 1, 2 to epoch 2, 1 to epoch 4. That is 7 of the 12 epochs of training them all."
        in lines
    )
    assert any(line.startswith("resnet8-kd  epoch 1/4  loss ") and "top-1" in line for line in lines)
    head = next(line for line in lines if "top-1 % at 1" in line)
    assert [f"top-1 % at {epoch}" in head for epoch in (1, 2, 4)] == [True] * 3
    table = [line.split() for line in lines if "MiB" in line]
    assert {row[1] for row in table} == NAMES
    assert [" ".join(row[3:6]) for row in table] == ["4 of 4", "2 of 4", "1 of 4"]
    assert "7 epochs were trained, 58% of the 12 of all candidates to the end." in lines
    assert any(
        line.startswith("The candidates were chosen by their accuracy on the validation images") for line in lines
    )
    assert f"Everything is in {folder}. Next: potstill export {folder / table[0][1]}" in lines
    assert "\x1b" not in result.stdout

    again = potstill("race", str(folder), "--json")  # the folder stands for what was raced in it
    assert again.exit_code == 0, again.output
    record = json.loads(again.stdout)
    assert record["folder"] == str(folder)
    assert record["winner"] == table[0][1]
    assert record["epochs"] == {"spent": 7, "full": 12}
    assert {"rank", "name", "folder", "top1", "parameters", "macs", "latency_ms", "bytes", "front"} <= set(
        record["candidates"][0]
    )
    assert f"{table[0][1]}  at epoch 4  top-1 " in again.stderr
    exported = potstill("export", str(folder / record["winner"]), "--format", "safetensors")
    assert exported.exit_code == 0, exported.output


def test_a_terminal_gets_a_table_that_lives(teacher_run, tmp_path, monkeypatch):
    import io

    from rich.console import Console

    from potstill.cli.race_board import Board
    from potstill.race.file import load_race
    from potstill.race.run import run_race
    from potstill.training.distributed import Processes, choose_device
    from potstill.training.interrupts import Interrupt

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, highlight=False)
    race = load_race(None, [*RACE, f"teacher.weights={teacher_run}"])
    with Board(console, race.recipe.epochs, HEADLINES[race.recipe.task]) as board:
        record = run_race(race, tmp_path / "race", Processes(choose_device("cpu")), Interrupt(), board)
        board._live.refresh()
    assert [one.name for one in board.standings] == [one["name"] for one in record["candidates"]]
    shown = screen.getvalue()
    assert "top-1 % at 4" in shown
    assert all(name in shown for name in NAMES)
    assert "loss" not in shown
    assert (tmp_path / "race" / "deep" / "metrics.csv").exists()
    assert (tmp_path / "race" / "deep" / "steps.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["none.yaml"], ["There is no race file none.yaml."]),
        (["."], [". is no race's folder: it has no race.yaml"]),
        (["candidates=[resnet8, resnet14]"], ["A race is run with a teacher"]),
        (["teacher.weights=x", "candidates=[resnet8, resnet14]", "epochs=9"], ["no model is named"]),
        (["teacher.weights=x", "student.model=resnet8"], ["A race needs two candidates or more"]),
        (["teacher.weights=x", "candidats=[resnet8]", "races.factor=2"], ["2 mistakes", "'candidates'", "'race'"]),
        (["--run", "x"], ["it is a key of the recipe: run=x"]),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(potstill, tmp_path, monkeypatch, arguments, messages):
    monkeypatch.chdir(tmp_path)
    result = potstill("race", *arguments)
    assert result.exit_code == 2, result.output
    for message in messages:
        assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def start(folder: Path, teacher: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "potstill", "race", *RACE, f"teacher.weights={teacher}", f"run={folder}", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rungs(text: str) -> Any:
    record = json.loads(text)
    return (
        record["winner"],
        record["epochs"],
        record["rungs"],
        [(one["name"], one["top1"]) for one in record["candidates"]],
    )


@pytest.mark.long
def test_a_race_that_is_told_to_stop_or_killed_ends_as_one_that_was_not(teacher_run, tmp_path):
    """SIGTERM once, then SIGKILL after some epochs, more each time; the waiting is for epochs, not for seconds."""
    whole, _ = start(tmp_path / "whole", teacher_run).communicate(timeout=600)
    for number, epochs in enumerate([1, 2, 4, 5], start=1):
        process = start(tmp_path / "race", teacher_run)
        while process.poll() is None and len(list_epochs(tmp_path / "race")) < epochs:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM if number == 1 else signal.SIGKILL)
        _, said = process.communicate(timeout=600)
        if number == 1:
            assert process.returncode == 128 + signal.SIGTERM
            assert "The same command goes on from there." in said
        else:
            assert process.returncode == -signal.SIGKILL
    ended, _ = start(tmp_path / "race", teacher_run).communicate(timeout=600)
    assert rungs(ended) == rungs(whole)


def list_epochs(folder: Path) -> list[str]:
    """The epochs of all candidates that are in their tables."""
    return [row for path in folder.glob("*/metrics.csv") for row in path.read_text().splitlines()[1:]]
