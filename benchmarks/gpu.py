"""Distilling on a GPU: PEFD q=3, resnet32x4 -> resnet8x4, CIFAR-100's images, step by step and from start to end.

One process takes blocks of steps of each in turn, at each size of a batch:

* plain: a loop as the published repositories write it, float32 and eager, on the batches of the loader below;
* eager: Potstill in bfloat16 with its images on the device, one kernel after another;
* compiled: the same with student and teacher through torch.compile;
* graph: the whole step as one CUDA graph;
* graph+compiled: both.

``--full`` then trains the student by the shipped recipe with Potstill's own command, all epochs, after the teacher
(unless ``--teacher RUN`` gives one), and takes the times and the accuracy that the run wrote down. What needs a CUDA
device is named and left out where there is none.

    python benchmarks/gpu.py --data path/to/cifar100 --full --out gpu.json
    python benchmarks/gpu.py --device cpu --steps 2 --rounds 2 --batch 8 --images 64
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pair import CLASSES, MEAN, STD, create, images_of, machine, taking
from plain import PlainLoop

from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation
from potstill.methods.base import Setting
from potstill.methods.objective import PEFD_OBJECTIVE, Objective
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes, choose_device
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Silent
from potstill.training.settings import Settings
from potstill.training.step import TrainingStep

MODES = ("plain", "eager", "compiled", "graph", "graph+compiled")
WARM = 8  # steps before any is timed: compiling, choosing kernels, recording
RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "pefd" / "table5"
ALONE, TAUGHT = RECIPES / "res32x4-res8x4-student.yaml", RECIPES / "res32x4-res8x4-pefd.yaml"

Take = Callable[[], object]


def loader_of(arguments: argparse.Namespace, batch: int, device: torch.device) -> ResidentLoader:
    images, labels = images_of(arguments.data, arguments.images)
    whole = len(images) - len(images) % batch  # a short last batch would be another step, and be compiled apart
    images, labels = images[:whole], labels[:whole]
    plan = Plan(length=len(images), batch_size=batch, seed=0, shuffle=True)
    return ResidentLoader(images, labels, plan, Augmentation(32, "pad", flip=True), MEAN, STD, device)


def plain(arguments: argparse.Namespace, batch: int, device: torch.device) -> Take:
    """A step of the plain loop on the next batch."""
    teacher, student = (create(name).to(device) for name in arguments.networks)
    loop, loader = PlainLoop(student, teacher), loader_of(arguments, batch, device)
    loop.projectors.to(device)  # in place, as the optimiser has them

    def endless():
        for epoch in range(10**9):
            for (one,) in loader.epoch(epoch):
                yield loop.step(one.images.contiguous(), one.targets)

    return taking(endless())


def potstill(arguments: argparse.Namespace, batch: int, device: torch.device, mode: str, folder: Path) -> Take:
    """A step of Potstill's loop."""
    graph, compiled = mode.startswith("graph"), mode.endswith("compiled")
    half = device.type == "cuda"
    first, second = (tap(create(name), input_size=(3, 32, 32)) for name in arguments.networks)
    teacher = Teacher(
        first, mean=MEAN, std=STD, student_mean=MEAN, student_std=STD, device=device, compile=compiled,
        precision=torch.bfloat16 if half else torch.float32,
    )  # fmt: skip
    student = second.to(device).to(memory_format=torch.channels_last)
    loader = loader_of(arguments, batch, device)
    setting = Setting(student.spec, teacher.spec, samples=loader.plan.length, batch_size=batch)
    objective = Objective(setting, PEFD_OBJECTIVE).to(device)
    step = TrainingStep(student, objective, autocast=torch.bfloat16 if half else None, compiled=compiled)
    settings = Settings(epochs=10**6, log_every=10**9, shares_every=0, checkpoint_epochs=10**9, graph=graph)
    return taking(
        Loop(
            step, teacher, loader, dict, make_optimizer([student, objective], recorded=graph), settings,
            Checkpoints(folder), Processes(device), Silent(), Interrupt(),
        ).stepwise()
    )  # fmt: skip


