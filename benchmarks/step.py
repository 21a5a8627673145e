"""Is the house's training step as fast as a plain loop? PEFD, resnet32x4 -> resnet8x4, batch 64.

Both train on the very same batches in one process, a step of the one after a step of the other, so that whatever else
the machine does meets both. Prints the ratio of their times: median and quartiles over the steps.

    python benchmarks/step.py --threads 2
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from plain import PlainLoop
from torch import nn

import potstill.networks.cifar  # noqa: F401 - registers the zoo with timm
from potstill.batch import Batch
from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation
from potstill.methods.base import Setting
from potstill.methods.objective import PEFD_OBJECTIVE, Objective
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Silent
from potstill.training.settings import Settings
from potstill.training.step import TrainingStep

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Interleaved:
    """A loader that takes a step of the plain loop before it hands a batch to Potstill's, and times both."""

    def __init__(self, loader: ResidentLoader, plain: PlainLoop, steps: int) -> None:
        self.loader, self.plain, self.steps = loader, plain, steps
        self.times: list[tuple[float, float]] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        batches = self.loader.epoch(epoch, start)
        for _, step in zip(range(self.steps), batches, strict=False):
            began = time.perf_counter()
            self.plain.step(step[0].images, step[0].targets)
            between = time.perf_counter()
            yield step
            self.times.append((between - began, time.perf_counter() - between))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--teacher", default="resnet32x4")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(4096) % 100
    plan = Plan(length=4096, batch_size=64, seed=0, shuffle=True)
    loader = ResidentLoader(images, labels, plan, Augmentation(32, "pad", flip=True), MEAN, STD)

    def create(name: str) -> nn.Module:
        return timm.create_model(name, num_classes=100).to(memory_format=torch.channels_last)

    loader = Interleaved(loader, PlainLoop(create(args.student), create(args.teacher)), min(args.steps, plan.steps))
    device = torch.device("cpu")
    student = tap(create(args.student)).to(memory_format=torch.channels_last)
    teacher = Teacher(tap(create(args.teacher)), mean=MEAN, std=STD, student_mean=MEAN, student_std=STD, device=device)
    objective = Objective(Setting(student.spec, teacher.spec), PEFD_OBJECTIVE)
    with tempfile.TemporaryDirectory() as folder:
        Loop(
            TrainingStep(student, objective), teacher, loader, dict, make_optimizer([student, objective]),
            Settings(epochs=1), Checkpoints(Path(folder)), Processes(device), Silent(), Interrupt(),
        ).run()  # fmt: skip
    warm = loader.times[3:]
    ratios = sorted(ours / plain for plain, ours in warm)
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain = statistics.median(plain for plain, _ in warm)
    print(f"{args.teacher} -> {args.student}, batch 64, float32, {args.threads} threads, {len(warm)} steps of each")
    print(f"plain loop: {plain * 1000:.0f} ms a step, {64 / plain:.0f} images/s")
    print(f"Potstill / plain: median {middle:.3f}, quartiles {low:.3f} .. {high:.3f}")


if __name__ == "__main__":
    main()
