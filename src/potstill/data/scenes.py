"""One call that opens the data of detection and of segmentation: splits, and the sentence that tells of them."""

from pathlib import Path
from typing import Literal

from potstill.data.boxes import BoxSource
from potstill.data.layouts import LAYOUTS, Layout, find_layout
from potstill.data.masks import MaskSource
from potstill.data.source import Split
from potstill.data.splits import stratified
from potstill.errors import DataError, nearest

__all__ = ["JUDGED", "SceneSource", "open_scenes"]

SceneSource = BoxSource | MaskSource
JUDGED = ("auto", "val", "test")


def open_scenes(
    task: str,
    path: str | Path,
    *,
    judged: Literal["auto", "val", "test"] = "auto",
    val_fraction: float | None = None,
    seed: int = 0,
    source: str = "auto",
) -> Split:
    """Open images with boxes or masks as a training and a validation source.

    ===== ============================================================================================================
    coco  ``annotations/instances_PART.json`` and the images in ``PART`` or ``images/PART``; PART is train, val or test,
          with a year behind it or without (``train2017``)
    voc   ``JPEGImages``, ``Annotations/*.xml`` and ``ImageSets/Main/PART.txt``; without ``ImageSets``, all images that
          have an XML file are the training set
    masks ``images/PART`` and ``masks/PART`` with PNG masks of the images' names, or ``images`` and ``masks`` without
          parts; or VOC's ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation/PART.txt``
    ===== ============================================================================================================

    The classes of voc and masks are those of ``classes.txt`` in the folder, one a line; without it, those that occur.

    Args:
        task: ``detection`` (coco, voc) or ``segmentation`` (masks).
        path: the data's folder.
        judged: the part to judge by. ``"auto"`` takes val, where there is none test, and where there is neither a
            random part of the training images. Judged by test, VOC is trained on ``trainval`` where there is that list.
        val_fraction: the part of the training images that is kept where the data bring none; None is 0.1, 0 keeps none.
        seed: of that choice.
        source: the layout; ``"auto"`` looks.

    Raises:
        DataError: an unknown layout; a part that was asked for and is not there; classes that differ between training
            and validation; and all that the source itself finds wrong.
    """
    if judged not in JUDGED:
        raise DataError(
            f"There is no part {judged!r} to judge by; choose {', '.join(JUDGED)}.{nearest(judged, JUDGED)}"
        )
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    if task not in LAYOUTS:
        raise DataError(
            f"open_scenes opens data for {' and '.join(LAYOUTS)}, not for {task!r}.{nearest(task, LAYOUTS)}"
        )
    layout = find_layout(task, Path(path), source)
    part = choose(layout, judged)
    learnt = layout.learnt(part)
    train, val = layout.open(learnt, part)
    notes = [f"The data are in the layout {layout.kind}.", *layout.notes]
    if val is not None:
        notes.append(f"Trained on {learnt}, {count(train)}; judged by the data's own {part}: {count(val)}.")
        unused = [one for one in layout.parts if one not in (learnt, part)]
        if unused:
            notes.append(f"Not used: {', '.join(unused)}.")
        both = len({str(train.encoded(i)) for i in range(len(train))} & {str(val.encoded(i)) for i in range(len(val))})
        if both:
            notes.append(f"{both:,} images are in both, so the judgement is of images that were trained on.")
        if val_fraction is not None:
            notes.append(f"val_fraction={val_fraction} is for data without a part to judge by and was not used.")
    else:
        fraction = 0.1 if val_fraction is None else val_fraction
        train, val, said = keep(train, fraction, seed)
        notes.append(said)
    for each in (train, val):
        notes += told(each)
    return Split(train, val, " ".join(notes))


def choose(layout: Layout, judged: str) -> str | None:
    """The part to judge by, None where the data bring none and none was asked for."""
    if judged == "auto":
        return next((one for one in ("val", "test") if one in layout.parts), None)
    if judged not in layout.parts:
        raise DataError(
            f"{layout.path} has no part {judged!r} to judge by; it has {', '.join(layout.parts)}. With "
            "judged=auto, a part of the training images is kept where there is neither val nor test."
        )
    return judged


def keep(train: SceneSource, fraction: float, seed: int) -> tuple[SceneSource, SceneSource | None, str]:
    """The training images without a random part of them, that part, and what to say of it."""
    if fraction == 0:
        return train, None, f"No part to judge by was asked for (val_fraction=0): trained on all, {count(train)}."
    kept, held = stratified(len(train), fraction, seed)
    if not len(held):
        return train, None, "There is one image only, so none is kept to judge by."
    said = (
        f"The data bring no part to judge by: {len(held):,} of {count(train)} are kept for it, chosen with seed {seed}."
    )
    return train.select(kept), train.select(held), said


def count(source: SceneSource) -> str:
    """``205 images with 2,804 boxes``."""
    images = f"{len(source):,} image{'s' * (len(source) != 1)}"
    return f"{images} with {source.boxes:,} boxes" if isinstance(source, BoxSource) else images


def told(source: SceneSource | None) -> list[str]:
    """What became of boxes that are not as they should be."""
    said = []
    if isinstance(source, BoxSource) and source.clipped:
        said.append(f"{source.name}: {source.clipped:,} boxes reach outside their image and are clipped to it.")
    if isinstance(source, BoxSource) and source.dropped:
        said.append(
            f"{source.name}: {source.dropped:,} boxes have no width or height, or lie outside their image, and are not "
            "learnt from; detections are judged by all boxes as they are."
        )
    return said
