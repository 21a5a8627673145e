"""Which of the detections in one image are right, which are wrong, and what was missed: for pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.tasks.detection import Detections

__all__ = ["Matches", "matched"]


@dataclass(frozen=True, slots=True)
class Matches:
    """An image's detections beside its ground truth.

    Attributes:
        right: ``(n,)`` bool, detections that found an object.
        wrong: ``(n,)`` bool, detections that found none, or one that a surer detection had found. What lies on a crowd
            region is neither right nor wrong.
        missed: ``(m,)`` bool, objects that nothing found; never a crowd region.
        truth: ``(n,)`` int64, for each detection the object or the crowd region that it found; -1 for none.
    """

    right: Tensor
    wrong: Tensor
    missed: Tensor
    truth: Tensor


def matched(
    found: Detections, boxes: Tensor, labels: Tensor, crowd: Tensor | None = None, overlap: float = 0.5
) -> Matches:
    """Match an image's detections with its ground truth as COCO does at one overlap.

    The surest detection chooses first: the object of its own class that it overlaps most, of those that nobody has
    taken. Overlap is intersection over union; with a crowd region it is the intersection's part of the detection, and
    a region can be chosen by many, but only where there is no object to choose.

    Args:
        found: n detections, in pixels as the ground truth is.
        boxes: ``(m, 4)`` x1, y1, x2, y2.
        labels: ``(m,)`` class numbers.
        crowd: ``(m,)`` bool, which boxes are crowd regions; None for none.
        overlap: the least that makes a detection right.

    Example:
        >>> objects, labels = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 30, 30]]), torch.tensor([0, 0])
        >>> guesses = torch.tensor([[0.0, 0, 10, 9], [50.0, 50, 60, 60]])
        >>> matches = matched(Detections(guesses, torch.tensor([0.9, 0.8]), torch.tensor([0, 0])), objects, labels)
        >>> matches.right.tolist(), matches.wrong.tolist(), matches.missed.tolist()
        ([True, False], [False, True], [False, True])
    """
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else crowd.bool().cpu()
    labels = labels.cpu()
    overlaps = _overlaps(found.boxes, boxes.cpu(), crowd)
    overlaps[found.labels[:, None] != labels] = -1
    taken = torch.zeros(len(boxes), dtype=torch.bool)
    truth = torch.full((len(found),), -1)
    for at in found.scores.argsort(descending=True, stable=True).tolist():
        for free in (~crowd & ~taken, crowd):
            candidates = torch.where(free, overlaps[at], -1.0)
            # of equal ones the last, as in COCO's own loop
            best = len(boxes) - 1 - int(candidates.flip(0).argmax()) if len(boxes) else -1
            if best >= 0 and candidates[best] >= min(overlap, 1 - 1e-10):
                truth[at] = best
                taken[best] = True
                break
    on_crowd = (truth >= 0) & crowd[truth] if len(boxes) else torch.zeros(len(found), dtype=torch.bool)
    return Matches((truth >= 0) & ~on_crowd, truth < 0, ~taken & ~crowd, truth)


def _overlaps(found: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """``(n, m)`` float64; 0 where two boxes share no area, be both without any."""
    found, boxes = found.double(), boxes.double()
    shared = (torch.minimum(found[:, None, 2:], boxes[:, 2:]) - torch.maximum(found[:, None, :2], boxes[:, :2])).clamp(
        min=0
    )
    intersection = shared.prod(2)
    own, other = (found[:, 2:] - found[:, :2]).prod(1)[:, None], (boxes[:, 2:] - boxes[:, :2]).prod(1)
    whole = torch.where(crowd, own.expand_as(intersection), own + other - intersection)
    return torch.where(intersection > 0, intersection / whole, 0.0)
