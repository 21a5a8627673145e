"""Two processes on two cores against one on one: PEFD with a live teacher, resnet32x4 -> resnet8x4, batch 64.

Both take the same steps of 64 images; of two processes each has 32 of them, and their gradients are averaged (gloo).
Rounds of the one and the other alternate, and each is a process group of its own.

    python benchmarks/processes.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from pair import images_of, loader_of, loop_of, ratio, teacher_of

from potstill.methods.objective import PEFD_OBJECTIVE
from potstill.training.distributed import joined

BATCH, IMAGES, WARM = 64, 2048, 3


def steps(count: int, teacher: str, student: str) -> None:
    """A process's part: the seconds a step, printed by the first process."""
    torch.set_num_threads(1)
    images, labels = images_of(None, IMAGES)
    with joined("cpu") as processes, tempfile.TemporaryDirectory() as folder:
        loader = loader_of(images, labels, BATCH, rank=processes.rank, world=processes.world)
        live = teacher_of(teacher, torch.bfloat16)
        loop = loop_of(
            student, PEFD_OBJECTIVE, live, live, loader, Path(folder), torch.bfloat16, processes=processes
        ).stepwise()
        for _ in range(WARM):
            next(loop)
        began = time.perf_counter()
        for _ in range(count):
            next(loop)
        if processes.main:
            print((time.perf_counter() - began) / count)


def measured(processes: int, arguments: argparse.Namespace) -> float:
    """Seconds a step of so many processes."""
    own = [__file__, "--measure", "--steps", str(arguments.steps)]
    own += ["--teacher", arguments.teacher, "--student", arguments.student]
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *own], env=environment, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        steps(arguments.steps, arguments.teacher, arguments.student)
        return
    one, two = [], []
    for _ in range(arguments.rounds):
        one.append(measured(1, arguments))
        two.append(measured(2, arguments))
    for label, seconds in (("one process, one core", one), ("two processes, two cores", two)):
        step = statistics.median(seconds)
        print(f"{label}: {1000 * step:.0f} ms a step, {BATCH / step:.0f} images/s")
    print(f"two over one: {ratio(one, two)}, median and quartiles of {arguments.rounds} rounds")


if __name__ == "__main__":
    main()
