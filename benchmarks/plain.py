"""The plain loop that Potstill is compared with: distillation as the published repositories write it.

Float32, eager, NCHW; torchvision's transforms on PIL images, a DataLoader with worker processes, the teacher under
``no_grad``. PEFD with three projectors. Other benchmarks import it; by itself it trains and prints its accuracy:

    python benchmarks/plain.py --data path/to/cifar100 --teacher-run runs/teacher --student resnet8 --epochs 8 --seed 10
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import potstill.networks.cifar  # noqa: F401 - registers the zoo with timm

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Images(Dataset):
    """Images in memory, each through the transform as a PIL image, as torchvision's CIFAR100 gives them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, training: bool) -> None:
        ours = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if training else []
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([*ours, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class PlainLoop:
    """A student, a teacher and three projectors in plain PyTorch."""

    def __init__(self, student: nn.Module, teacher: nn.Module, lr: float = 0.05, nesterov: bool = False) -> None:
        self.student, self.teacher = student.train(), teacher.eval()
        dims = (student.num_features, teacher.num_features)
        self.projectors = nn.ModuleList(nn.Linear(*dims) for _ in range(3))
        parameters = [*self.student.parameters(), *self.projectors.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=nesterov)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            target = self.teacher.forward_head(self.teacher.forward_features(images), pre_logits=True)
        embedding = self.student.forward_head(self.student.forward_features(images), pre_logits=True)
        logits = self.student.get_classifier()(embedding)
        projected = sum(F.relu(projector(embedding)) for projector in self.projectors) / 3
        cosine = F.cosine_similarity(projected, target, dim=1)
        loss = F.cross_entropy(logits, labels) + 25 * (1 - cosine.mean())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def batches(images: np.ndarray, labels: np.ndarray, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled training batches without end."""
    loader = DataLoader(
        Images(images, labels, training=True), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader


@torch.no_grad()
def accuracy(student: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 in percent."""
    student.eval()
    loader = DataLoader(Images(images, labels, training=False), 256)
    right = sum((student(x).argmax(1) == y).sum().item() for x, y in loader)
    student.train()
    return 100 * right / len(images)


def main() -> None:
    """Train by the schedule of recipes/cifar100-cpu.yaml: one cycle, and the accuracy of the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-run", type=Path, required=True, help="a run's folder, of a network of the CIFAR zoo")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    from potstill.data.materialise import materialise
    from potstill.data.open import open_data

    split = open_data(path=arguments.data)
    images, labels = materialise(split.train).images, split.train.labels
    torch.manual_seed(arguments.seed)
    teacher = timm.create_model(arguments.teacher, num_classes=100)
    teacher.load_state_dict(load_file(arguments.teacher_run / "student.safetensors"))
    loop = PlainLoop(timm.create_model(arguments.student, num_classes=100), teacher, arguments.lr, nesterov=True)
    steps = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        loop.optimizer, arguments.lr, arguments.epochs * steps, anneal_strategy="cos", cycle_momentum=False
    )
    training = DataLoader(Images(images, labels, training=True), 64, shuffle=True, num_workers=arguments.workers)
    for epoch in range(arguments.epochs):
        began = time.perf_counter()
        for x, y in training:
            loop.step(x, y)
            schedule.step()
        judged = accuracy(loop.student, materialise(split.val).images, split.val.labels)
        print(f"epoch {epoch + 1}: top-1 {judged:.2f} %, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
