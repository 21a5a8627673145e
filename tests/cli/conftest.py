"""The command as tests call it, and runs that several of them look at."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from potstill.cli import app

# 179 of the digits to learn from, three steps an epoch: a run of about a second.
TINY = (
    "data.val_fraction=0.9",
    "student.model=resnet8",
    "epochs=1",
    "schedule.name=onecycle",
    "device=cpu",
    "log.every=2",
)


@pytest.fixture(scope="session")
def potstill() -> Callable[..., Result]:
    """Call the command in this process."""

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), prog_name="potstill")

    return call


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    """The values of a run of about a second."""
    return TINY


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command in a process of its own."""

    def call(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "potstill", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False, **options
        )

    return call


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory, potstill: Callable[..., Result]) -> Path:
    """A finished run of ``potstill train``."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    result = potstill("train", *TINY, f"run={folder}")
    assert result.exit_code == 0, result.output
    return folder
