"""The command with something wrong in it, tiny real data, and what a mistake must leave alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from potstill.cli import app
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.ship import ship_student
from potstill.networks.weights import save_weights

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="session")
def potstill() -> Callable[..., Result]:
    """Call the command in this process."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments], prog_name="potstill")

    return call


@pytest.fixture(scope="session")
def quick() -> Sequence[str]:
    """The values of a run of about a second on 8 x 8 digits or on a few small pictures."""
    return ("student.model=resnet8", "epochs=1", "device=cpu", "schedule.name=constant", "data.size=8")


@pytest.fixture(scope="session")
def digits() -> Sequence[str]:
    """179 digits to learn from."""
    return ("data.source=digits", "data.val_fraction=0.9")


@pytest.fixture(scope="session")
def refused(potstill: Callable[..., Result]) -> Callable[..., str]:
    """Call the command, see it refuse with one line and exit code 2, and return the line."""

    def call(*arguments: object, lines: int = 1) -> str:
        result = potstill(*arguments)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == lines, result.stderr
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.output
        return result.stderr

    return call


@pytest.fixture(scope="session")
def trains(potstill: Callable[..., Result]) -> Callable[..., str]:
    """Call the command, see it succeed, and return what it said."""

    def call(*arguments: object) -> str:
        result = potstill(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return call


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[Path]]:
    """Write pictures of random pixels into a folder."""

    def pictures(folder: Path, count: int, size: tuple[int, int] = (12, 12), suffix: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(folder.name))
        paths = [folder / f"{number:03d}{suffix}" for number in range(count)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        return paths

    return pictures


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder with its bytes; a lock is none of its contents."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run's folder with a network of so many classes; for 0 a file of weights without a classifier."""
    base = tmp_path_factory.mktemp("teachers")

    def ready(classes: int) -> Path:
        folder = base / str(classes)
        if not folder.exists():
            network = build_network("resnet14", classes=classes, input_size=(3, 8, 8))
            if classes:
                ship_student(folder, network, NetworkCard("resnet14", classes, HALF, HALF, (3, 8, 8)))
            else:
                folder.mkdir()
                save_weights(network, folder / "features.safetensors")
        return folder if classes else folder / "features.safetensors"

    return ready
