"""Runs' folders as a run leaves them, written without training, and a browser that lets nothing out."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from potstill.analysis.predictions import Predictions

HOSTILE = ("<script>alert(1)</script>", "<b>x</b><img src=x onerror=alert(2)>", "%{x}", "=1+1|`a`", "plain", "plain")
MEASURES = {"val_m_da": (0.9, 0.4), "val_m_bc": (0.95, 0.3), "val_cka": (0.3, 0.8), "val_norm": (3.0, 14.0),
            "val_pefd_distance": (9.6, 8.1), "val_pefd_distance_squared": (92.0, 66.0)}  # fmt: skip


def write_run(
    folder: Path, *, control: bool = True, classes: Sequence[str] = HOSTILE, epochs: int = 6,
    planned: int | None = None, rows: int = 4, predictions: bool = True, finished: bool = True, seed: int = 0,
    gain: float = 0.04, images: int = 600, objective: dict[str, Any] | None = None, taught: bool = True,
) -> Path:  # fmt: skip
    """A run of a student whose accuracy is ``gain`` above its control's, with ``rows`` rows of steps an epoch."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed + (0 if taught else 1000))
    terms = objective or ({"ce": 1.0, "pefd": {"weight": 25, "projectors": 3}} if taught else {"ce": 1.0})
    recipe = {
        "data": {"source": "folder", "path": "my <i>cats"},
        "student": {"model": "resnet8"},
        "teacher": {"model": None, "weights": "runs/large one"} if taught else None,
        "objective": terms, "epochs": planned or epochs, "seed": seed, "control": control,
    }  # fmt: skip
    head = "# potstill 0.1.0, torch 2.15.0\n# potstill distill 'data.path=my <i>cats' seed=0\n"
    (folder / "recipe.yaml").write_text(head + yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    (folder / "identity.json").write_text(json.dumps({"data": "f0b0", "teacher": "3f07"}), encoding="utf-8")
    if epochs:
        history = [_epoch(e, epochs, terms, rows, rng, taught) for e in range(epochs)]
        with open(folder / "metrics.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
        steps = [_step(s, epochs * rows, rows, terms, rng) for s in range(epochs * rows)]
        (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    answers = _answers(classes, images, seed, taught, gain)
    if finished:
        (folder / "result.json").write_text(json.dumps(_result(classes, answers, taught, images)), encoding="utf-8")
        if predictions:
            answers.write(folder)
    if control and taught:
        more = {"classes": classes, "epochs": epochs, "planned": planned, "rows": rows, "predictions": predictions}
        write_run(
            folder / "control",
            control=False,
            finished=finished,
            seed=seed,
            gain=0.0,
            images=images,
            taught=False,
            **more,
        )
    return folder


def _epoch(
    e: int, epochs: int, terms: dict[str, Any], rows: int, rng: np.random.Generator, taught: bool
) -> dict[str, Any]:
    part = (e + 1) / epochs
    row: dict[str, Any] = {"epoch": e + 1, "step": (e + 1) * rows * 50, "lr": 0.05 * (1 + math.cos(math.pi * part))}
    row |= {name: 3 * math.exp(-2 * part) + rng.normal(0, 0.02) for name in [*terms, "total"]}
    row |= {
        "seconds": 12.5,
        "top1": 80 - 60 * math.exp(-4 * part) + rng.normal(0, 0.5),
        "top5": 98 - 30 * math.exp(-4 * part),
    }
    row |= {"val_loss": 0.6 + 2 * math.exp(-3 * part)}
    known = MEASURES if taught else {"val_m_bc": (0.95, 0.4), "val_norm": (3.0, 10.0)}
    return row | {key: begin + (end - begin) * part for key, (begin, end) in known.items()}


def _step(s: int, steps: int, rows: int, terms: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    part = (s + 1) / steps
    row: dict[str, Any] = {"step": (s + 1) * 50, "epoch": s // rows, "lr": 0.05 * (1 + math.cos(math.pi * part))}
    row |= {name: 3 * math.exp(-2 * part) + rng.normal(0, 0.08) for name in [*terms, "total"]}
    if len(terms) > 1 and s % 10 == 0:
        shares = rng.dirichlet([3 + 5 * part] + [6.0] * (len(terms) - 1))
        row |= {f"share_{name}": float(share) for name, share in zip(terms, shares, strict=True)}
    return row | {"ms": {"data": 0.5, "teacher": 12.0, "forward": 9.0, "backward": 17.0, "optimizer": 2.0}}


def _answers(
    classes: Sequence[str], images: int, seed: int, taught: bool, gain: float, mapped: int = 60
) -> Predictions:
    rng = np.random.default_rng(7)  # the same images, whatever the seed
    count = len(classes)
    label = rng.integers(0, count, images)
    hard = rng.random(images)
    centres = rng.normal(0, 3, (count, 8))

    def said(right: float, salt: int) -> np.ndarray:
        noise = np.random.default_rng(1000 * seed + salt).normal(0, 0.1, images)
        return np.where(hard + noise < right, label, (label + 1) % count)

    rows = np.arange(min(images, mapped))
    own = np.random.default_rng(seed + 50)
    kept = {
        "teacher": torch.from_numpy(said(0.86, 3)).int(), "teacher_confidence": torch.full((images,), 0.9).half(),
        "map_teacher": torch.from_numpy(centres[label[rows]] + own.normal(0, 1.2, (len(rows), 8))).half(),
    }  # fmt: skip
    places = torch.from_numpy(centres[label[rows]] + own.normal(0, 1.6, (len(rows), 8))).half()
    return Predictions(
        data="f0b0", classes=count, index=torch.arange(images), label=torch.from_numpy(label).int(),
        student=torch.from_numpy(said(0.76 + gain, 1 if taught else 2)).int(),
        student_confidence=torch.full((images,), 0.8).half(), map_rows=torch.from_numpy(rows), map_student=places,
        **(kept if taught else {}),
    )  # fmt: skip


def _result(classes: Sequence[str], answers: Predictions, taught: bool, images: int) -> dict[str, Any]:
    def row(said: torch.Tensor, parameters: int, latency: float) -> dict[str, Any]:
        top1 = 100 * (said == answers.label).double().mean().item()
        return {"top1": top1, "top5": 98.5, "val_loss": 0.7, "parameters": parameters, "macs": 147 * parameters,
                "latency_ms": latency, "bytes": 4 * parameters}  # fmt: skip

    rows = {"student": row(answers.student, 83_892, 0.57)}
    if answers.teacher is not None:
        rows = {"teacher": row(answers.teacher, 278_324, 1.62), **rows}
    return {
        "rows": rows, "epochs": 6, "seconds": 75.0, "classes": list(classes),
        "teacher_fingerprint": "3f07" if taught else None,
        "times": {"data": 0.4, "teacher": 22.0, "forward": 15.0, "backward": 28.0, "optimizer": 3.0, "graph": 0.0,
                  "host": 0.5, "evaluation": 6.1},
        "data": {"identity": "f0b0", "train": 5000, "val": images, "skipped": {"train": {}, "val": {}}},
        "versions": {"potstill": "0.1.0", "torch": "2.15.0"},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def quick_maps() -> None:
    """Maps with all their rounds: here their places are looked at."""


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write a run's folder."""
    return write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a control, predictions and classes whose names are HTML; nobody may write into it."""
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="session")
def hostile() -> Sequence[str]:
    """The names of that run's classes."""
    return HOSTILE


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no browser to look with"
    )
    path = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(p).is_file()), None)
    if path is None:
        pytest.skip("there is no /usr/bin/chromium to look with")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=quiet)
        yield opened
        opened.close()
