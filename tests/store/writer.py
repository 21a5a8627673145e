"""A teacher that costs nothing, and a process that stores its outputs: ``python writer.py FOLDER SAMPLES PART PARTS``.

It writes those missing rows whose number is PART modulo PARTS, in a shuffled order, and says on its standard output
that it is ready, then the rows of each batch just before it writes them.
"""

import random
import sys
import time

import torch

from potstill.networks.features import Features
from potstill.store import Layout, Store, StoreKey

CLASSES, DIM, BATCH = 5, 6, 8


def features(index: torch.Tensor, view: torch.Tensor | int) -> Features:
    """Whole numbers below 2048, which every dtype but bf16 holds, other ones for each (index, view)."""
    rows = index.reshape(-1, 1) * 131 + torch.as_tensor(view).reshape(-1, 1) * 1009
    columns = torch.arange(CLASSES + DIM) * 37
    logits, embedding = ((rows + columns) % 2048).float().split([CLASSES, DIM], dim=1)
    return Features(logits, embedding)


def key(count: int, /, **changes) -> StoreKey:
    values = {
        "teacher": "3fa9" * 16,
        "teacher_input": {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3, "size": None, "student_mean": [0.5] * 3},
        "precision": "fp32",
        "taps": ("logits", "embedding"),
        "data": "77ab" * 4,
        "classes": ("ape", "bee", "cat", "dog", "eel"),
        "samples": count,
        "augmentation": {"size": 32, "crop": "pad", "padding": 4, "scale": (0.08, 1.0), "flip": True, "seed": 0},
        "dtype": "fp16",
        "top_k": None,
    }
    return StoreKey(**{**values, **changes})


def layout(**changes) -> Layout:
    made_of = key(1, **changes)
    return Layout.of(features(torch.arange(1), 0), made_of.taps, made_of.dtype, made_of.top_k)


def main(folder: str, samples: int, part: int, parts: int) -> None:
    store = Store.open(folder, key(samples), write=True)
    index, view = store.missing()
    mine = torch.from_numpy(store.rows(index, view)) % parts == part
    index, view = index[mine], view[mine]
    order = torch.tensor(random.Random(part).sample(range(len(index)), len(index)), dtype=torch.int64)
    print("ready", flush=True)
    for batch in order.split(BATCH):
        print(*store.rows(index[batch], view[batch]).tolist(), flush=True)
        store.write(index[batch], view[batch], features(index[batch], view[batch]))
        time.sleep(0.001)
        store.commit()
        time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
