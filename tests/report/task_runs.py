"""Runs' folders of detection, segmentation and faces, written without training."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

__all__ = ["DETECTION", "FACES", "SEGMENTATION", "write_task_run"]

HOSTILE = "<script>alert(1)</script>"
DETECTION = {"ap": 31.5, "ap50": 55.25, "ap75": 30.0, "ap_medium": 33.0, "ap_large": 40.0}
SEGMENTATION = {"miou": 61.5, "pixel_accuracy": 91.0}
FACES = {"tar": 71.0, "accuracy": 93.5, "tar_1e-1": 97.0, "tar_1e-2": 88.0, "tar_1e-3": 71.0}
_TASKS = {"detection": DETECTION, "segmentation": SEGMENTATION, "faces": FACES}
CLASSES = {"detection": [HOSTILE, "WBC", "Platelets"], "segmentation": ["background", HOSTILE, "cell"], "faces": []}


def write_task_run(
    folder: Path, task: str, *, control: bool = True, gain: float = 2.0, epochs: int = 4, seed: int = 0,
    said: bool = True, finished: bool = True, taught: bool = True,
) -> Path:  # fmt: skip
    """A run whose values are ``gain`` above its control's; ``said``: whether its recipe names the task."""
    folder.mkdir(parents=True)
    terms = {"task": 1.0, "pefd": {"weight": 10}} if taught else {"task": 1.0}
    recipe: dict[str, Any] = {
        "data": {"source": "coco", "path": "cells"}, "student": {"model": "resnet18"},
        "teacher": {"model": None, "weights": "runs/large"} if taught else None,
        "objective": terms, "epochs": epochs, "seed": seed, "control": control,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(({"task": task} if said else {}) | recipe, sort_keys=False))
    best = {key: value + gain for key, value in _TASKS[task].items()}
    rows = [
        {"epoch": epoch, "step": 50 * epoch, "lr": 0.1, **dict.fromkeys([*terms, "total"], 3.0 / epoch), "seconds": 2.0}
        | {key: value * epoch / epochs for key, value in best.items()}
        for epoch in range(1, epochs + 1)
    ]
    with open(folder / "metrics.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    own = {"loss_box": 0.5, "loss_classes": 0.25} if task == "detection" else {}
    steps = [
        {"step": 10 * n, "epoch": (n - 1) // 5, "lr": 0.1, **dict.fromkeys([*terms, "total"], 3.0 / n), **own,
         "steps_per_second": 2.0, "ms": {"forward": 9.0}}
        for n in range(1, 5 * epochs + 1)
    ]  # fmt: skip
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    if finished:
        result = _result(task, best, taught)
        (folder / "result.json").write_text(json.dumps(result))
        if task == "faces":
            write_roc(folder, taught)
        else:
            write_pictures(folder, task)
    if control and taught:
        write_task_run(folder / "control", task, control=False, gain=0.0, epochs=epochs, seed=seed, said=said,
                       taught=False)  # fmt: skip
    return folder


def _result(task: str, best: dict[str, float], taught: bool) -> dict[str, Any]:
    cost = {"parameters": 12_000_000, "macs": 5_000_000_000, "latency_ms": 40.0, "bytes": 48_000_000}
    rows = {"student": best | cost}
    key = next(iter(best))
    if taught:
        rows = {
            "teacher": {name: value + 5 for name, value in best.items()} | cost | {"parameters": 41_000_000},
            **rows,
        }
    result = {
        "rows": rows, "epochs": 4, "seconds": 8.0, "classes": CLASSES[task], "best": {"epoch": 4, key: best[key]},
        "data": {"identity": "f0b0", "train": 200, "val": 70}, "times": {"forward": 5.0}, "versions": {},
    }  # fmt: skip
    if task != "faces":
        student = {name: best[key] + 3.0 * n for n, name in enumerate(CLASSES[task])}
        student["seen nowhere"] = math.nan
        result["per_class"] = {"student": {k: None if math.isnan(v) else v for k, v in student.items()}}
        if taught:
            result["per_class"]["teacher"] = dict.fromkeys(CLASSES[task], 50.0)
    return result


def write_pictures(folder: Path, task: str, count: int = 3, width: int = 640, height: int = 480) -> None:
    """Some images with boxes or masks, the first one's name hostile."""
    room = folder / "pictures"
    room.mkdir()
    rng = np.random.default_rng(0)
    entries = []
    for n in range(count):
        noise = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(room / f"{n:03}.jpg")
        entry: dict[str, Any] = {"file": f"pictures/{n:03}.jpg", "name": HOSTILE if n == 0 else f"{n:03}.jpg"}
        if task == "detection":
            box = [64 + 10 * n, 48, 320, 240]
            entry |= {"size": [width, height], "truth": [[*box, HOSTILE], [400, 300, 600, 470, 1]],
                      "student": [[*box, 0, 0.9], [10, 10, 60, 60, 2, 0.3]], "teacher": [[*box, 0, 0.95]]}  # fmt: skip
        else:
            for who in ("truth", "student", "teacher"):
                mask = np.zeros((height, width), np.uint8)
                mask[100:200, 100:300], mask[300:350, 50:100], mask[:10] = 1, 2, 255
                Image.fromarray(mask).save(room / f"{n:03}-{who}.png")
                entry[who] = f"pictures/{n:03}-{who}.png"
        entries.append(entry)
    (room / "pictures.json").write_text(json.dumps(entries))


def write_roc(folder: Path, taught: bool, points: Sequence[float] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)) -> None:
    curves = {"student": {"far": list(points), "tar": [0.5 + 0.1 * n for n in range(len(points))]}}
    if taught:
        curves["teacher"] = {"far": list(points), "tar": [min(1.0, 0.7 + 0.1 * n) for n in range(len(points))]}
    (folder / "roc.json").write_text(json.dumps(curves))
