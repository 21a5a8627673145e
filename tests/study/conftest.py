"""Small studies of the handwritten digits, and studies in processes of their own."""

import multiprocessing
import runpy
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.study import Plan, load_study, plan_study

# 179 of the digits to learn from, three steps an epoch: a run of about a second.
RECIPE = {
    "data": {"source": "digits", "val_fraction": 0.9},
    "student": {"model": "resnet8"},
    "epochs": 1,
    "schedule": {"name": "onecycle"},
    "device": "cpu",
    "log": {"every": 2, "shares": 0},
}
ALONE = {"objective": {"ce": 1}}
TAUGHT = {"teacher": "large", "objective": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}}


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a study of two methods with the keys given in place of its own; None takes a key out."""

    def write(**keys: Any) -> Path:
        content = {
            "recipe": RECIPE,
            "teachers": {"large": {"student.model": "resnet14"}},
            "grid": {"method": {"alone": ALONE, "KD": TAUGHT}},
            "control": {"method": "alone"},
            "seeds": [1, 2],
            "run": str(tmp_path / "study"),
        } | keys
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return path

    return write


@pytest.fixture
def planned(study_file: Callable[..., Path]) -> Callable[..., Plan]:
    """The plan of such a study."""

    def plan(*overrides: str, **keys: Any) -> Plan:
        path = study_file(**keys)
        return plan_study(path, load_study(path), overrides)

    return plan


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Callable[..., ForkServerProcess]]:
    """Start ``potstill study`` in a process of its own, forked off one that has imported everything.

    Its jobs are forked off the study itself: the process that it would load for them takes longer than they do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["potstill.study.job", "sklearn.datasets"])
    started = []

    def start(path: Path, *overrides: str) -> ForkServerProcess:
        script = tmp_path / f"command-{len(started)}.py"
        arguments = ["potstill", "study", str(path), *overrides]
        script.write_text(
            "import os, sys\n"
            f"file = os.open({str(tmp_path / 'output.txt')!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
            "os.dup2(file, 1), os.dup2(file, 2)\n"
            f"sys.argv = {arguments!r}\n"
            "import multiprocessing, types\n"
            "from potstill.study import workers\n"
            "context = multiprocessing.get_context('fork')\n"
            "context.set_forkserver_preload = lambda modules: None\n"
            "workers.multiprocessing = types.SimpleNamespace(get_context=lambda name: context)\n"
            "from potstill.cli import main\n"
            "main()\n"
        )
        process = context.Process(target=runpy.run_path, args=(str(script),))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()
