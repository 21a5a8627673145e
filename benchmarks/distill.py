"""Distilling with Potstill against a plain loop: PEFD q=3, resnet32x4 -> resnet8x4, batch 64, CIFAR-100's images.

One process takes blocks of steps of each in turn, so that whatever else the machine does meets all of them:

* plain: float32, eager, NCHW, torchvision transforms and a DataLoader, as the published repositories train;
* fp32: Potstill in float32 (channels last, folded batch norms, resident loader), which keeps the numbers;
* live: Potstill as it chooses by itself where the processor has bfloat16;
* store: the same with the teacher's outputs from a store;
* student: the same student trained on labels alone, with no teacher at all.

    python benchmarks/distill.py --data path/to/cifar100
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from pair import StoreTeaching, blocks_of, create, images_of, loader_of, loop_of, ratio, store_of, taking, teacher_of
from plain import PlainLoop, batches

from potstill.methods.objective import PEFD_OBJECTIVE

BATCH, IMAGES, VIEWS = 64, 1024, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-100; noise of its shape without it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--steps", type=int, default=4, help="in a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--compile", action="store_true", help="compile the student of the last three, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images, labels = images_of(arguments.data, IMAGES)
    plain = PlainLoop(create(arguments.student), create(arguments.teacher))
    endless = batches(images, labels, BATCH, arguments.workers)
    bf16, full = torch.bfloat16, torch.float32
    teachers = {dtype: teacher_of(arguments.teacher, dtype) for dtype in (bf16, full)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loader = loader_of(images, labels, BATCH, VIEWS)
        store, _ = store_of(folder / "store", teachers[bf16], loader, VIEWS)

        def loop(objective, dtype, teaching, label):
            return taking(
                loop_of(
                    arguments.student, objective, teachers[dtype], teaching, loader_of(images, labels, BATCH, VIEWS),
                    folder / label, bf16 if dtype == bf16 else None, arguments.compile and dtype == bf16,
                ).stepwise()
            )  # fmt: skip

        runs = {
            "plain": lambda: plain.step(*next(endless)),
            "fp32": loop(PEFD_OBJECTIVE, full, teachers[full], "fp32"),
            "live": loop(PEFD_OBJECTIVE, bf16, teachers[bf16], "live"),
            "store": loop(PEFD_OBJECTIVE, bf16, StoreTeaching(store), "store-run"),
            "student": loop({"ce": 1.0}, bf16, None, "student"),
        }
        seconds = blocks_of(runs, arguments.steps, arguments.rounds)
    print(f"{'':8} {'ms a step':>9} {'images/s':>9}  times plain (quartiles)  over student only (quartiles)")
    for name, times in seconds.items():
        median = statistics.median(times)
        faster, over = ratio(seconds["plain"], times), ratio(times, seconds["student"])
        print(f"{name:8} {1000 * median:>9.1f} {BATCH / median:>9.0f}  {faster:<24} {over}")


if __name__ == "__main__":
    main()
