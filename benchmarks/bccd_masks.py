"""Make a small set for segmentation out of a detection set: an ellipse in each box, as cells are round.

    python benchmarks/bccd_masks.py ../shared/data/bccd bccd-masks

The images are copied; a mask's pixel is 0 for the ground, else one more than the class's number in the boxes. Small
cells are painted over large ones. What training and judging split the detection set has, the masks have.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from potstill.data.boxes import BoxSource
from potstill.data.scenes import open_scenes


def paint(source: BoxSource, index: int) -> np.ndarray:
    """One image's mask, ``(H, W)`` uint8."""
    height, width = source.size(index)
    mask = Image.new("L", (width, height), 0)
    draw, objects = ImageDraw.Draw(mask), source.objects(index)
    for row in np.argsort(-objects.area, kind="stable"):
        draw.ellipse([float(side) for side in objects.boxes[row]], fill=int(objects.labels[row]) + 1)
    return np.asarray(mask)


def main() -> None:
    """Write images, masks and classes.txt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("boxes", type=Path, help="a folder in COCO's layout")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for part, judged in (("train", "val"), ("val", "val"), ("test", "test")):
        split = open_scenes("detection", arguments.boxes, judged=judged)
        source = split.train if part == "train" else split.val
        if not isinstance(source, BoxSource):
            raise SystemExit(f"{arguments.boxes} has no {part} images.")
        for kind in ("images", "masks"):
            (arguments.out / kind / part).mkdir(parents=True, exist_ok=True)
        for index in range(len(source)):
            file = source.encoded(index)
            shutil.copyfile(file, arguments.out / "images" / part / file.name)
            Image.fromarray(paint(source, index)).save(arguments.out / "masks" / part / f"{file.stem}.png")
        (arguments.out / "classes.txt").write_text("\n".join(["ground", *source.classes]) + "\n")


if __name__ == "__main__":
    main()
