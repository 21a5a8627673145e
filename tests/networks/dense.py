"""Small networks for detection and segmentation whose outputs are not all alike, as those of untrained heads are."""

import torch
from torch import Tensor, nn

from potstill.networks.build import build_network
from potstill.networks.tap import Tapped
from potstill.objects import Objects

SIZE = (3, 96, 128)
INSIDE = (90, 120)
ANCHORS = (16, 24, 32, 64, 96)
ARGS = {
    "fasterrcnn": {
        "pyramid": 32, "representation": 64, "anchors": ANCHORS, "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 16,
    },
    "retinanet": {"pyramid": 32, "anchors": ANCHORS, "topk_candidates": 60},
    "fcos": {"pyramid": 64, "topk_candidates": 60},
    "fcn": {}, "deeplabv3": {"output_stride": 16}, "lraspp": {"inter_channels": 16},
}  # fmt: skip
DETECTORS = ("fasterrcnn", "retinanet", "fcos")
SEGMENTERS = ("fcn", "deeplabv3", "lraspp")


def build(kind: str, classes: int = 3, backbone: str = "test_resnet") -> Tapped:
    """A small network of a kind, awake, in evaluation mode."""
    torch.manual_seed(0)
    tapped = build_network(f"{kind}/{backbone}", classes=classes, args=ARGS[kind], input_size=SIZE)
    wake(tapped.network)
    return tapped.eval()


@torch.no_grad()
def wake(network: nn.Module) -> None:
    """Batch norms unlike their start, and heads whose scores are spread over places and classes."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            for values in (module.bias, module.running_mean):
                values.copy_(torch.randn(values.shape, generator=generator) / 4)
    for name, values in network.named_parameters():
        if name.endswith("cls_logits.bias") and name.startswith("head."):
            values.fill_(-2.0)
        elif name.startswith(("head.", "roi_heads.box_predictor.")) and values.ndim > 1:
            layer = name.split(".")[-2]
            spread = {"cls_score": 2.0, "cls_logits": 1.0, "bbox_pred": 0.3, "bbox_reg": 0.3}.get(layer, 1.4)
            values.copy_(torch.randn(values.shape, generator=generator) * spread / values[0].numel() ** 0.5)


def images(count: int = 1, seed: int = 0) -> Tensor:
    """Normalised noise, padded with zeros at the right and at the bottom."""
    noise = torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))
    padded = torch.zeros_like(noise)
    padded[..., : INSIDE[0], : INSIDE[1]] = noise[..., : INSIDE[0], : INSIDE[1]]
    return padded


def objects(count: int = 2) -> Objects:
    """In every image two objects, of the classes 2 and 0; in the last one none."""
    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [60.0, 5.0, 110.0, 40.0]])
    some, none = (boxes, torch.tensor([2, 0])), (boxes[:0], torch.tensor([], dtype=torch.int64))
    rows = [some] * (count - 1) + [none]
    return Objects(tuple(b for b, _ in rows), tuple(n for _, n in rows), (INSIDE,) * count, ((180, 240),) * count)