def waiting(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def prepared(take: Callable[[], Take], device: torch.device) -> tuple[Take, float | None]:
    """A run with its first steps behind it, and the MiB of the device's memory that PyTorch took for it."""
    if device.type != "cuda":
        run = take()
        run()
        return run, None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    run = take()
    for _ in range(WARM):
        run()
    torch.cuda.synchronize(device)
    return run, (torch.cuda.max_memory_reserved(device) - before) / 2**20


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def steps_of(arguments: argparse.Namespace, batch: int, device: torch.device, modes: list[str]) -> dict[str, Any]:
    """What a step of each mode takes, in blocks that follow each other."""
    torch.compiler.reset()  # few graphs are kept for one network
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Callable[[], Take]] = {
            mode: (lambda: plain(arguments, batch, device))
            if mode == "plain"
            else (lambda mode=mode: potstill(arguments, batch, device, mode, Path(folder) / mode))
            for mode in modes
        }
        runs = {mode: prepared(take, device) for mode, take in made.items()}
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        for _ in range(arguments.rounds):
            for mode, (run, _) in runs.items():
                began = waiting(device)
                for _ in range(arguments.steps):
                    run()
                seconds[mode].append((waiting(device) - began) / arguments.steps)
    found: dict[str, Any] = {}
    for mode, times in seconds.items():
        found[mode] = {
            "ms": quartiles([1000 * one for one in times]),
            "images_per_second": batch / statistics.median(times),
            "memory_mib": runs[mode][1],
        }
        if "plain" in seconds:
            found[mode]["times_plain"] = quartiles([a / b for a, b in zip(seconds["plain"], times, strict=True)])
    return found


def trained(command: str, recipe: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """A run by Potstill's own command: what it wrote down, and the seconds of the whole command."""
    began = time.perf_counter()
    run = [sys.executable, "-m", "potstill", command, str(recipe), *overrides, f"run={folder}"]
    if code := subprocess.run(run).returncode:
        raise SystemExit(f"{' '.join(run)} ended with {code}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    taken = {name: result[name] for name in ("epochs", "seconds", "times")}
    return taken | {"command_seconds": time.perf_counter() - began, "student": result["rows"]["student"]}


def full(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The teacher, where there is none, and then the student, by the shipped recipe's values."""
    teacher, student = arguments.networks
    common = [f"device={device}", *([f"data.path={arguments.data}"] if arguments.data else []), *arguments.override]
    runs, found = Path(arguments.runs), {}
    weights = arguments.teacher
    if weights is None:
        weights = runs / "teacher"
        found["teacher"] = trained("train", ALONE, weights, [f"student.model={teacher}", *common])
    taught = [f"student.model={student}", f"teacher.model={teacher}", f"teacher.weights={weights}"]
    found["student"] = trained("distill", TAUGHT, runs / "student", [*taught, *common])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-100; noise of its shape without it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=100, help="in a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="all of them, where nothing is said")
    parser.add_argument("--networks", nargs=2, default=["resnet32x4", "resnet8x4"], metavar=("TEACHER", "STUDENT"))
    parser.add_argument("--full", action="store_true", help="train to the end, too")
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="a trained teacher's run, for --full")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where --full trains")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipes of --full")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.images < max(arguments.batch):
        parser.error("quartiles take two rounds or more, and a step a whole batch of images")
    if arguments.full and arguments.data is None and not arguments.override:
        parser.error("--full trains on real images: give --data")
    device = choose_device(arguments.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "no GPU"
    left_out = {}
    if not on_gpu:
        left_out = dict.fromkeys(MODES[3:], f"CUDA graphs need a CUDA device, and this is {device.type}")
        if arguments.modes is None:
            left_out = {"compiled": "compiling takes minutes here; ask for it with --modes"} | left_out
    asked = arguments.modes or MODES
    modes = [mode for mode in asked if mode not in left_out]
    report: dict[str, Any] = {
        "device": name, "machine": machine(), "networks": arguments.networks, "classes": CLASSES,
        "precision": "bfloat16" if on_gpu else "float32", "steps": arguments.steps, "rounds": arguments.rounds,
        "left_out": {mode: reason for mode, reason in left_out.items() if mode in asked}, "batches": {},
    }  # fmt: skip
    print(f"{' -> '.join(arguments.networks)} on {name}; {report['machine']}; Potstill in {report['precision']}")
    for mode, reason in report["left_out"].items():
        print(f"left out: {mode} ({reason})")
    for batch in arguments.batch:
        found = report["batches"][str(batch)] = steps_of(arguments, batch, device, modes)
        print(f"\nbatch {batch:<8} {'ms a step (quartiles)':>26} {'images/s':>9} {'times plain':>12} {'MiB':>7}")
        for mode, row in found.items():
            ms, over = row["ms"], row.get("times_plain", {}).get("median")
            times = f"{ms['median']:.2f} ({ms['low']:.2f} to {ms['high']:.2f})"
            ratio = "" if over is None else f"{over:.2f}"
            memory = "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}"
            print(f"{mode:14} {times:>26} {row['images_per_second']:>9.0f} {ratio:>12} {memory:>7}")
    if arguments.full:
        report["full"] = full(arguments, device)
        for who, run in report["full"].items():
            print(f"{who}: {run['epochs']} epochs in {run['seconds']:.0f} s; {json.dumps(run['student'])}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
