"""A few small images with coloured squares in them, with boxes or masks, and detectors that take a second or two."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "DETECTION", "DETECTOR", "LEARNS", "SEGMENTATION", "boxes_folder", "masks_folder"]

CLASSES = ("red", "blue")

# A Faster R-CNN of some hundred thousand weights that looks at few regions.
DETECTOR = (
    "student.model=fasterrcnn/test_resnet.r160_in1k",
    "student.args={pyramid: 16, representation: 16, anchors: [8, 16, 24, 32, 48], box_batch_size_per_image: 16, "
    "rpn_batch_size_per_image: 32, rpn_pre_nms_top_n_train: 60, rpn_post_nms_top_n_train: 30, "
    "rpn_pre_nms_top_n_test: 60, rpn_post_nms_top_n_test: 20, box_detections_per_img: 10}",
)  # fmt: skip
_COMMON = (
    "data.size=64", "data.workers=0", "device=cpu", "precision=fp32", "epochs=2", "batch_size=4", "log.every=1",
    "schedule.name=constant", "optimizer.name=adamw", "optimizer.lr=0.001", "log.report=false",
)  # fmt: skip
DETECTION = ("task=detection", *DETECTOR, *_COMMON)
LEARNS = ("epochs=16", "optimizer.lr=0.005", "schedule.name=cosine", "log.evaluate=16", "log.every=50")  # something
SEGMENTATION = ("task=segmentation", "student.model=fcn/test_resnet.r160_in1k", *_COMMON)


def boxes_folder(folder: Path, train: int = 8, val: int = 4, test: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """A folder in COCO's layout: images of 64 x 64 and 64 x 48, each with one square of each class."""
    (folder / "annotations").mkdir(parents=True)
    first = 0
    for part, count in (("train2017", train), ("val2017", val), ("test2017", test)):
        (folder / part).mkdir()
        images, annotations = [], []
        for number in range(first, first + count):
            pixels, squares = _picture(number)
            Image.fromarray(pixels).save(folder / part / f"{number:03}.png")
            height, width = pixels.shape[:2]
            images.append({"id": number + 1, "file_name": f"{number:03}.png", "height": height, "width": width})
            for label, (x, y, side) in enumerate(squares):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number + 1, "category_id": 10 + label,
                     "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": 10 + label, "name": name} for label, name in enumerate(classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        first += count
    return folder


def masks_folder(folder: Path, train: int = 8, val: int = 4, test: int = 3) -> Path:
    """The same images with masks: 0 for the ground, 1 and 2 for the squares; the first row, 255, does not count."""
    first = 0
    for part, count in (("train", train), ("val", val), ("test", test)):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(first, first + count):
            pixels, squares = _picture(number)
            mask = np.zeros(pixels.shape[:2], np.uint8)
            for label, (x, y, side) in enumerate(squares, start=1):
                mask[y : y + side, x : x + side] = label
            mask[0] = 255
            Image.fromarray(pixels).save(folder / "images" / part / f"{number:03}.png")
            Image.fromarray(mask).save(folder / "masks" / part / f"{number:03}.png")
        first += count
    (folder / "classes.txt").write_text("\n".join(("ground", *CLASSES)) + "\n")
    return folder


def _picture(number: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Pixels, and of the red and the blue square x, y and side; they do not touch."""
    rng = np.random.default_rng(number)
    height, width = (64, 64) if number % 2 else (48, 64)
    pixels = rng.integers(100, 140, (height, width, 3), dtype=np.uint8)
    squares = []
    for half, colour in ((0, (230, 20, 20)), (1, (20, 20, 230))):
        side = int(rng.integers(12, 24))
        x = half * 32 + int(rng.integers(0, 32 - side))
        y = int(rng.integers(2, height - side))
        pixels[y : y + side, x : x + side] = colour
        squares.append((x, y, side))
    return pixels, squares
