"""What the tests of procedures share."""

from pathlib import Path

import pytest
from tests.procedures.running import TINY, call


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a larger network, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *TINY, "student.model=resnet14", "epochs=1", f"run={folder}")
    return folder
