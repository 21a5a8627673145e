"""A detector of torchvision's seen as Features: its pyramid, its backbone's stages, the regions that it samples."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from potstill.errors import NetworkError
from potstill.networks.affine import linear_of
from potstill.networks.features import Features, FeatureSpec, MapSpec
from potstill.networks.probe import at_rest, probe_images, stride_of
from potstill.networks.tapped import Tapped
from potstill.objects import Objects, Regions, Size

__all__ = ["DETECTORS", "AsTheyCome", "TappedDetector", "tap_detector"]

DETECTORS = (FasterRCNN, RetinaNet, FCOS)


class AsTheyCome(nn.Module):
    """Takes the place of a detector's own transform: batches come resized, normalised and padded.

    Attributes:
        sizes: (height, width) of each image inside the batch that is to be looked at next; none: all fill it.
    """

    sizes: tuple[Size, ...] = ()

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        """The batch as torchvision's detectors hand it on."""
        whole = (images.shape[2], images.shape[3])
        return ImageList(images, list(self.sizes) or [whole] * len(images)), targets

    def postprocess(self, result: Any, sizes: Any, originals: Any) -> Any:
        """The detections as they are, in pixels of the batch."""
        return result


class TappedDetector(Tapped):
    """A detector read by its parts.

    A call without objects shows the pyramid and the stages. A call with objects in training mode also samples regions
    and gives the detector's own losses; :meth:`detect` gives what it finds.

    Attributes:
        two_stage: whether it looks at regions; then ``spec.classes`` is C + 1 with background last, else 0.
        classes: C, the number of classes of objects.
    """

    def __init__(
        self, network: FasterRCNN | RetinaNet | FCOS, spec: FeatureSpec, input_size: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__(network, spec, input_size)
        self.two_stage, self._classes = isinstance(network, FasterRCNN), classes
        network.transform = AsTheyCome()

    @property
    def classes(self) -> int:
        """The number of classes of objects; background is not counted."""
        return self._classes

    def forward(
        self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False,
        objects: Objects | None = None,
    ) -> Features:  # fmt: skip
        """One pass over a batch ``(B, 3, H, W)``.

        Args:
            images: normalised, padded.
            maps: fill ``Features.maps`` with the pyramid's levels; they are there anyway where objects are given.
            preacts: the pyramid's levels too: no activation ends them.
            blocks: fill ``Features.blocks`` with the ends of the backbone's stages.
            objects: what lies in the images: sample regions and compute the losses.
        """
        ends, levels = self.pyramid(images)
        shown, inside = tuple(levels.values()), tuple(ends.values()) if blocks else ()
        before = shown if preacts else ()
        if objects is None:
            logits, embedding = images.new_zeros(0, self.spec.classes), images.new_zeros(0, self.spec.embedding_dim)
            return Features(logits, embedding, shown if maps else (), before, inside)
        found = self._regions(images, levels, objects) if self.two_stage else self._dense(images, levels, objects)
        return Features(
            found.logits, found.embedding, shown, before, inside, losses=found.losses, regions=found.regions
        )

    def read(self, images: Tensor, maps: bool) -> Features:
        """The pass without objects."""
        return self(images, maps=maps)

    def open(self, maps: bool = False, preacts: bool = False, blocks: bool = False) -> None:
        """Nothing: pyramid and stages need no hooks."""

    def pyramid(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The ends of the backbone's stages and the pyramid's levels, both by name."""
        backbone: Any = self.network.backbone
        ends: dict[str, Tensor] = backbone.body(images)
        return ends, backbone.fpn(ends)

    def read_regions(self, levels: Sequence[Tensor], regions: Regions) -> tuple[Tensor, Tensor]:
        """What this network makes of regions that may be another's: logits ``(R, C + 1)`` and embedding ``(R, D)``.

        Args:
            levels: its own pyramid of the same images.
            regions: where to look.
        """
        heads: Any = self.network.roi_heads
        named = self._named(levels)
        embedding = heads.box_head(heads.box_roi_pool(named, list(regions.boxes), list(regions.sizes)))
        return background_last(heads.box_predictor.cls_score(embedding)), embedding

    @torch.no_grad()
    def propose(self, images: Tensor, levels: Sequence[Tensor], objects: Objects, background: int) -> Regions:
        """All regions that the network proposes in evaluation, with the objects' own boxes; nothing is drawn.

        A region has the class of the object that it overlaps most, background below the overlap that training asks
        for.

        Args:
            images: of the pyramid.
            levels: its levels.
            objects: what lies in the images, whose classes may be others than this network's.
            background: the number of the class of regions without an object: as many as there are classes of objects.
        """
        network: Any = self.network
        named = self._named(levels)
        proposals, _ = network.rpn(ImageList(images, list(objects.sizes)), named)
        boxes = [torch.cat((mine, own.to(mine))) for mine, own in zip(proposals, objects.boxes, strict=True)]
        given = [label + 1 for label in objects.labels]
        _, labels = network.roi_heads.assign_targets_to_proposals(boxes, list(objects.boxes), given)
        return Regions(tuple(boxes), counted_from_0(torch.cat(labels), background), objects.sizes)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: tuple[Size, ...]) -> list[dict[str, Tensor]]:
        """What it finds: of each image ``boxes`` (n, 4) in pixels of the batch, ``scores`` and ``labels`` from 0.

        Args:
            images: normalised, padded.
            sizes: (height, width) of each image inside the batch.
        """
        network: Any = self.network
        found: list[dict[str, Tensor]]
        if self.two_stage:
            levels = self.pyramid(images)[1]
            with torch.autocast(images.device.type, enabled=False):  # boxes are pixels: half precision moves them
                full = OrderedDict((name, level.float()) for name, level in levels.items())
                proposals, _ = network.rpn(ImageList(images, list(sizes)), full)
                found, _ = network.roi_heads(full, proposals, list(sizes))
        else:
            network.transform.sizes = tuple(sizes)
            try:
                with torch.autocast(images.device.type, enabled=False):
                    found = network(images)
            finally:
                network.transform.sizes = ()
        shift = 1 if self.two_stage else 0  # torchvision's two-stage detectors count from 1
        return [{**one, "labels": one["labels"] - shift} for one in found]

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Of a two-stage detector the layer that names regions, background last; None of another."""
        network: Any = self.network
        linear = linear_of(network.roi_heads.box_predictor.cls_score) if self.two_stage else None
        if linear is None:
            return None
        weight, bias = linear
        return weight.roll(-1, 0), None if bias is None else bias.roll(-1, 0)

    def _regions(self, images: Tensor, levels: dict[str, Tensor], objects: Objects) -> Features:
        network: Any = self.network
        targets = [{"boxes": b, "labels": n + 1} for b, n in zip(objects.boxes, objects.labels, strict=True)]
        with torch.autocast(images.device.type, enabled=False):  # boxes are pixels: half precision moves them
            full = OrderedDict((name, level.float()) for name, level in levels.items())
            proposals, losses = network.rpn(ImageList(images, list(objects.sizes)), full, targets)
            heads = network.roi_heads
            boxes, _, labels, shifts = heads.select_training_samples(proposals, targets)
        embedding = heads.box_head(heads.box_roi_pool(full, boxes, list(objects.sizes)))
        scores, deltas = heads.box_predictor(embedding)
        named, moved = fastrcnn_loss(scores.float(), deltas.float(), labels, shifts)
        losses = {
            "objectness": losses["loss_objectness"], "proposals": losses["loss_rpn_box_reg"], "classes": named,
            "boxes": moved,
        }  # fmt: skip
        regions = Regions(tuple(boxes), counted_from_0(torch.cat(labels), self.classes), objects.sizes)
        return Features(background_last(scores), embedding, losses=losses, regions=regions)

    def _dense(self, images: Tensor, levels: dict[str, Tensor], objects: Objects) -> Features:
        network: Any = self.network
        given = list(levels.values())
        targets = [{"boxes": b, "labels": n} for b, n in zip(objects.boxes, objects.labels, strict=True)]
        with torch.autocast(images.device.type, enabled=False):
            given = [level.float() for level in given]
            outputs = network.head(given)
            anchors = network.anchor_generator(ImageList(images, list(objects.sizes)), given)
            counts = [[level.shape[2] * level.shape[3] for level in given]] if isinstance(network, FCOS) else []
            losses = network.compute_loss(targets, outputs, anchors, *counts)
        logits, embedding = images.new_zeros(0, 0), images.new_zeros(0, self.spec.embedding_dim)
        names = {"classification": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centres"}
        return Features(logits, embedding, losses={names.get(name, name): loss for name, loss in losses.items()})

    def _named(self, levels: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        return OrderedDict((name, level.float()) for name, level in zip(self._names, levels, strict=True))

    @property
    def _names(self) -> list[str]:
        return [level.name for level in self.spec.maps]


def counted_from_0(labels: Tensor, background: int) -> Tensor:
    """Class numbers that count from 0, with background as the last, of torchvision's: from 1, with background as 0.

    Example:
        >>> counted_from_0(torch.tensor([0, 1, 3]), background=3)
        tensor([3, 0, 2])
    """
    return torch.where(labels > 0, labels - 1, background)


def background_last(logits: Tensor) -> Tensor:
    """``(R, C + 1)`` logits with background, torchvision's first, as the last.

    Example:
        >>> background_last(torch.tensor([[9.0, 1.0, 2.0]]))
        tensor([[1., 2., 9.]])
    """
    return logits.roll(-1, 1)


def tap_detector(network: Any, input_size: tuple[int, int, int]) -> TappedDetector:
    """See a detector of torchvision's as Features; it takes padded batches from then on.

    Args:
        network: Faster R-CNN, RetinaNet or FCOS, on a backbone with a feature pyramid (``backbone.body`` and
            ``backbone.fpn``, as torchvision's own are made).
        input_size: ``(3, H, W)`` of a probe.

    Raises:
        NetworkError: another kind of detector, or a backbone without a pyramid.
    """
    backbone = network.backbone
    if not (hasattr(backbone, "body") and hasattr(backbone, "fpn")):
        raise NetworkError(
            f"the backbone of this {type(network).__name__} is a {type(backbone).__name__} without body and fpn; build "
            "it with a feature pyramid, as torchvision's resnet_fpn_backbone does"
        )
    with at_rest(network):
        images = probe_images(network, input_size)
        ends = backbone.body(images)
        levels = backbone.fpn(ends)
        if isinstance(network, FasterRCNN):
            # Which level has which stride is set once, by the first images; a batch of small ones in a large canvas
            # would have it wrong, so a full canvas comes first.
            height, width = input_size[1:]
            box = images.new_tensor([[0.0, 0.0, width, height]])
            network.roi_heads.box_roi_pool(levels, [box] * len(images), [(height, width)] * len(images))

    side = max(input_size[1:])  # of a map of one place the longer side tells more

    def specs(found: dict[str, Tensor]) -> tuple[MapSpec, ...]:
        return tuple(MapSpec(n, m.shape[1], stride_of(side, max(m.shape[2:]))) for n, m in found.items())

    if isinstance(network, FasterRCNN):
        predictor = network.roi_heads.box_predictor
        classes, dim, rows = predictor.cls_score.out_features - 1, predictor.cls_score.in_features, 1
    else:
        classes, dim, rows = network.head.classification_head.num_classes, backbone.out_channels, 0
    spec = FeatureSpec(classes + 1 if rows else 0, dim, specs(levels), specs(ends))
    return TappedDetector(network, spec, input_size, classes)
