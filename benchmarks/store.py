"""The teacher's store: its size and speed, and what five methods on one store cost. resnet32x4 -> resnet8x4, batch 64.

The cost of N methods for E epochs each on one store of V views, over that of their students alone:

    (V * images * teacher's time an image + sum over methods of E * steps * their step)
    / (N * E * steps * student's step)

The teacher's time an image and the steps are measured here on a part of the images; they do not depend on how many
there are, so the ratio is that of the whole data set.

    python benchmarks/store.py --data path/to/cifar100
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pair import StoreTeaching, blocks_of, images_of, loader_of, loop_of, store_of, taking, teacher_of

from potstill.methods.objective import KD_OBJECTIVE, PEFD_OBJECTIVE
from potstill.networks.features import Features
from potstill.store import Layout, Store, StoreKey, verify

BATCH, IMAGES = 64, 1024
METHODS = {
    "pefd": PEFD_OBJECTIVE, "kd": KD_OBJECTIVE, "kd++": {"ce": 1, "kd": 3.5, "nd": 2}, "dkd": {"ce": 1, "dkd": 1},
    "dist": {"ce": 1, "dist": 2},
}  # fmt: skip


def large_store(folder: Path, samples: int, views: int) -> Store:
    """A store of CIFAR-100's size with a 256-d embedding and 100 logits in fp16, of random numbers."""
    key = StoreKey(
        teacher="random", teacher_input={}, precision="fp32", taps=("logits", "embedding"), data="random", classes=(),
        samples=samples, augmentation={}, dtype="fp16",
    )  # fmt: skip
    features = Features(torch.randn(1000, 100), torch.randn(1000, 256))
    store = Store.create(folder, key, Layout.of(features, key.taps, key.dtype), views)
    for start in range(0, samples, 1000):
        for view in range(views):
            store.write(torch.arange(start, start + 1000), view, features)
    store.commit()
    return Store.open(folder)


def reads(store: Store, batch: int) -> list[float]:
    """Random records a second, five times."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(5):
        index = torch.randint(store.samples, (512, batch), generator=generator)
        view = torch.randint(store.views, (512, batch), generator=generator)
        began = time.perf_counter()
        for k in range(512):
            store.read(index[k], view[k])
        found.append(512 * batch / (time.perf_counter() - began))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-100; noise of its shape without it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="in a block")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--views", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    epochs, views = arguments.epochs, arguments.views
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = large_store(folder / "large", 50_000, 8)
        size = sum(file.stat().st_size for file in store.folder.iterdir())
        print(f"50,000 x 8 views, 256-d and 100 logits in fp16: {size / 1e6:.1f} MB")
        for batch in (64, 1024):
            found = reads(store, batch)
            print(
                f"random reads in batches of {batch}: {statistics.median(found):,.0f} records/s "
                f"({min(found):,.0f} to {max(found):,.0f})"
            )
        began = time.perf_counter()
        report = verify(store.folder)
        assert report.complete
        print(f"verify: {size / 1e6 / (time.perf_counter() - began):,.0f} MB/s")

        images, labels = images_of(arguments.data, IMAGES)
        teacher = teacher_of("resnet32x4", torch.bfloat16)
        loader = loader_of(images, labels, BATCH, 2)
        builds = [store_of(folder / f"store-{k}", teacher, loader, 2) for k in range(5)]
        building = statistics.median(seconds for _, seconds in builds) / (2 * IMAGES)
        print(f"building: {1 / building:,.0f} records/s, {1000 * building:.2f} ms each")
        teaching = StoreTeaching(builds[0][0])
        objectives = {"student alone": {"ce": 1}, **METHODS}
        runs = {
            label: taking(
                loop_of(
                    "resnet8x4", objective, teacher, teaching, loader_of(images, labels, BATCH, 2), folder / label,
                    torch.bfloat16,
                ).stepwise()
            )
            for label, objective in objectives.items()
        }  # fmt: skip
        times = blocks_of(runs, arguments.steps, arguments.rounds)
    alone = times.pop("student alone")
    print(f"student alone: {1000 * statistics.median(alone):.1f} ms a step")
    for label, own in times.items():
        over = statistics.median(a / b for a, b in zip(own, alone, strict=True))
        print(f"{label} on the store: {1000 * statistics.median(own):.1f} ms a step, {over:.3f} of the student alone")
    steps = 50_000 / BATCH
    rounds = [
        (views * 50_000 * building + epochs * steps * sum(method[k] for method in times.values()))
        / (len(times) * epochs * steps * alone[k])
        for k in range(arguments.rounds)
    ]
    low, median, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    step = statistics.median(alone)
    print(
        f"five methods, {epochs} epochs each, one store of {views} views: {median:.3f} of the students alone "
        f"({low:.3f} to {high:.3f}); building {views * 50_000 * building / 60:.0f} min, "
        f"a student alone {epochs * steps * step / 60:.0f} min"
    )


if __name__ == "__main__":
    main()
