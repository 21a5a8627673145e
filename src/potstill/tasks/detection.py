"""Detection: how well boxes are found, as average precision in COCO's way."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.errors import DataError, NetworkError, RecipeError
from potstill.training.distributed import Processes

__all__ = ["AveragePrecision", "Detections", "detections", "must_be_there"]

_SUMMARY = {
    "ap": "AP_all",
    "ap50": "AP_50",
    "ap75": "AP_75",
    "ap_small": "AP_small",
    "ap_medium": "AP_medium",
    "ap_large": "AP_large",
    "ar": "AR_third",  # the library's word for recall at the third, the largest, number of detections: 100
}


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image, on the host.

    Attributes:
        boxes: ``(n, 4)`` float32: x1, y1, x2, y2 in pixels of the image's file. They may reach beyond the image.
        scores: ``(n,)`` float32, the larger the surer.
        labels: ``(n,)`` int64 class numbers, from 0; background is none of them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def detections(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int) -> Detections:
    """Detections brought to the host and looked at: no measure can be taken of one that is no box.

    Args:
        boxes: ``(n, 4)`` on any device.
        scores: ``(n,)``.
        labels: ``(n,)`` integers.
        classes: C; labels are below it.

    Raises:
        NetworkError: for shapes that do not belong together, numbers that are not finite, boxes whose right end is left
            of their left one or whose lower end is above their upper one, and labels that are no class.

    Example:
        >>> detections(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0.9]), torch.tensor([2]), classes=3).labels
        tensor([2])
    """
    count = len(scores)
    if boxes.shape != (count, 4) or scores.ndim != 1 or labels.shape != (count,):
        raise NetworkError(
            f"Detections are boxes (n, 4), scores (n,) and labels (n,), but got {tuple(boxes.shape)}, "
            f"{tuple(scores.shape)} and {tuple(labels.shape)}."
        )
    found = Detections(boxes.detach().float().cpu(), scores.detach().float().cpu(), labels.detach().long().cpu())
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise NetworkError("The detector gave boxes or scores that are not finite; look at the training's loss.")
    if (turned := (found.boxes[:, 2:] < found.boxes[:, :2]).any(1)).any():
        raise NetworkError(
            f"A box is x1, y1, x2, y2 with x1 <= x2 and y1 <= y2; got {found.boxes[turned][0].tolist()}."
        )
    if count and not (int(found.labels.min()) >= 0 and int(found.labels.max()) < classes):
        raise NetworkError(
            f"Detections are of classes 0 to {classes - 1}, but the labels go from {int(found.labels.min())} to "
            f"{int(found.labels.max())}."
        )
    return found


class AveragePrecision:
    """COCO's average precision over a set of images, which are added one by one.

    AP is the mean of the precision at 101 recalls, over the classes and over the overlaps 0.50, 0.55, ..., 0.95 that
    make a detection right; of each image and class the 100 surest detections count. A crowd region takes any number of
    detections out of the count. A class counts where the ground truth has it, and so does a size (below 32², below 96²
    and above, by the annotation's ``area``); a network that finds nothing has 0.

    Every image that is added counts, with all that the ground truth has in it, and no other image. The library is
    faster-coco-eval, whose numbers are pycocotools', with one exception: annotations are numbered anew here, because
    both take one whose id is 0 for no annotation at all.

    Args:
        ground_truth: COCO's ``images`` (``id``) and ``annotations`` (``image_id``, ``category_id``, ``bbox`` as x, y,
            width, height in pixels of the file; ``iscrowd``, 0 where it is not given; ``area``, the box's where it is
            not given). Nothing in it is changed.
        category_ids: COCO's number of each class; annotations of other categories do not count.
        classes: their names.
        processes: whose images are put together; this process alone by default.

    Raises:
        DataError: for names and numbers of which there are not as many, or one twice, and for an annotation of an image
            that is not among the images.
        RecipeError: where faster-coco-eval is not installed.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; ``pycocotools/cocoeval.py``.

    Example:
        >>> box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
        >>> found = AveragePrecision({"images": [{"id": 7}], "annotations": [box]}, [3], ["cell"])
        >>> found.add(7, torch.tensor([[10.0, 10, 60, 48]]), torch.tensor([0.9]), torch.tensor([0]))
        >>> {name: round(value, 1) for name, value in found.values().items()}
        {'ap': 100.0, 'ap50': 100.0, 'ap75': 100.0, 'ap_medium': 100.0, 'ar': 100.0}
        >>> {name: round(value, 1) for name, value in found.per_class().items()}
        {'cell': 100.0}
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        category_ids: Sequence[int],
        classes: Sequence[str],
        processes: Processes | None = None,
    ) -> None:
        must_be_there()
        if len({*category_ids}) != len(classes) or len({*classes}) != len(category_ids):
            raise DataError(
                f"Average precision is told each class's number and name once, but there are the numbers "
                f"{', '.join(map(str, category_ids)) or 'none'} and the names {', '.join(classes) or 'none'}."
            )
        self.category_ids = [int(number) for number in category_ids]
        self.classes = list(classes)
        self._processes = processes or Processes(torch.device("cpu"))
        self._truth: dict[int, list[dict[str, Any]]] = {int(image["id"]): [] for image in ground_truth["images"]}
        wanted = {*self.category_ids}
        for annotation in ground_truth["annotations"]:
            if (image_id := int(annotation["image_id"])) not in self._truth:
                raise DataError(f"The ground truth has an annotation of image {image_id} and no such image.")
            if annotation["category_id"] in wanted:
                self._truth[image_id].append(_annotation(annotation))
        self._found: dict[int, Detections] = {}
        self._result: tuple[int, dict[str, float], dict[str, float]] | None = None

    def add(self, image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add an image with what was found in it, which may be nothing; waits for the device.

        An image that has been added already, here or in another process, is passed over.

        Args:
            image_id: as the ground truth has it.
            boxes: ``(n, 4)`` x1, y1, x2, y2 in pixels of the image's file.
            scores: ``(n,)``.
            labels: ``(n,)`` class numbers, from 0: positions in ``category_ids``.

        Raises:
            DataError: for an image that the ground truth does not have.
            NetworkError: as in :func:`detections`.
        """
        image_id = int(image_id)
        if image_id not in self._truth:
            raise DataError(f"The ground truth has no image {image_id}; its {len(self._truth)} images have other ids.")
        if image_id not in self._found:
            self._found[image_id] = detections(boxes, scores, labels, len(self.classes))

    def values(self) -> dict[str, float]:
        """``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large`` and ``ar``, in percent.

        ``ar`` is the recall that 100 detections an image reach, averaged like ``ap``. A size that the ground truth of
        the images does not have is left out. All processes have to call it, and get the same.

        Raises:
            DataError: where no image was added, or none of them has a box of the classes.
        """
        return dict(self._evaluated()[0])

    def per_class(self) -> dict[str, float]:
        """The AP of each class that the ground truth of the images has, in percent; all processes have to call it."""
        return dict(self._evaluated()[1])

    def _evaluated(self) -> tuple[dict[str, float], dict[str, float]]:
        together: dict[int, Detections] = {}
        for part in self._processes.gathered(self._found):
            together = {**part, **together}
        # Images are only ever added, and to all processes at once: as many images are the same images.
        if self._result is None or self._result[0] != len(together):
            self._result = (len(together), *self._evaluate(together))
        return self._result[1:]

    def _evaluate(self, found: Mapping[int, Detections]) -> tuple[dict[str, float], dict[str, float]]:
        truth = [dict(annotation) for image_id in sorted(found) for annotation in self._truth[image_id]]
        if all(annotation["iscrowd"] for annotation in truth):
            raise DataError(
                f"The ground truth has no box of {', '.join(self.classes)} in the {len(found)} images that were "
                "evaluated, so there is no average precision; evaluate on images that have some."
            )
        library: Any = importlib.import_module("faster_coco_eval")
        images = [{"id": image_id} for image_id in sorted(found)]
        categories = [{"id": number} for number in self.category_ids]
        ours = [one for image_id in sorted(found) for one in self._as_annotations(image_id, found[image_id])]
        sides = [
            library.COCO({"images": images, "categories": categories, "annotations": _numbered(annotations)})
            for annotations in (truth, ours)
        ]
        evaluation = library.COCOeval_faster(*sides, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        summary = evaluation.stats_as_dict
        values = {name: 100 * float(summary[key]) for name, key in _SUMMARY.items() if summary[key] >= 0}
        # precision: (overlaps, recalls, classes by their numbers, sizes, most detections), and -1 where there is none
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        names = dict(zip(self.category_ids, self.classes, strict=True))
        by_number = {number: precision[:, :, k] for k, number in enumerate(sorted(self.category_ids))}
        means = {number: float(np.mean(of[of > -1])) for number, of in by_number.items() if (of > -1).any()}
        return values, {names[number]: 100 * means[number] for number in self.category_ids if number in means}

    def _as_annotations(self, image_id: int, found: Detections) -> list[dict[str, Any]]:
        corners = found.boxes.double()
        sizes = corners[:, 2:] - corners[:, :2]
        rows = zip(
            torch.cat([corners[:, :2], sizes], 1).tolist(),
            sizes.prod(1).tolist(),
            found.scores.tolist(),
            found.labels.tolist(),
            strict=True,
        )
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "area": area,
                "score": score,
                "iscrowd": 0,
            }
            for box, area, score, label in rows
        ]


def must_be_there() -> None:
    """Refuse to judge detections where the library that does it is not installed; before anything is trained.

    Raises:
        RecipeError: with what to install.
    """
    try:
        importlib.import_module("faster_coco_eval")
    except ImportError as error:
        raise RecipeError(
            f"Average precision needs faster-coco-eval, which cannot be imported ({error}): "
            'pip install "potstill[det]".'
        ) from None


def _annotation(one: Mapping[str, Any]) -> dict[str, Any]:
    box = [float(value) for value in one["bbox"]]
    return {
        "image_id": int(one["image_id"]),
        "category_id": int(one["category_id"]),
        "bbox": box,
        "area": float(one.get("area", math.prod(box[2:]))),
        "iscrowd": int(one.get("iscrowd", 0)),
    }


def _numbered(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With ids from 1: in the library's matches 0 means that there is none."""
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return annotations
