"""Augmented CIFAR-sized images a second from the device-resident loader alone (pad-crop 4, flip, normalise to float32).

python benchmarks/loader.py
python benchmarks/loader.py --data path/to/cifar100 --batch 128 --threads 1 2
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from potstill.data.order import Plan
from potstill.data.resident import ResidentLoader
from potstill.data.views import Augmentation


def load(path: Path | None) -> np.ndarray:
    """``(N, 32, 32, 3)`` uint8: the training images of a CIFAR or Parquet folder, or 50,000 of noise."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    from potstill.data.materialise import materialise
    from potstill.data.open import open_data

    return materialise(open_data(path=path).train).images


def rate(loader: ResidentLoader, epoch: int) -> float:
    """Images a second over one epoch."""
    started = time.perf_counter()
    count = sum(len(batch) for step in loader.epoch(epoch) for batch in step)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Print one line for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of CIFAR; noise of its size without it")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    images = load(arguments.data)
    plan = Plan(length=len(images), batch_size=arguments.batch, seed=0, shuffle=True)
    augmentation = Augmentation(size=images.shape[1:3], crop="pad", padding=4, flip=True, seed=0)
    labels = np.zeros(len(images), dtype=np.int64)
    loader = ResidentLoader(images, labels, plan, augmentation, mean=[0.5] * 3, std=[0.25] * 3)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rate(loader, epoch=0)  # memory is touched and threads are started
        rates = [rate(loader, epoch) for epoch in range(1, arguments.repeats + 1)]
        print(
            f"batch {arguments.batch}, {threads} threads: {statistics.median(rates):,.0f} images/s "
            f"(median of {len(rates)}; {min(rates):,.0f} to {max(rates):,.0f})"
        )


if __name__ == "__main__":
    main()
