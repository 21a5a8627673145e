"""What the benchmarks share: a pair of networks, images, a store, and loops that can be taken a few steps at a time."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import potstill.networks.cifar  # noqa: F401 - registers the zoo with timm
from potstill.data.order import Plan
from potstill.data.random import AUGMENTATION_VERSION
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation
from potstill.methods.base import Known, Setting
from potstill.methods.objective import Objective
from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher, Teaches
from potstill.store import Layout, Store, StoreKey
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes
from potstill.training.interrupts import Interrupt
from potstill.training.loop import Loop
from potstill.training.optimizers import make_optimizer
from potstill.training.reporting import Silent
from potstill.training.settings import Settings
from potstill.training.step import TrainingStep

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CLASSES = 100


def images_of(path: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-100's first training images with their labels; noise of the same shape without a path."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % CLASSES
    from potstill.data.materialise import materialise
    from potstill.data.open import open_data

    train = open_data(path=path).train
    return materialise(train).images[:count], train.labels[:count]


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES)


def loader_of(
    images: np.ndarray, labels: np.ndarray, batch: int, views: int | None = None, rank: int = 0, world: int = 1
) -> ResidentLoader:
    plan = Plan(length=len(images), batch_size=batch, seed=0, shuffle=True, rank=rank, world=world)
    return ResidentLoader(images, labels, plan, Augmentation(32, "pad", flip=True), MEAN, STD, views=views)


def teacher_of(name: str, precision: torch.dtype) -> Teacher:
    return Teacher(tap(create(name)), mean=MEAN, std=STD, student_mean=MEAN, student_std=STD, precision=precision)


def loop_of(
    student: str, objective: Mapping[str, Any], teacher: Teacher, teaching: Teaches | None, loader: ResidentLoader,
    folder: Path, autocast: torch.dtype | None = None, compiled: bool = False, processes: Processes | None = None,
) -> Loop:  # fmt: skip
    """Potstill's own loop, without end."""
    network = tap(create(student)).to(memory_format=torch.channels_last)
    setting = Setting(
        network.spec, teacher.spec, samples=loader.plan.length, batch_size=loader.plan.batch_size,
        classifier=teacher.network.classifier(),
    )  # fmt: skip
    terms = Objective(setting, objective)
    terms.prepare(Known(loader.labels, torch.rand(CLASSES, teacher.spec.embedding_dim)))
    settings = Settings(epochs=1000, log_every=10**9, shares_every=0, checkpoint_epochs=10**9)
    step = TrainingStep(network, terms, autocast=autocast, compiled=compiled)
    return Loop(
        step, teaching, loader, dict, make_optimizer([network, terms]), settings, Checkpoints(folder),
        processes or Processes(torch.device("cpu")), Silent(), Interrupt(),
    )  # fmt: skip


class StoreTeaching:
    """A store's rows in the teacher's place."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def features(self, batch: Any, **reads: bool) -> Any:
        return self.store.read(batch.index, batch.view)

    def settle(self) -> None:
        """Nothing is written."""


def store_of(folder: Path, teacher: Teacher, loader: ResidentLoader, views: int) -> tuple[Store, float]:
    """A store of some views of all images, in fp16, and the seconds that it took."""
    key = StoreKey(
        teacher=teacher.identity, teacher_input=teacher.input(), precision="bf16", taps=("logits", "embedding"),
        data="benchmark", classes=(), samples=loader.plan.length, augmentation={}, dtype="fp16",
        augmentation_version=AUGMENTATION_VERSION,
    )  # fmt: skip
    (one,) = next(iter(loader.requested([(torch.tensor([0]), [0])])))
    store = Store.create(folder, key, Layout.of(teacher.features(one), key.taps, key.dtype), views)
    blocks = [torch.arange(k, min(k + 64, store.samples)) for k in range(0, store.samples, 64)]
    began = time.perf_counter()
    for batches in loader.requested([(block, range(views)) for block in blocks]):
        for batch in batches:
            store.write(batch.index, batch.view, teacher.features(batch))
    store.commit()
    return Store.open(folder), time.perf_counter() - began


def blocks_of(
    runs: Mapping[str, Callable[[], object]], steps: int, rounds: int, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds a step of each run, in blocks of ``steps`` one after the other, ``rounds`` times over."""
    for run in runs.values():
        for _ in range(warm):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(steps):
                run()
            seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def ratio(over: list[float], under: list[float]) -> str:
    """Median and quartiles of the ratios, round by round."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(over, under, strict=True)], n=4)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def taking(steps: Iterator[Any]) -> Callable[[], object]:
    return lambda: next(steps)


def machine() -> str:
    """The processor, how much of it, and the libraries."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    libraries = f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name}, {libraries}"
