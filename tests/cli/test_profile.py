"""``potstill profile``: what it prints, what its JSON holds, and what it leaves alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.procedures import trials

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profiling.md"
FEW = ("--steps", "8", "--seconds", "0")


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path_factory):
    """As few rounds as there may be, and temporary folders where they are seen; none is left."""
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(trials, "_ROUND", 1.0)
    monkeypatch.setattr(trials, "other_threads", list)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert not list(scratch.iterdir())


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def keys(value: Any, prefix: str = "") -> set[str]:
    """Every key of a JSON value with its path; the elements of a list are told by ``[]``."""
    if isinstance(value, dict):
        own = {f"{prefix}{key}" for key in value}
        return own.union(*(keys(inner, f"{prefix}{key}.") for key, inner in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return keys(value[0], f"{prefix.removesuffix('.')}[].")
    return set()


def test_the_json_has_the_keys_that_the_page_names(potstill, tiny, teacher_run):
    result = potstill("profile", *tiny, f"teacher.weights={teacher_run}", *FEW, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", page, flags=re.MULTILINE))
    parts = {f"step.parts.{part}" for part in found["step"]["parts"]}
    inner = {key for key in keys(found) if key.startswith("step.parts.") and key not in parts}
    assert {key.rpartition(".")[2] for key in inner} == {"ms", "share"}
    assert (
        keys(found) - parts - inner - {"twice_the_batch.low", "twice_the_batch.median", "twice_the_batch.high"} == named
    )
    assert set(found["step"]["parts"]) == {"data", "teacher", "forward", "backward", "optimizer", "host"}
    assert sum(part["share"] for part in found["step"]["parts"].values()) == pytest.approx(1)
    assert sum(part["ms"] for part in found["step"]["parts"].values()) == pytest.approx(found["step"]["ms"])
    assert found["steps"] == 5  # so many at least, whatever the seconds
    assert found["sentences"]


def test_people_get_a_table_and_sentences(potstill, tiny, teacher_run):
    result = potstill("profile", *tiny, f"teacher.weights={teacher_run}", *FEW)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "Where the time of a step goes: resnet8 taught by teacher, on cpu with 1 thread" in lines
    first = [line.split()[0] for line in lines if re.match(r"[a-z]+ +[\d.]+ +[\d.]+$", line)]
    assert first == ["data", "teacher", "forward", "backward", "optimizer", "host", "all"]
    assert any(
        re.match(r"5 steps of 64 images were timed, .* images/s\. The run, 1 epoch of 3 steps, takes ", line)
        for line in lines
    )
    assert any("channels_last=false" in line for line in lines)
    assert any(re.search(r"takes? \d+ %", line) for line in lines)


@pytest.mark.parametrize("finished", [True, False])
def test_a_runs_folder_is_profiled_and_not_touched(potstill, teacher_run, tmp_path, finished):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    if not finished:
        (run / "result.json").unlink()
        (run / "student.safetensors").unlink()
    before = contents(run)
    result = potstill("profile", str(run), *FEW, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["student"] == "resnet8"
    assert contents(run) == before


def test_the_recipes_own_folder_is_not_made(potstill, tiny, tmp_path):
    result = potstill("profile", *tiny, f"run={tmp_path / 'run'}", *FEW)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run").exists()


def test_told_to_stop_it_leaves_nothing(tiny, tmp_path):
    command = [sys.executable, "-m", "potstill", "profile", *tiny, "--steps", "1000000", "--seconds", "1000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("potstill-profile-*")) and time.monotonic() < until:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("potstill-profile-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student.modl=resnet8"], "Did you mean 'model'?"),
        (["student.model=resnet9000"], "resnet9000"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["--steps", "3"], "3 steps are too few"),
        (["--seconds", "nan"], "nan seconds are no time to measure in"),
        (["--epochs", "3"], "it is a key of the recipe: epochs=3"),
        (["data.path=nowhere"], "There is no nowhere"),
    ],
)
def test_mistakes_are_one_line(potstill, tiny, arguments, message):
    values = [] if arguments == ["nowhere.yaml"] else list(tiny)
    result = potstill("profile", *values, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
