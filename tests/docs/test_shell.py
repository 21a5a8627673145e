"""The shell blocks of the documents run, one document after the other, as somebody would who does what it says.

What differs from a reader's machine is here and nowhere else: tiny data under the names that a document uses
(``GIVEN``), and settings that make a run short, laid over each command (``SHORT`` and what follows it). A block that
cannot run here has a comment before it that says why: ``<!-- not run: REASON -->``.
"""

import io
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file
from tests.docs.documents import TEXTS, blocks, lines, recipe_of
from tests.docs.test_python import leave_student
from tests.procedures.tiny_scenes import boxes_folder, masks_folder
from typer.testing import CliRunner

from potstill.cli import app
from potstill.networks.build import build_network

CLASSES = ("cat", "dog")
# Laid over every command that trains: one epoch of a few images.
SHORT = {
    "epochs": "1", "batch_size": "8", "optimizer.lr": "1e-4", "precision": "fp32", "device": "cpu",
    "log.every": "1", "log.report": "false", "log.measures": "false",
}  # fmt: skip
# Laid over a command that says the key itself.
SMALLER = {
    "student.pretrained": "false", "procedure.pretrain_epochs": "1", "procedure.stage_epochs": "[1, 1, 1]",
    "data.views": "1", "log.track": "[]",  # trackers need not be installed
}  # fmt: skip
# Procedures of several phases need an epoch for each; a detector has six.
LONGER = {"stagewise": "4", "hint": "2"}
DETECTOR = "fasterrcnn/test_resnet.r160_in1k"
# Laid over a command of another task.
TASKS = {
    "detection": {
        "data.size": "64", "data.sizes": "[]", "data.longest": "null", "data.workers": "0", "student.model": DETECTOR,
        "student.args.pyramid": "16", "student.args.representation": "16",
    },
    "segmentation": {"data.size": "64", "data.sizes": "[]", "data.longest": "null", "data.workers": "0"},
    "faces": {"data.size": "32"},
}  # fmt: skip
DIGITS = {"data.val_fraction": "0.97"}  # the digits that come with scikit-learn: 54 images to learn from
PHOTOS = {"data.size": "32", "data.loader": "resident"}  # folders, which would be streamed by worker processes
# A study is planned and not run: the Python of its page runs one.
OPTIONS = {"export": ["--format", "safetensors"], "study": ["--dry-run"]}
# Three candidates of the six; the last rung is a later epoch than the first.
RACE = {"epochs": "3", "race.min_epochs": "1", "students": "[]", "methods": "{}"}
# Deep networks are exchanged for shallow ones, those of the CIFAR zoo for ones of the same stages and widths.
SHALLOW = {
    "resnet32x4": "resnet8x4", "resnet110": "resnet14", "resnet56": "resnet14", "wrn_40_2": "wrn_16_2",
    "timm/resnet50": "timm/resnet10t", "timm/resnet18": "timm/resnet10t", "fcn/resnet18": "fcn/test_resnet.r160_in1k",
    "iresnet18": "iresnet10",
}  # fmt: skip
HERE = ((".", ".venv/bin/activate"),)  # the tests run in the environment
TRAINS = ("train", "distill", "demo", "race")


def png(rng: np.random.Generator) -> bytes:
    """A small image of noise."""
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder_of_images(path: Path) -> None:
    """A folder a class."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (path / name).mkdir(parents=True)
        for number in range(8):
            (path / name / f"{number}.png").write_bytes(png(rng))


def flat_images(path: Path) -> None:
    """Images without labels."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for number in range(16):
        (path / f"{number}.png").write_bytes(png(rng))


