"""A detector as one graph of fixed shapes: lists that torchvision makes as long as they are become rows, some empty."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from potstill.networks.detection.tapped import TappedDetector

__all__ = ["DetectorGraph"]

_NONE = -1.0  # the score of a row that holds nothing: every real one is positive


class DetectorGraph(nn.Module):
    """What a detector finds in one image, in the same order as torchvision gives it.

    Of all lists whose length depends on the image, only those that non-maximum suppression and the assignment of
    regions to levels work on are left in the graph; each becomes rows of a fixed number at once.

    Args:
        tapped: the detector, in evaluation mode.
        input_size: ``(3, H, W)`` of the canvas.

    Example:
        >>> from potstill.networks.build import build_network
        >>> args = {"pyramid": 32, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 7}
        >>> tapped = build_network("fasterrcnn/resnet10t", classes=3, args=args, input_size=(3, 64, 96)).eval()
        >>> graph, images = DetectorGraph(tapped, (3, 64, 96)), torch.zeros(1, 3, 64, 96)
        >>> boxes, scores, labels = graph(images, torch.tensor([64, 80]))
        >>> boxes.shape, scores.shape, labels.shape
        (torch.Size([7, 4]), torch.Size([7]), torch.Size([7]))
    """

    rows: Tensor  # (H, 1), as is columns (1, W)
    columns: Tensor

    def __init__(self, tapped: TappedDetector, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        network: Any = tapped.network
        self.network = network
        self.two_stage, self.classes = tapped.two_stage, tapped.classes
        whole = (input_size[1], input_size[2])
        self.register_buffer("rows", torch.arange(whole[0])[:, None])
        self.register_buffer("columns", torch.arange(whole[1])[None])
        images = torch.zeros(1, *input_size)
        with torch.no_grad():
            levels = list(network.backbone(images).values())
            generator = network.rpn.anchor_generator if self.two_stage else network.anchor_generator
            (anchors,) = generator(ImageList(images, [whole]), levels)
        per_place = generator.num_anchors_per_location()
        self.counts = [m.shape[2] * m.shape[3] * n for m, n in zip(levels, per_place, strict=True)]
        for level, one in enumerate(anchors.split(self.counts)):
            self.register_buffer(f"anchors{level}", one.clone())

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The detections of one image, the best first: boxes ``(D, 4)``, scores ``(D,)`` and labels ``(D,)`` int64.

        Rows without a detection are the last ones; their label is -1, their score and their box are 0.

        Args:
            images: ``(1, 3, H, W)``, normalised; the image lies at its upper left.
            size: ``(2,)`` int64, height and width of the image in it; what lies beside it is taken as zeros.
        """
        inside = (self.rows < size[0]) & (self.columns < size[1])
        images = torch.where(inside, images, 0.0)
        levels = list(self.network.backbone(images).values())
        found = self._of_regions(levels, size) if self.two_stage else self._of_places(levels, size)
        return self._best(*found, size)

    def _of_regions(self, levels: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Faster R-CNN's candidates: boxes ``(N, 4)``, scores ``(N,)``, -1 for none, and labels ``(N,)``."""
        heads = self.network.roi_heads
        regions, there = self._proposals(levels, size)
        logits, deltas = heads.box_predictor(heads.box_head(self._pooled(levels, regions)))
        boxes = heads.box_coder.decode_single(deltas, regions).reshape(-1, self.classes + 1, 4)
        boxes, scores = clipped(boxes, size)[:, 1:], logits.softmax(-1)[:, 1:]  # torchvision's background is the first
        real = there[:, None] & (scores > heads.score_thresh) & (sides(boxes) >= 1e-2).all(-1)
        labels = torch.arange(self.classes).expand(len(regions), self.classes)
        return boxes.reshape(-1, 4), torch.where(real, scores, _NONE).flatten(), labels.flatten()

    def _proposals(self, levels: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Regions ``(P, 4)``, and which of them there are ``(P,)``."""
        rpn = self.network.rpn
        boxes, scores = [], []
        for level, (named, moved) in enumerate(zip(*rpn.head(levels), strict=True)):
            objectness = named[0].permute(1, 2, 0).flatten()
            deltas = moved[0].reshape(-1, 4, *moved.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            best, chosen = objectness.topk(min(rpn.pre_nms_top_n(), len(objectness)))
            near = clipped(rpn.box_coder.decode_single(deltas[chosen], self._anchors(level)[chosen]), size)
            probable = best.sigmoid()
            real = (sides(near) >= rpn.min_size).all(-1) & (probable >= rpn.score_thresh)
            boxes.append(near)
            scores.append(torch.where(real & unsuppressed(near, probable, rpn.nms_thresh), probable, _NONE))
        score, chosen = torch.cat(scores).topk(min(rpn.post_nms_top_n(), sum(map(len, scores))))
        return torch.cat(boxes)[chosen], score >= 0

    def _pooled(self, levels: list[Tensor], regions: Tensor) -> Tensor:
        """``(P, C, h, w)``: each region's part of the level that suits its size."""
        pool = self.network.roi_heads.box_roi_pool
        height, width = pool.output_size
        pooled = levels[0].new_zeros(len(regions), levels[0].shape[1], height, width)
        of_level = pool.map_levels([regions])
        for level, scale in enumerate(pool.scales):
            chosen = (of_level == level).nonzero().squeeze(1)
            boxes = torch.nn.functional.pad(regions[chosen], (1, 0))  # the number of their image, 0, before them
            part = roi_align(levels[level], boxes, (height, width), scale, pool.sampling_ratio)
            pooled = pooled.index_copy(0, chosen, part)
        return pooled

    def _of_places(self, levels: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RetinaNet's and FCOS' candidates, as of :meth:`_of_regions`."""
        network = self.network
        outputs = network.head(levels)
        probable = outputs["cls_logits"][0].sigmoid()
        if isinstance(network, FCOS):
            probable = (probable * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
        decode = network.box_coder.decode if isinstance(network, FCOS) else network.box_coder.decode_single
        boxes, scores, labels = [], [], []
        parts = zip(probable.split(self.counts), outputs["bbox_regression"][0].split(self.counts), strict=True)
        for level, (each, moved) in enumerate(parts):
            score, chosen = each.flatten().topk(min(network.topk_candidates, each.numel()))
            place = chosen // self.classes
            boxes.append(clipped(decode(moved[place], self._anchors(level)[place]), size))
            scores.append(torch.where(score > network.score_thresh, score, _NONE))
            labels.append(chosen % self.classes)
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels)

    def _best(self, boxes: Tensor, scores: Tensor, labels: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates that none of their class and of a higher score covers, as many as the network returns."""
        network = self.network.roi_heads if self.two_stage else self.network
        real = (scores >= 0).nonzero().squeeze(1)
        # Apart from each other, so that boxes of different classes never meet.
        apart = boxes[real] + (labels[real] * (size.max() + 1))[:, None]
        kept = unsuppressed(apart, scores[real], network.nms_thresh)
        left = torch.full_like(scores, _NONE).index_copy(0, real, torch.where(kept, scores[real], _NONE))
        score, chosen = left.topk(min(network.detections_per_img, len(left)))
        there = score >= 0
        return (
            torch.where(there[:, None], boxes[chosen], 0.0), torch.where(there, score, 0.0),
            torch.where(there, labels[chosen], -1),
        )  # fmt: skip

    def _anchors(self, level: int) -> Tensor:
        return self.get_buffer(f"anchors{level}")


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes ``(.., 4)`` cut to an image of ``size``, height and width."""
    return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2).to(boxes))


def sides(boxes: Tensor) -> Tensor:
    """Width and height ``(.., 2)`` of boxes."""
    return boxes[..., 2:] - boxes[..., :2]


def unsuppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """``(N,)`` bool: the boxes that overlap with none of a higher score by more than ``threshold``."""
    # Two more boxes, away from all: torch.export takes it that suppression leaves two or more, and checks it each time.
    more = torch.tensor([[-3.0, -3.0, -2.0, -2.0], [-6.0, -6.0, -5.0, -5.0]])
    given = torch.cat((scores, torch.zeros(2)))
    kept = nms(torch.cat((boxes, more)), given, threshold)
    return torch.zeros_like(given, dtype=torch.bool).index_fill(0, kept, True)[:-2]
