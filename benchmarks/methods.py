"""What each method costs: resnet32x4 -> resnet8x4, batch 64, the whole step against KD's.

Each method's step is taken between two steps of KD in one process, so that a drift of the machine's speed falls out of
the ratio. Printed are that ratio (median and quartiles over the rounds), the milliseconds that it is, and what a method
needs beside KD: parameters and buffers of its own, and what its terms keep for the backward pass.

    python benchmarks/methods.py --threads 2 --rounds 15
    python benchmarks/methods.py --only pefd,nd,crd --rounds 40
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.methods.base import Known, Setting
from potstill.methods.objective import Objective
from potstill.networks.build import build_network
from potstill.networks.teacher import Teacher
from potstill.training.optimizers import make_optimizer
from potstill.training.step import TrainingStep

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
BATCH, CLASSES, SAMPLES = 64, 100, 50_000
KD = {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4.0}}

# What each method trains on by itself, beside the cross entropy that all of them have.
OBJECTIVES: dict[str, dict[str, float | dict[str, float | int | str | bool]]] = {
    "pefd": {"ce": 1, "pefd": 25}, "nd": {"ce": 1, "nd": 2}, "kd++": {"ce": 1, "kd": 3.5, "nd": 2},
    "dkd": {"ce": 1, "dkd": 1}, "dist": {"ce": 1, "dist": 2}, "fitnets": {"ce": 1, "fitnets": 100},
    "at": {"ce": 1, "at": 1000}, "sp": {"ce": 1, "sp": 3000}, "cc": {"ce": 1, "cc": 0.02}, "rkd": {"ce": 1, "rkd": 1},
    "pkt": {"ce": 1, "pkt": 30000}, "vid": {"ce": 1, "vid": 1}, "nst": {"ce": 1, "nst": 50}, "ab": {"ce": 1, "ab": 1},
    "fsp": {"ce": 1, "fsp": 50}, "ft": {"ce": 1, "ft": 200}, "crd": {"ce": 1, "crd": 0.8},
    "srrl": {"ce": 1, "srrl": 1}, "cid": {"ce": 1, "cid": 1}, "afd": {"ce": 1, "afd": 200},
    "reviewkd": {"ce": 1, "reviewkd": 5}, "ofd": {"ce": 1, "ofd": 1}, "semckd": {"ce": 1, "semckd": 400},
    "vkd": {"ce": 1, "vkd": 1}, "dml": {"ce": 1, "dml": 1}, "mimic": {"ce": 1, "mimic": 1},
}  # fmt: skip


@dataclass
class Contender:
    """A student with its objective and its optimiser, ready to step."""

    name: str
    step: TrainingStep
    optimizer: torch.optim.Optimizer
    extra: int  # bytes of the methods' parameters and buffers

    def take(self, teacher: Teacher, batch: Batch) -> float:
        """One whole step, the teacher's pass included; its seconds."""
        start = time.perf_counter()
        seen = teacher(batch.images, **self.step.objective.needs.on_demand("teacher"))
        losses, _ = self.step(batch, seen)
        losses["total"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def kept(self, teacher: Teacher, batch: Batch) -> int:
        """Bytes that the terms keep for the backward pass, each storage once."""
        needs = self.step.objective.needs
        student = self.step.student(batch.images, **needs.on_demand("student"))
        seen = teacher(batch.images, **needs.on_demand("teacher"))
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.step.objective(student, seen, batch)
        inside = {t.untyped_storage().data_ptr() for t in (student.logits, student.embedding, *student.maps)}
        return sum(size for pointer, size in storages.items() if pointer not in inside)


def contender(name: str, terms: dict, teacher: Teacher) -> Contender:
    """A fresh student for an objective."""
    torch.manual_seed(0)
    student = build_network("resnet8x4", classes=CLASSES, input_size=(3, 32, 32)).to(memory_format=torch.channels_last)
    network = teacher.network
    setting = Setting(
        student.spec, teacher.spec, samples=SAMPLES, batch_size=BATCH, classifier=network.classifier(),
        norms=network.norms(),
    )  # fmt: skip
    objective = Objective(setting, terms)
    labels = torch.arange(SAMPLES) % CLASSES
    objective.prepare(Known(labels, torch.rand(CLASSES, teacher.spec.embedding_dim)))
    objective.start_epoch(0)
    step = TrainingStep(student, objective).train()
    extra = sum(t.numel() * t.element_size() for t in [*objective.parameters(), *objective.buffers()])
    return Contender(name, step, make_optimizer([student, objective]), extra)


def batches() -> Iterator[Batch]:
    """Noise images of CIFAR's shape, another batch each time."""
    generator = torch.Generator().manual_seed(0)
    while True:
        index = torch.randint(SAMPLES, (BATCH,), generator=generator)
        images = torch.randn(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        yield Batch(images, index % CLASSES, index, torch.zeros_like(index))


def main() -> None:
    """Measure, and print a row a method."""
    parser = argparse.ArgumentParser(description="The cost of each method's step against KD's.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="names, with commas between them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = arguments.only.split(",") if arguments.only else list(OBJECTIVES)
    network = build_network("resnet32x4", classes=CLASSES, input_size=(3, 32, 32))
    teacher = Teacher(network, mean=MEAN, std=STD, student_mean=MEAN, student_std=STD)
    network.open(preacts=True, blocks=True)
    base = contender("kd", KD, teacher)
    others = [contender(name, OBJECTIVES[name], teacher) for name in wanted]
    source = batches()
    for one in [base, *others]:  # the first steps allocate
        one.take(teacher, next(source))
        one.take(teacher, next(source))
    ratios: dict[str, list[float]] = {one.name: [] for one in others}
    reference = []
    for _ in range(arguments.rounds):
        for one in others:
            before = base.take(teacher, next(source))
            own = one.take(teacher, next(source))
            after = base.take(teacher, next(source))
            ratios[one.name].append(2 * own / (before + after))
            reference += [before, after]
    kept = base.kept(teacher, next(source))
    print(f"KD: {1000 * statistics.median(reference):.0f} ms a step, {arguments.threads} threads, batch {BATCH}")
    print(f"{'method':<10} {'step / KD':>9}  {'quartiles':>15} {'ms more':>8} {'own MB':>8} {'kept MB':>8}")
    for one in sorted(others, key=lambda one: statistics.median(ratios[one.name])):
        low, median, high = statistics.quantiles(ratios[one.name], n=4)
        more = 1000 * statistics.median(reference) * (median - 1)
        extra = (one.kept(teacher, next(source)) - kept) / 1e6
        times = f"{one.name:<10} {median:>9.3f}  {low:>6.3f} .. {high:<6.3f} {more:>7.1f}"
        print(f"{times} {one.extra / 1e6:>8.1f} {extra:>8.1f}")


if __name__ == "__main__":
    main()