def parquet(path: Path) -> None:
    """CIFAR-100's layout on the Hugging Face hub, with four classes."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for split in ("train", "test"):
        rows = [{"img": {"bytes": png(rng), "path": f"{i}.png"}, "fine_label": i % 4} for i in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), path / f"{split}-00000-of-00001.parquet")


def tar_shards(path: Path) -> None:
    """webdataset's layout."""
    rng = np.random.default_rng(0)
    path.mkdir()
    with tarfile.open(path / "train-000000.tar", "w") as archive:
        for number in range(16):
            for name, content in (("png", png(rng)), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def weights(model: str) -> Callable[[Path], None]:
    """A file of weights for two classes."""
    return lambda path: save_file(build_network(model, classes=2, input_size=(3, 32, 32)).network.state_dict(), path)


def people(path: Path) -> None:
    """A folder of twelve people with four images each."""
    rng = np.random.default_rng(0)
    for person in range(12):
        face = rng.integers(0, 256, (4, 4, 3))
        (path / f"p{person:02}").mkdir(parents=True)
        for number in range(4):
            pixels = np.clip(face + rng.normal(0, 30, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(path / f"p{person:02}" / f"{number}.png")


def run_of(model: str, classes: int, side: int, **args: Any) -> Callable[[Path], None]:
    """What a finished run leaves, untrained."""
    return lambda path: leave_student(path, model, classes, side, **args)


def begun(path: Path) -> None:
    """A run of one epoch."""
    keys = [f"{key}={value}" for key, value in (SHORT | DIGITS).items()]
    done = CliRunner().invoke(app, ["train", "student.model=resnet8", f"run={path}", *keys], prog_name="potstill")
    assert done.exit_code == 0, done.output


# What a document takes for granted, by the name that it gives it.
GIVEN: dict[str, Callable[[Path], None]] = {
    "photos": folder_of_images, "pictures": folder_of_images, "imagenet": folder_of_images, "unlabelled": flat_images,
    "cifar100": parquet, "table": parquet, "shards": tar_shards, "runs/large": run_of("resnet8x4", 4, 32),
    "runs/resnet56": run_of("resnet14", 4, 32), "runs/resnet20": run_of("resnet20", 4, 32), "runs/small": begun,
    "resnet50-photos.safetensors": weights("timm/resnet10t"),
    "cells": boxes_folder, "tissue": masks_folder, "people": people,
    "runs/detector": run_of(DETECTOR, 2, 64, pyramid=16, representation=16),
    "runs/segmenter": run_of("fcn/test_resnet.r160_in1k", 3, 64),
    "runs/embedder": run_of("iresnet10", 6, 32, width=0.25, img_size=32),
}  # fmt: skip


def prepare(text: str, folder: Path) -> None:
    """Make what the document names and does not make itself."""
    shown = "".join(block.body for kind in ("sh", "yaml") for block in blocks(text, kind) if block.why is None)
    made = set(re.findall(r"run[=:] ?(\S+)", shown))
    for name, make in GIVEN.items():
        if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.-])", shown) and name not in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            make(folder / name)


def shortened(words: list[str]) -> list[str]:
    """The command as it is run here."""
    laid: list[str] = []
    if words[0] in TRAINS:
        deep = re.compile(rf"(?<![/\w])({'|'.join(SHALLOW)})(?=$|[,\]])")
        words = [deep.sub(lambda found: SHALLOW[found[1]], word) for word in words]
        laid = [f"{key}={value}" for key, value in overrides(words).items()]
    if words[0] == "study" and "--dry-run" not in words:
        laid = ["epochs=1", "study.seeds=[1]", "study.workers=1"]
    if words[0] == "store" and any(word.endswith(".yaml") for word in words):
        keys = SHORT | DIGITS | {"data.views": SMALLER["data.views"], "teacher.fold": "false"}
        laid = [f"{key}={value}" for key, value in keys.items()]
    return [*words, *laid, *OPTIONS.get(words[0], [])]


def overrides(words: list[str]) -> dict[str, str]:
    """What is laid over a command that trains."""
    keys = SHORT | {key: value for key, value in SMALLER.items() if any(word.startswith(f"{key}=") for word in words)}
    for name, epochs in LONGER.items():
        if f"procedure.name={name}" in words:
            keys["epochs"] = epochs
    recipe = recipe_of(words)
    if recipe is None:
        return keys | DIGITS | RACE
    keys |= TASKS.get(recipe.task, {})
    if recipe.task == "detection" and "procedure.name=stagewise" in words:
        keys["epochs"] = "6"
    if recipe.data.path is None:
        keys |= DIGITS
    if recipe.data.path == "cifar100":
        keys["data.source"] = "parquet"
    if recipe.data.path in ("photos", "pictures", "imagenet", "unlabelled"):
        keys |= PHOTOS
    if recipe.data.views:
        keys["data.views"] = SMALLER["data.views"]
    if words[0] == "distill":
        keys["teacher.fold"] = "false"
    return keys


@pytest.fixture(scope="module")
def trained() -> dict[tuple[str, ...], Path]:
    """Runs by their command: many documents begin with the same teacher."""
    return {}


def run(words: list[str], trained: dict[tuple[str, ...], Path]) -> str:
    """One command in the present folder, or a copy of what it left in another document's; what it printed."""
    short = tuple(shortened(words))
    recipe = recipe_of(list(short)) if words[0] in ("train", "demo") else None
    left = Path(recipe.run) if recipe is not None and recipe.run else None
    if left is not None and words[0] == "demo":
        left = left.parent
    if left is not None and short in trained:
        if not left.exists():
            shutil.copytree(trained[short], left)
        return ""
    result = CliRunner().invoke(app, list(short), prog_name="potstill")
    said = (
        f"potstill {shlex.join(words)}\nwas run as\npotstill {shlex.join(short)}\n{result.output}\n{result.exception!r}"
    )
    assert result.exit_code == 0, said
    if left is not None:
        trained[short] = left.absolute()
    return result.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if any(lines(text))])
def test_the_commands_of_a_document_run(name: str, reader, trained, monkeypatch):
    monkeypatch.setattr("potstill.analysis.cost.latency", lambda *_, **__: 1.0)  # half a second for each network
    folder = reader(name)
    prepare(TEXTS[name], folder)
    for line in lines(TEXTS[name]):
        if (
            line.why is not None
            or line.words in HERE
            or (line.potstill is None and line.words[0] in ("make", "python"))
        ):
            continue
        assert line.potstill is not None, f"{name}: what is {shlex.join(line.words)}? Say why it is not run."
        printed = run(line.potstill, trained)
        if line.target:
            (folder / line.target).write_text(printed, encoding="utf-8")
