"""Photographs a second from a folder: ours against torchvision's ImageFolder in PyTorch's DataLoader.

Both give batches of random resized crops, flipped and normalised, with as many workers, in turns in one process, so
that whatever else the machine does meets both. Then what decoding costs at several sizes of photograph, with and
without decoding at a smaller scale.

    python benchmarks/streaming.py --data path/to/photographs --workers 2
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import datasets, transforms

from potstill.data.decode import decoding
from potstill.data.decoder import Decoder
from potstill.data.folder import FolderSource
from potstill.data.order import Plan
from potstill.data.source import IMAGENET, Subset
from potstill.data.streaming import StreamingLoader
from potstill.data.views import Augmentation

SIZES = ((500, 375), (1000, 750), (2000, 1500), (4000, 3000))  # width, height


@dataclass(frozen=True)
class Comparison:
    """Images a second in each round."""

    ours: list[float]
    theirs: list[float]

    def ratio(self) -> tuple[float, float, float]:
        """Ours over theirs: lower quartile, median, upper quartile of the rounds."""
        low, middle, high = statistics.quantiles((a / b for a, b in zip(self.ours, self.theirs, strict=True)), n=4)
        return low, middle, high


def torchvision_loader(data: Path, images: int, size: int, batch: int, workers: int) -> DataLoader:
    """The loader of the published training scripts."""
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )
    once = datasets.ImageFolder(str(data), view)
    repeated = ConcatDataset([once] * -(-images // len(once)))
    chosen = torch.utils.data.Subset(repeated, range(images))
    return DataLoader(chosen, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def potstill_loader(data: Path, images: int, size: int, batch: int, workers: int, draft: bool) -> StreamingLoader:
    """The same images in the same batches."""
    once = FolderSource(data)
    repeated = Subset(once, np.arange(images) % len(once))
    view = Augmentation(size, crop="resized", flip=True, seed=0)
    plan = Plan(images, batch, seed=0, shuffle=True)
    return StreamingLoader(repeated, plan, view, *IMAGENET, workers=workers, draft=draft)


def rate(batches: Iterable[int]) -> float:
    """Images a second of an epoch, given the size of each batch as it comes."""
    began = time.perf_counter()
    count = sum(batches)
    return count / (time.perf_counter() - began)


def compare(
    data: Path, images: int, size: int, batch: int, workers: int, rounds: int, draft: bool = True
) -> Comparison:
    """An epoch of ours and one of theirs in turns, after one of each that starts the workers and fills the caches."""
    ours = potstill_loader(data, images, size, batch, workers, draft)
    theirs = torchvision_loader(data, images, size, batch, workers)
    found = Comparison([], [])
    for epoch in range(rounds + 1):
        mine = rate(len(batch) for step in ours.epoch(epoch) for batch in step)
        other = rate(len(images) for images, _ in theirs)
        if epoch:
            found.ours.append(mine)
            found.theirs.append(other)
    return found


def photographs(data: Path, folder: Path, size: tuple[int, int], count: int) -> FolderSource:
    """Some of the photographs enlarged to (width, height), saved as cameras do."""
    folder.mkdir()
    found = FolderSource(data)
    for number in range(count):
        image = Image.fromarray(found.image(number * len(found) // count))
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:03d}.jpg", quality=90)
    return FolderSource(folder)


def decoding_rates(source: FolderSource, size: int, rounds: int) -> tuple[float, float]:
    """Images a second of one core, from file to view, with draft and without; medians of rounds taken in turns."""
    view = Augmentation(size, crop="resized", flip=True, seed=0)
    everything = list(range(len(source)))
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for draft, found in rates.items():
            decoder = Decoder(source, view, skip=False, draft=draft)
            began = time.perf_counter()
            decoder[everything, [number]]
            found.append(len(everything) / (time.perf_counter() - began))
    return statistics.median(rates[True]), statistics.median(rates[False])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a sub-folder of photographs a class")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2400, help="images an epoch; the photographs are repeated")
    parser.add_argument("--photographs", type=int, default=16, help="of each size, for the cost of decoding")
    args = parser.parse_args()
    torch.set_num_threads(1)

    found = compare(args.data, args.images, args.size, args.batch, args.workers, args.rounds)
    low, middle, high = found.ratio()
    print(f"{args.size} x {args.size}, batch {args.batch}, {args.workers} workers; {decoding(draft=True)}")
    print(f"Potstill: {statistics.median(found.ours):,.0f} images/s (median of {args.rounds} rounds)")
    print(f"torchvision: {statistics.median(found.theirs):,.0f} images/s")
    print(f"Potstill / torchvision: median {middle:.2f}, quartiles {low:.2f} .. {high:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            source = photographs(args.data, Path(folder) / f"{width}", (width, height), args.photographs)
            draft, full = decoding_rates(source, args.size, args.rounds)
            print(f"{width} x {height}, one core: {draft:,.0f} images/s, {full:,.0f} without draft")


if __name__ == "__main__":
    main()
