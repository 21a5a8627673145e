"""Writing a student in a format: aside first, compared with the student itself, then moved to its name."""

import importlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.errors import NetworkError, PotstillError, RunError, nearest
from potstill.export.formats import FORMATS, Student
from potstill.networks.card import CARD_FILE, read_card
from potstill.networks.ship import load_student
from potstill.networks.weights import first_line

__all__ = ["TOLERANCE", "Exported", "export"]

TOLERANCE = 1e-4  # allowed difference of two logits, as a part of the student's largest one


@dataclass(frozen=True, slots=True)
class Exported:
    """One file that was written and agrees with the student.

    Attributes:
        path: the file.
        format: its key in :data:`FORMATS`.
        max_difference: the largest difference between its logits and the student's on random images, as a part of the
            student's largest logit.
    """

    path: Path
    format: str
    max_difference: float


def export(
    run_folder: str | Path,
    formats: Iterable[str] = tuple(FORMATS),
    out: str | Path | None = None,
    *,
    raw: bool = False,
    model: str | None = None,
) -> list[Exported]:
    """Export the student of a finished run, and compare each file with the student itself.

    Every file is written into a hidden folder beside its place, read back by its own reader (ONNX Runtime,
    ``torch.export.load``, a newly built network) and run on random images in batches of 1 and 3. It gets its name when
    all logits agree to :data:`TOLERANCE`; otherwise it is removed, and what had that name before stays.

    Args:
        run_folder: a finished run.
        formats: ``safetensors`` (with ``student.json``, as in the run's folder), ``onnx`` and ``torch``
            (``student.pt2`` of ``torch.export``). The last two hold a graph for any batch size, and have a ``.json``
            beside them that says what they take and return.
        out: the folder for the files; None for ``export`` in the run's folder.
        raw: graphs take pixels in 0..1 and normalise them; otherwise they take normalised images.
        model: see :func:`potstill.networks.ship.load_student`.

    Raises:
        PotstillError: an unknown format, or a package that it needs and that is not installed.
        RunError: no finished run, a folder that cannot be written, or a file whose logits are not the student's.
        NetworkError: a student that cannot be loaded, or whose computation cannot be traced.
    """
    wanted = check_formats([formats] if isinstance(formats, str) else formats, raw)
    student = Student(load_student(run_folder, model), read_card(run_folder), raw)
    folder = Path(run_folder) / "export" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [export_one(name, student, folder) for name in wanted]
    except OSError as error:
        raise RunError(f"cannot write the exported student into {folder}: {error.strerror or error}") from error


def check_formats(formats: Iterable[str], raw: bool) -> list[str]:
    """The formats, each once, all known and with what they need."""
    wanted = list(dict.fromkeys(formats))
    if not wanted:
        raise PotstillError(f"no format to export to is named; expected some of {', '.join(FORMATS)}")
    for name in wanted:
        if name not in FORMATS:
            raise PotstillError(
                f"unknown export format {name!r}; expected some of {', '.join(FORMATS)}.{nearest(name, FORMATS)}"
            )
        for package in FORMATS[name].packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise PotstillError(
                    f"export to {name} needs {package}, which cannot be imported ({error}): "
                    "pip install 'potstill[export]'"
                ) from error
    if raw and not any(FORMATS[name].is_graph for name in wanted):
        raise PotstillError(
            f"raw is for formats that hold a graph, and {' and '.join(wanted)} holds weights only; leave raw out"
        )
    return wanted


@torch.no_grad()
def export_one(name: str, student: Student, folder: Path) -> Exported:
    """Write one format aside, compare it, and move it to its name."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        aside = Path(temporary)
        try:
            form.write(student, aside)
        except (OSError, PotstillError):
            raise
        except Exception as error:  # the exporters raise many kinds
            raise NetworkError(
                f"{student.card.model!r} cannot be exported to {name}: {first_line(error)}. Its forward must be "
                "traceable by torch.export: no decision that depends on the values or the number of the images"
            ) from error
        difference = compare(name, student, aside)
        if form.is_graph:
            description = json.dumps(describe(name, student, difference), indent=2, ensure_ascii=False)
            (aside / f"{form.file}.json").write_text(description + "\n", encoding="utf-8")
        move(aside, folder)
    return Exported(folder / form.file, name, difference)


def compare(name: str, student: Student, folder: Path) -> float:
    """The largest difference of a written file's logits from the student's, as a part of the largest logit."""
    form = FORMATS[name]
    path = folder / form.file
    largest = 0.0
    try:
        run = form.read(student, path)
        for images, expected in student.examples(student.raw and form.is_graph):
            got = run(images)
            if got.shape != expected.shape:
                raise RunError(
                    f"{path.name} is not kept: for {len(images)} images it returns {tuple(got.shape)}, the student "
                    f"{tuple(expected.shape)}"
                )
            peak = float(expected.abs().max())
            difference = float((got - expected).abs().max()) / (peak or 1.0)
            if not difference <= TOLERANCE:  # so that NaN is refused
                raise RunError(
                    f"{path.name} is not kept: for {len(images)} images its logits differ from the student's by "
                    f"{difference:.3g} of the largest logit, and {TOLERANCE:g} is allowed"
                )
            largest = max(largest, difference)
    except (OSError, PotstillError):
        raise
    except Exception as error:  # onnx, onnxruntime and torch.export each have their own
        raise RunError(f"{path.name} is not kept: it was written and does not run: {first_line(error)}") from error
    return largest


def describe(name: str, student: Student, difference: float) -> dict[str, Any]:
    """What the JSON beside a graph says."""
    card = student.card
    pixels = "RGB pixels in 0..1" if student.raw else "RGB pixels in 0..1, normalised: (pixels - mean) / std"
    return {
        "format": name,
        "model": card.model,
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", *card.input_size], "values": pixels},
        "output": {
            "name": "logits" if card.num_classes else "embedding",
            "dtype": "float32",
            "shape": ["batch", card.num_classes or student.tapped.spec.embedding_dim],
        },
        "mean": list(card.mean),
        "std": list(card.std),
        "normalises": student.raw,
        "classes": None if card.classes is None else list(card.classes),
        "max_difference": difference,
        "torch": torch.__version__,
    }


def move(aside: Path, folder: Path) -> None:
    """Flush every file below ``aside`` to the disk and rename it into ``folder``, the card last: it vouches for all."""
    for source in sorted(filter(Path.is_file, aside.rglob("*")), key=lambda path: (path.name == CARD_FILE, path)):
        target = folder / source.relative_to(aside)
        target.parent.mkdir(exist_ok=True)
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(source, target)
