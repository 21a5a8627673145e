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
from potstill.export.detections import DetectorStudent
from potstill.export.formats import FORMATS
from potstill.export.student import TOLERANCE, Mismatch, Student
from potstill.networks.card import CARD_FILE, read_card
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.ship import load_student
from potstill.networks.weights import first_line

__all__ = ["TOLERANCE", "Exported", "export"]


@dataclass(frozen=True, slots=True)
class Exported:
    """One file that was written and agrees with the student.

    Attributes:
        path: the file.
        format: its key in :data:`FORMATS`.
        max_difference: the largest difference between its outputs and the student's on random images, as a part of the
            student's largest number; of detections that of a box, as a part of the longer side, or of a score.
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
    head: bool = False,
    model: str | None = None,
) -> list[Exported]:
    """Export the student of a finished run, and compare each file with the student itself.

    Every file is written into a hidden folder beside its place, read back by its own reader (ONNX Runtime,
    ``torch.export.load``, a newly built network) and run on random images in batches of 1 and 3. It gets its name when
    all outputs agree to :data:`TOLERANCE`; otherwise it is removed, and what had that name before stays.

    A graph returns logits: of the images, or of their pixels from a network for segmentation. A face network's returns
    embeddings, not normalised. A detector's graph is of one image on a canvas of the card's size, and returns boxes,
    scores and labels in a fixed number of rows (:class:`potstill.export.detector.DetectorGraph`).

    Args:
        run_folder: a finished run.
        formats: ``safetensors`` (with ``student.json``, as in the run's folder), ``onnx`` and ``torch``
            (``student.pt2`` of ``torch.export``). The last two hold a graph, for any batch size where the student is no
            detector, and have a ``.json`` beside them that says what they take and return.
        out: the folder for the files; None for ``export`` in the run's folder.
        raw: graphs take pixels in 0..1 and normalise them; otherwise they take normalised images.
        head: a face network's graph ends with the cosines of its identity head, and not with the embedding.
        model: see :func:`potstill.networks.ship.load_student`.

    Raises:
        PotstillError: an unknown format, or a package that it needs and that is not installed.
        RunError: no finished run, a folder that cannot be written, or a file whose outputs are not the student's.
        NetworkError: a student that cannot be loaded, whose computation cannot be traced, or that has no such head.
    """
    wanted = check_formats([formats] if isinstance(formats, str) else formats, raw, head)
    tapped = load_student(run_folder, model)
    kind = DetectorStudent if isinstance(tapped, TappedDetector) else Student
    student = kind(tapped, read_card(run_folder), raw, head)
    student.check_head()
    folder = Path(run_folder) / "export" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [export_one(name, student, folder) for name in wanted]
    except OSError as error:
        raise RunError(f"cannot write the exported student into {folder}: {error.strerror or error}") from error


def check_formats(formats: Iterable[str], raw: bool, head: bool) -> list[str]:
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
    for name, asked in (("raw", raw), ("head", head)):
        if asked and not any(FORMATS[one].is_graph for one in wanted):
            raise PotstillError(
                f"{name} is for formats that hold a graph, and {' and '.join(wanted)} holds weights only; "
                f"leave {name} out"
            )
    return wanted


@torch.no_grad()
def export_one(name: str, student: Student, folder: Path) -> Exported:
    """Write one format aside, compare it, and move it to its name."""
    form = FORMATS[name]
    student = student if form.is_graph else student.plain()
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
    """The largest difference of a written file's outputs from the student's."""
    path = folder / FORMATS[name].file
    largest = 0.0
    try:
        run = FORMATS[name].read(student, path)
        for inputs, expected in student.examples():
            largest = max(largest, student.difference(run(*inputs), expected))
    except Mismatch as mismatch:
        raise RunError(f"{path.name} is not kept: {mismatch}") from None
    except (OSError, PotstillError):
        raise
    except Exception as error:  # onnx, onnxruntime and torch.export each have their own
        raise RunError(f"{path.name} is not kept: it was written and does not run: {first_line(error)}") from error
    return largest


def describe(name: str, student: Student, difference: float) -> dict[str, Any]:
    """What the JSON beside a graph says."""
    card = student.card
    return {
        "format": name,
        "model": card.model,
        **student.describe(),
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
