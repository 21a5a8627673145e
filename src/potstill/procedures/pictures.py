"""Pictures for the report: a few of the validation images, with the boxes or masks that networks find in them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from potstill.batch import Batch
from potstill.data.scene_view import fitted
from potstill.files import write_whole
from potstill.procedures.data import Data
from potstill.training.distributed import Processes

__all__ = ["DetectionPictures", "MaskPictures"]

T = TypeVar("T")

_PLACE = "pictures"
_SHOWN = 12
_WIDTH = 320  # pixels of a picture
_QUALITY = 80
_LEAST_SURE = 0.05  # what is found with less is not kept
_MOST = 100  # boxes of an image


@dataclass(frozen=True, slots=True)
class DetectionPictures:
    """The boxes in some of the validation images: as they are labelled, and as networks find them.

    The images are spread evenly over the set, so that two runs show the same ones.

    Args:
        data: with the source of the validation images.
    """

    data: Data
    found: dict[str, dict[int, list[list[float]]]] = field(default_factory=dict)

    def observer(self, network: str) -> Callable[[int, dict[str, Tensor]], None]:
        """What takes in a network's detections, image by image, in pixels of the files."""
        kept, chosen = self.found.setdefault(network, {}), set(_chosen(self.data))

        def observe(index: int, found: dict[str, Tensor]) -> None:
            if index not in chosen:
                return
            rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            sure = sorted((row for row in rows if row[2] >= _LEAST_SURE), key=lambda row: -row[2])[:_MOST]
            kept[index] = [[*(round(side, 1) for side in box), label, round(score, 3)] for box, label, score in sure]

        return observe

    def gathered(self, processes: Processes) -> "DetectionPictures":
        """With what all processes found; every process calls it."""
        return DetectionPictures(self.data, _whole(self.found, processes))

    def write(self, folder: Path) -> None:
        """Leave ``pictures/`` with the images, at most 320 pixels wide, and ``pictures.json`` with their boxes.

        Boxes are in pixels of the pictures: x1, y1, x2, y2, the class's name and, of what was found, the score.

        Args:
            folder: the run's.
        """
        source: Any = self.data.judged
        rows = []
        for index in _chosen(self.data):
            row, scale = _picture(source, index, folder)
            objects = source.objects(index)
            truth = [
                [*box, label] for box, label, crowd in
                zip(objects.boxes.tolist(), objects.labels.tolist(), objects.crowd.tolist(), strict=True) if not crowd
            ]  # fmt: skip
            row["truth"] = [self._shown(box, scale) for box in truth]
            for network, found in self.found.items():
                row[network] = [self._shown(box, scale) for box in found.get(index, [])]
            rows.append(row)
        _write(rows, folder)

    def _shown(self, box: list[float], scale: float) -> list[Any]:
        sides = [round(side * scale, 1) for side in box[:4]]
        return [*sides, self.data.classes[int(box[4])], *box[5:]]


@dataclass(frozen=True, slots=True)
class MaskPictures:
    """The masks of some of the validation images: as they are labelled, and as networks name the pixels.

    Args:
        data: with the source of the validation images.
    """

    data: Data
    found: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def observer(self, network: str) -> Callable[[Batch, Tensor], None]:
        """What takes in a batch and the class that a network names for each of its pixels, ``(B, H, W)``."""
        kept, chosen = self.found.setdefault(network, {}), set(_chosen(self.data))
        source: Any = self.data.judged

        def observe(batch: Batch, named: Tensor) -> None:
            for place, index in enumerate(batch.index.tolist()):
                if index in chosen:
                    short, longest = self.data.size, self.data.longest or self.data.size
                    height, width = fitted(*source.size(index), short, longest)  # type: ignore[call-arg]
                    kept[index] = named[place, :height, :width].to("cpu", torch.uint8).numpy()

        return observe

    def gathered(self, processes: Processes) -> "MaskPictures":
        """With what all processes named; every process calls it."""
        return MaskPictures(self.data, _whole(self.found, processes))

    def write(self, folder: Path) -> None:
        """Leave ``pictures/`` with images and masks, at most 320 pixels wide, and ``pictures.json``.

        Args:
            folder: the run's.
        """
        source: Any = self.data.judged
        rows = []
        for index in _chosen(self.data):
            row, _ = _picture(source, index, folder)
            masks = {"truth": source.mask(index)} | {name: found[index] for name, found in self.found.items()
                                                     if index in found}  # fmt: skip
            for who, mask in masks.items():
                row[who] = f"pictures/{index:06d}-{who}.png"
                Image.fromarray(mask).resize(row["size"], Image.Resampling.NEAREST).save(folder / row[who])
            rows.append({key: value for key, value in row.items() if key != "size"})
        _write(rows, folder)


def _chosen(data: Data) -> list[int]:
    """The numbers of the images that are shown."""
    count = 0 if data.judged is None else len(data.judged)
    return sorted({int(k) for k in np.linspace(0, count - 1, min(_SHOWN, count)).round()})


def _picture(source: Any, index: int, folder: Path) -> tuple[dict[str, Any], float]:
    """A picture's row, once the picture is written, and its width as a part of the file's."""
    (folder / _PLACE).mkdir(exist_ok=True)
    pixels = Image.fromarray(source.image(index))
    scale = min(1.0, _WIDTH / pixels.width)
    small = pixels.resize((max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))))
    file = f"{_PLACE}/{index:06d}.jpg"
    small.save(folder / file, quality=_QUALITY)
    return {"file": file, "name": source.describe(index), "size": list(small.size)}, scale


def _write(rows: list[dict[str, Any]], folder: Path) -> None:
    if rows:
        write_whole(folder / _PLACE / "pictures.json", json.dumps(rows) + "\n")


def _whole(found: dict[str, dict[int, T]], processes: Processes) -> dict[str, dict[int, T]]:
    """What all processes found, by network and image."""
    whole: dict[str, dict[int, T]] = {}
    for part in processes.gathered(found):
        for network, images in part.items():
            whole.setdefault(network, {}).update(images)
    return whole
