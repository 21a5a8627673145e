"""The frozen teacher's pass, one improvement after the other: resnet32x4, batch 64 at 32 x 32.

python benchmarks/teacher.py
"""

import argparse
import statistics

import torch
from pair import MEAN, STD, blocks_of, create, ratio

from potstill.networks.tap import tap
from potstill.networks.teacher import Teacher

SETTINGS = {
    "float32, NCHW": {"channels_last": False, "fold": False},
    "channels last": {"fold": False},
    "batch norms folded": {},
    "bfloat16": {"precision": torch.bfloat16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="resnet32x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled, with constants frozen")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = torch.randn(arguments.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    settings = dict(SETTINGS)
    if arguments.compile:
        settings["bfloat16, compiled"] = {"precision": torch.bfloat16, "compile": True}

    def run(values):
        common = {"mean": MEAN, "std": STD, "student_mean": MEAN, "student_std": STD}
        teacher = Teacher(tap(create(arguments.model)), **common, **values)
        return lambda: teacher(images)

    seconds = blocks_of({name: run(values) for name, values in settings.items()}, 2, arguments.rounds)
    first = seconds["float32, NCHW"]
    for name, own in seconds.items():
        print(f"{name:20} {1000 * statistics.median(own):>6.1f} ms, times the first {ratio(first, own)}")


if __name__ == "__main__":
    main()
